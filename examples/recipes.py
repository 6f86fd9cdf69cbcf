"""Measure what a preset needs and what it yields, or print the tables of recipes in docs/presets.md.

python recipes.py PRESET TRAIN.h5 TEST.h5 CLASSIFIER.pt2     measure: train, score samples, bound the test images
python recipes.py measured                                   print the measured rows
python recipes.py planned                                    print plans of the presets for GPUs

A measurement adds a row to docs/recipes.json, in place of an earlier row of the same preset, data and machine. It trains
run-PRESET beside TRAIN.h5, which must not exist. `make recipes` measures the preset `digits`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "docs/recipes.json"
ELBO = (sys.executable, "-m", "elbocli")
RATE = 3e14
"""Operations per second: docs/gpu.md estimates 290 to 350 TFLOP/s for imagenet64 on a card like an H100."""
FID = "frechet_distance"
ACCURACY = "accuracy"


def stdout(*words: Any, feed: bytes | None = None) -> bytes:
    """Standard output of an elbo command. Raises CalledProcessError."""
    return subprocess.run([*ELBO, *map(str, words)], input=feed, stdout=subprocess.PIPE, check=True).stdout


def machine() -> str:
    """The device that elbo uses by default, as the tutorial's figures name it."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{len(os.sched_getaffinity(0))} cores of a CPU"


def measure(preset: str, train: Path, test: Path, classifier: Path) -> dict[str, Any]:
    """Train a preset, score 2000 samples of 20 steps as the tutorial does, and measure the bound. Returns the row."""
    run = train.parent / f"run-{preset}"
    if run.exists():
        sys.exit(f"recipes: {run} exists; delete it, because time and memory are measured from the start")
    begin = time.monotonic()
    process = subprocess.Popen([*ELBO, "train", "-q", train, "-o", run, "--preset", preset], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    if status:
        sys.exit(f"recipes: training failed with status {os.waitstatus_to_exitcode(status)}")
    images = stdout("sample", "-q", run, "-n", 2000, "--sampler", "dpmpp-2m", "--steps", 20)
    options = ("--extractor", classifier, "--metrics", f"fid,{ACCURACY}", "--classes", "balanced")
    scores = json.loads(stdout("eval", "-q", "-", "--ref", train, *options, feed=images))
    bound = json.loads(stdout("bound", "-q", run, test, "-n", 10000))
    device = machine()
    return {
        "preset": preset,
        "data": train.stem,
        "images": scores["n_ref"],
        "machine": device,
        "seconds": round(seconds),
        "peak_memory_MB": round(usage.ru_maxrss / 1000) if device.endswith("CPU") else None,
        "loss": json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"],
        **values(scores),
        **{key: bound[key] for key in ("bpd", "bpd_se")},
        "command": " ".join(["python examples/recipes.py", preset, train.name, test.name, classifier.name]),
    }


def values(result: dict[str, Any]) -> dict[str, float]:
    """The Fréchet distance with its standard error, and the accuracy, from a result of `elbo eval`."""
    distance, accuracy = (result["scores"][f"{name}[{result['extractor']}]"] for name in (FID, ACCURACY))
    return {FID: distance["value"], "frechet_se": distance["se"], ACCURACY: accuracy["value"]}


def tutorial() -> dict[str, Any]:
    """The row of the tutorial, from the figures of its page."""
    figures = json.loads((ROOT / "docs/tutorial/figures.json").read_text())
    output = figures["output"]["train"]
    scores = figures["scores"]
    bound = figures["bound"]
    return {
        "preset": re.findall(r"preset (\S+),", output)[0],
        "data": "Fashion-MNIST",
        "images": scores["n_ref"],
        "machine": figures["machine"],
        "seconds": figures["seconds"]["train"],
        "peak_memory_MB": figures.get("peak_memory_MB"),
        "loss": figures["loss"],
        **values(scores),
        **{key: bound[key] for key in ("bpd", "bpd_se")},
        "command": "[tutorial](tutorial.md)",
    }


def markdown(lines: list[list[str]]) -> str:
    """A table of cells."""
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each row."""
    titles = "preset, data, images, machine, training, peak memory, loss, Fréchet distance, accuracy, bits/dim, command"
    lines = [titles.split(", ")]
    for row in rows:
        seconds = row["seconds"]
        memory = row.get("peak_memory_MB")
        command = row["command"]
        lines.append(
            [
                f"`{row['preset']}`",
                row["data"],
                f"{row['images']:,}",
                row["machine"],
                f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s",
                f"{memory:.0f} MB" if memory else "not measured",
                f"{row['loss']:.3f}",
                f"{row[FID]:.2f} ± {row['frechet_se']:.2f}",
                f"{100 * row[ACCURACY]:.1f} %",
                f"{row['bpd']:.3f} ± {row['bpd_se']:.3f}",
                command if command.startswith("[") else f"`{command}`",
            ]
        )
    return markdown(lines)


def planned() -> str:
    """Markdown: for each preset for a GPU, its plan with micro-batches of one image, and days at RATE."""
    from elbocli.runs.presets import NAMES, load_preset
    from elbocli.runs.settings import preset_data, resolve
    from elbocli.training.plan import plan

    lines = [["preset", "images", "operations", "memory", "memory per image", "days"]]
    for name in NAMES:
        data = preset_data(name)
        if data and load_preset(name).about.gpu:
            found = plan(resolve({"preset": name, "device": "cuda", "micro_batch": 1}, data))
            memory = found["memory_MB"]
            lines.append(
                [
                    f"`{name}`",
                    f"{found['data_images']:,}",
                    f"{found['compute']['run_EFLOP']:,.0f} EFLOP",
                    f"{(memory['total'] - memory['activations']) / 1000:.1f} GB",
                    f"{memory['activations'] / 1000:.2f} GB",
                    f"{found['compute']['run_EFLOP'] * 1e18 / RATE / 86400:.1f}",
                ]
            )
    return markdown(lines)


def main() -> None:
    """Measure a preset, or print a table, as the command line asks."""
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else []
    if len(sys.argv) != 5:
        tables = {"measured": lambda: measured([tutorial(), *rows]), "planned": planned}
        if sys.argv[1:2] not in [[name] for name in tables]:
            sys.exit(__doc__)
        print(tables[sys.argv[1]]())
        return
    row = measure(sys.argv[1], *map(Path, sys.argv[2:]))
    same = ("preset", "data", "machine")
    rows = [each for each in rows if any(each[key] != row[key] for key in same)] + [row]
    ROWS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(measured([row]))


if __name__ == "__main__":
    main()
