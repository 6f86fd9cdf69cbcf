"""`--log-to`: each target gets every line of metrics.jsonl and every preview, and none of them can end training."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import group
import numpy as np
import pytest
from harness import heard
from PIL import Image

from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.run.settings import Resolved, resolve
from elbocli.train import loop, recorder
from elbocli.train.recorder import check_targets, open_tensorboard

pytestmark = pytest.mark.usefixtures("short_previews")


class Kept:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.pictures: list[tuple[int, str]] = []

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        if "samples" in values:
            path = values["samples"]
            assert path.read_bytes()[:4] == b"\x89PNG"
            self.pictures.append((step, path.name))
        else:
            self.lines.append({"step": step, **values})


class Broken(Kept):
    def write(self, step: int, values: Mapping[str, Any]) -> None:
        raise ZeroDivisionError("nobody listens")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """What `wandb` stands for in a test, and `tensorboard` is broken."""
    target = Kept()
    targets = {"wandb": target, "tensorboard": Broken()}
    packages = {name: lambda *_, to=to: to.write for name, to in targets.items()}
    monkeypatch.setattr(recorder, "PACKAGES", packages)
    return target


@pytest.fixture
def resolved(digits: Path, preset: Path) -> Resolved:
    options = {"steps": 12, "log_every": 4, "preview_every": 6, "val_split": 20, "val_every": 80}
    return resolve({"preset": str(preset), **options}, Dataset(digits))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Lines without the version of the format, which only the run's own file has."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "version"} for row in rows]


def test_every_target_gets_every_line_and_every_preview(
    kept: Kept, resolved: Resolved, digits: Path, tmp_path: Path
) -> None:
    run, file = tmp_path / "run", tmp_path / "also.jsonl"
    words = ["wandb", str(file)]
    loop.run(Dataset(digits), run, resolved, log_to=words)
    assert kept.lines == lines_of(file) == lines_of(run / "metrics.jsonl")
    assert {4, 8, 12} < {line["step"] for line in kept.lines} and any("val_bpd" in line for line in kept.lines)
    assert kept.pictures == [(6, "step-00000006.png"), (12, "step-00000012.png")]


def test_a_file_only_grows(resolved: Resolved, digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "also.jsonl"
    file.write_text('{"mine": 1}\n')
    for run in ("one", "two"):
        loop.run(Dataset(digits), tmp_path / run, resolved, log_to=[str(file)])
    both = [line for run in ("one", "two") for line in lines_of(tmp_path / run / "metrics.jsonl")]
    assert lines_of(file) == [{"mine": 1}, *both]


def test_a_target_that_fails_is_a_warning_once_and_keeps_nothing_from_the_others(
    kept: Kept, resolved: Resolved, digits: Path, tmp_path: Path
) -> None:
    words = ["tensorboard", str(tmp_path / "none" / "a.jsonl"), "wandb"]
    with heard() as lines:
        loop.run(Dataset(digits), tmp_path / "run", resolved, log_to=words)
    warnings = [line for line in lines if line.startswith("--log-to")]
    assert len(warnings) == 2 and "nobody listens" in warnings[0] and "No such file" in warnings[1]
    assert kept.lines == lines_of(tmp_path / "run" / "metrics.jsonl")


def test_only_the_first_process_logs_elsewhere(digits: Path, preset: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "also.jsonl"
    job = {"size": 2, "data": str(digits), "out": str(run), "options": {"preset": str(preset)}, "log_to": [str(file)]}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    line = [sys.executable, str(Path(group.__file__)), str(tmp_path / "jobs.json")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "[[0, 0]]", done.stderr
    assert lines_of(file) == lines_of(run / "metrics.jsonl")


@pytest.mark.parametrize("word", ["comet", "metrics.json", "", "tensor"])
def test_a_word_that_is_no_target_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match=f"^--log-to {word}: expected tensorboard, wandb or the path"):
        check_targets([word], Path("run"))


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_lacking_is_named_with_its_extra_before_a_run_begins(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"^--log-to {package}: .*pip install 'elbocli\[{package}\]'"):
        check_targets(["a.jsonl", package], Path("run"))


def test_a_target_is_taken_from_the_command_line_and_the_environment_and_from_no_file(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    line = ("train", digits, "--preset", preset, "--log-every", 1, "--steps")
    said = elbo(*line, 1, "--log-to", "a.jsonl", "--log-to", "b.jsonl", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert elbo(*line, 2, cwd=tmp_path, env={"ELBO_TRAIN_LOG_TO": "a.jsonl"}).returncode == 0
    assert elbo(*line, 3, cwd=tmp_path).returncode == 0
    steps = {name: [each["step"] for each in lines_of(tmp_path / name)] for name in ("a.jsonl", "b.jsonl")}
    assert steps == {"a.jsonl": [1, 2], "b.jsonl": [1]}
    (tmp_path / "c.yaml").write_text("log_to: c.jsonl\n")
    (tmp_path / "p.yaml").write_text(preset.read_text().replace("steps: 40", "steps: 1, log_to: c.jsonl"))
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("settings:\n", "settings:\n  tensorboard: true\n  log_to: c.jsonl\n"))
    for words in (
        ("--config", "c.yaml", "-o", "new"),
        ("--preset", "p.yaml", "-o", "new"),
        ("--config", config, "-o", "new"),
        (),
    ):
        refused = elbo("train", digits, *words, cwd=tmp_path)
        assert refused.returncode in (1, 2) and b"log_to" in refused.stderr, (words, refused.stderr)
    assert "c.jsonl" not in os.listdir(tmp_path) and "new" not in os.listdir(tmp_path)
    wrong = elbo(*line, 4, "--log-to", "comet", "-o", "new", cwd=tmp_path)
    assert wrong.returncode == 2 and b"--log-to comet: expected" in wrong.stderr and "new" not in os.listdir(tmp_path)


# --- TensorBoard, read back by its own reader ---


def read(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0}).Reload()


@pytest.fixture
def _seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers take files by the second in their names, as starts of a run are seconds apart."""
    from tensorboard.summary.writer import event_file_writer

    clock = itertools.count(int(time.time()) + 10)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(clock)))


@pytest.mark.usefixtures("_seconds_apart")
def test_tensorboard_shows_numbers_and_pictures_and_no_step_twice(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grid.png")
    write = open_tensorboard("tensorboard", tmp_path, 0)
    write(10, {"loss": 0.5, "lr": 1e-4, "images": 12, "none": None})
    write(20, {"loss": 0.25, "val_bpd": 3.5})
    write(10, {"samples": tmp_path / "grid.png"})
    write = open_tensorboard("tensorboard", tmp_path, 10)  # as a run that goes on after step 10
    write(20, {"loss": 0.125})
    found = read(tmp_path)
    assert set(found.Tags()["scalars"]) == {"train/loss", "train/lr", "train/images", "val/bpd"}
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(10, 0.5), (20, 0.125)]
    (event,) = found.Images("samples")
    assert event.step == 10
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), pixels)
