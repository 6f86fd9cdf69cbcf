"""Pages of runs, read as a browser reads them, and runs that are odd in some way."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from elbocli.files.yaml_text import read_yaml, yaml_text
from elbocli.report.log_history import POINTS

ALERT = "<script>alert(1)</script>"
HOSTILE = f"\"><img src=x onerror='alert(1)'>{ALERT}"
TERM = {"nats": 1.0, "nats_se": 0.1, "bpd": 0.5, "bpd_se": 0.05}
BOUND = {
    **dict.fromkeys(("prior", "reconstruction", "diffusion"), TERM),
    "nats": 3.0,
    "nats_se": 0.1,
    "bpd": 1.5,
    "bpd_se": 0.05,
    "bpd_se_noise": 0.01,
    "bpd_se_population": 0.05,
    "n_images": 9,
    "draws_per_image": 2,
    "schedule": "cosine",
}


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def change(run: Path, section: str, **values: Any) -> None:
    """Another config.yaml."""
    config = read_yaml(run / "config.yaml")
    config[section] = {**config[section], **values} if section else values
    (run / "config.yaml").write_text(yaml_text(config))


def just_begun(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def beyond_numbers(run: Path) -> None:
    huge = {"step": 40, "images": 640, "loss": 1.7e308}
    (run / "metrics.jsonl").write_text((json.dumps(huge) + "\n") * 3 * POINTS)
    header, *_, last = (run / "losslog.jsonl").read_text().splitlines()
    line = json.loads(last)
    for key, value in (("sum", 1e308), ("count", 0.1)):
        header += "\n" + json.dumps({**line, key: [value] * len(line[key])})
    (run / "losslog.jsonl").write_text(header)
    (run / "result.json").write_text(json.dumps({**BOUND, "bpd": float("nan"), "x": float("inf")}))
