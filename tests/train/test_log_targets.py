"""`--log-to`: each target gets every line of metrics.jsonl and every preview, and none of them can end training."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import group
import pytest
from forks import quick

from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.run.settings import Resolved, resolve
from elbocli.train import log_targets, loop
from elbocli.train.log_targets import LogTarget, LogTargets, check

pytestmark = pytest.mark.usefixtures("short_previews")


class Kept(LogTarget):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.pictures: list[tuple[int, str]] = []
        self.closed = 0

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self.lines.append({"step": step, **values})

    def picture(self, step: int, path: Path) -> None:
        assert path.read_bytes()[:4] == b"\x89PNG"
        self.pictures.append((step, path.name))

    def close(self) -> None:
        self.closed += 1


class Broken(LogTarget):
    """Takes nothing."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        raise ZeroDivisionError("nobody listens")

    picture = close = write  # type: ignore[assignment]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """What `wandb` stands for in a test, and `tensorboard` is broken."""
    target = Kept()
    monkeypatch.setattr(
        log_targets, "PACKAGES", {"wandb": lambda run, step: target, "tensorboard": lambda *_: Broken()}
    )
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
    assert not [each for each in loop.run(Dataset(digits), run, resolved, log_to=words) if each.level == "warning"]
    assert kept.lines == lines_of(file) == lines_of(run / "metrics.jsonl")
    assert {4, 8, 12} < {line["step"] for line in kept.lines} and any("val_bpd" in line for line in kept.lines)
    assert kept.pictures == [(6, "step-00000006.png"), (12, "step-00000012.png")]
    assert kept.closed == 1


def test_a_file_only_grows(resolved: Resolved, digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "also.jsonl"
    file.write_text('{"mine": 1}\n')
    for run in ("one", "two"):
        list(loop.run(Dataset(digits), tmp_path / run, resolved, log_to=[str(file)]))
    both = [line for run in ("one", "two") for line in lines_of(tmp_path / run / "metrics.jsonl")]
    assert lines_of(file) == [{"mine": 1}, *both]


def test_a_target_that_fails_is_a_warning_once_and_keeps_nothing_from_the_others(
    kept: Kept, resolved: Resolved, digits: Path, tmp_path: Path
) -> None:
    words = ["tensorboard", str(tmp_path / "none" / "a.jsonl"), "wandb"]
    reports = list(loop.run(Dataset(digits), tmp_path / "run", resolved, log_to=words))
    warnings = [each.message for each in reports if each.level == "warning"]
    assert len(warnings) == 2, warnings
    assert warnings[0].startswith(f"--log-to {words[1]}: ") and "No such file" in warnings[0]
    assert warnings[1] == "--log-to tensorboard: nobody listens"
    assert kept.lines == lines_of(tmp_path / "run" / "metrics.jsonl")


CUT = """
import resource, sys
from pathlib import Path
from elbocli.train.log_targets import LogTargets
said = []
targets = LogTargets([sys.argv[1]], Path(), 0, said.append)
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, limit[1]))  # in the middle of a line
for step in range(4):
    targets.write(step, {"loss": 0.5})
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
targets.write(4, {"loss": 0.5})
assert len(said) == 1 and "File too large" in said[0], said
"""


def test_lines_that_a_file_has_no_room_for_come_when_it_has(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    done = subprocess.run([quick(), "-c", CUT, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert lines_of(file) == [{"step": step, "loss": 0.5} for step in range(5)]


def test_a_trouble_is_told_again_when_it_comes_again(tmp_path: Path) -> None:
    said: list[str] = []
    targets = LogTargets([str(tmp_path / "a.jsonl")], tmp_path, 0, said.append)
    troubles = iter(["full", "full", "", "full"])

    class Sometimes(LogTarget):
        def write(self, step: int, values: Mapping[str, Any]) -> None:
            if trouble := next(troubles):
                raise OSError(trouble)

    targets.close()
    targets._targets = {"x": Sometimes()}
    for step in range(4):
        targets.write(step, {})
    assert said == ["--log-to x: full"] * 2


def test_only_the_first_process_logs_elsewhere(digits: Path, preset: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "also.jsonl"
    job = {"size": 2, "data": str(digits), "out": str(run), "options": {"preset": str(preset)}, "log_to": [str(file)]}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    line = [quick(), str(Path(group.__file__)), str(tmp_path / "jobs.json")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "[[0, 0]]", done.stderr
    assert lines_of(file) == lines_of(run / "metrics.jsonl")


@pytest.mark.parametrize("word", ["comet", "metrics.json", "", "tensor"])
def test_a_word_that_is_no_target_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match=f"^--log-to {word}: expected tensorboard, wandb or the path"):
        check([word], Path("run"))


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_lacking_is_named_with_its_extra_before_a_run_begins(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_targets, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=rf"^--log-to {package}: .*pip install 'elbocli\[{package}\]', or leave it out"
    ):
        check(["a.jsonl", package], Path("run"))


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
