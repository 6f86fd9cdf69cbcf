"""Write docs/tutorial.md from a run of its commands: `python write_tutorial.py FOLDER DOCS`.

FOLDER is what run_page.py left. The page is tutorial.md.j2, with what was measured filled in; that is kept beside the pictures,
in DOCS/tutorial, so that a change of the page's words needs no new run: `python write_tutorial.py - DOCS`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

PAGE = Path(__file__).with_name("tutorial.md.j2")
PICTURES = {"samples.png": "samples.png", "schedule.png": "schedule.png"}
GREYS = 24
COLOURS = 256
PROGRESS = re.compile(r"elbo \w+: \d+/\d+ ")
LARGEST = 560
"""Pixels: a picture that is wider is made smaller, so that all of them stay below 300 kB."""


def minutes(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
    return f"{seconds / 60:.0f} minutes"


def ends(text: str, lines: int) -> str:
    """Return a long text without its middle."""
    every = text.splitlines()
    return text if len(every) <= lines else "\n".join([*every[: lines // 2], "…", *every[-lines // 2 :]])


def lasting(text: str) -> str:
    """Return a command's output without lines of progress, which a terminal overwrites."""
    return "\n".join(line for line in text.strip().splitlines() if not PROGRESS.match(line))


def value_of(result: dict[str, Any], name: str) -> float:
    """The value of a score by the tutorial's classifier."""
    return float(result["scores"][f"{name}[classifier.pt2]"]["value"])


def page(figures: dict[str, Any]) -> str:
    """The page with the figures filled in. Raises UndefinedError when one is missing."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"minutes": minutes, "ends": ends, "value_of": value_of}
    return re.sub(r"^```sh \w+$", "```sh", environment.from_string(PAGE.read_text()).render(figures), flags=re.M)


def measured(folder: Path) -> dict[str, Any]:
    """All figures of a run of the page's commands."""
    steps = {path.stem: json.loads(path.read_text()) for path in (folder / "steps").glob("*.json")}
    begun = steps["train"]["begun"]
    previews = sorted((folder / "run" / "previews").glob("step-*.png"))
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores of a CPU",
        "total": sum(step["seconds"] for step in steps.values()),
        "seconds": {name: step["seconds"] for name, step in steps.items()},
        "peak_memory_MB": steps["train"]["peak_memory_MB"],
        "loss": json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])["loss"],
        "output": {name: lasting(step["output"]) for name, step in steps.items()},
        "previews": [{"step": int(path.stem.rpartition("-")[2]), "seconds": path.stat().st_mtime - begun} for path in previews],
        **{name: json.loads((folder / f"{name}.json").read_text()) for name in ("scores", "real", "bound")},
    }


def copy_pictures(folder: Path, to: Path) -> None:
    """Previews, samples and the plot of the schedule, small."""
    previews = sorted((folder / "run" / "previews").glob("step-*.png"))
    sources = {"first.png": previews[0], "last.png": previews[-1]} | {name: folder / source for name, source in PICTURES.items()}
    for name, path in sources.items():
        with Image.open(path) as image:
            small = image.convert("L" if image.mode in ("L", "1") else "RGB")
        if small.width > LARGEST:
            small = small.resize((LARGEST, round(small.height * LARGEST / small.width)), Image.Resampling.LANCZOS)
        small.quantize(GREYS if small.mode == "L" else COLOURS).save(to / name, optimize=True)


def main() -> None:
    """Write page, figures and pictures."""
    folder = sys.argv[1]
    docs = Path(sys.argv[2])
    kept = docs / "tutorial" / "figures.json"
    if folder != "-":
        kept.parent.mkdir(parents=True, exist_ok=True)
        copy_pictures(Path(folder), kept.parent)
        kept.write_text(json.dumps(measured(Path(folder)), ensure_ascii=False, indent=1) + "\n")
    (docs / "tutorial.md").write_text(page(json.loads(kept.read_text())))


if __name__ == "__main__":
    main()
