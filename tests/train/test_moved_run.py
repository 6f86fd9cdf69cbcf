"""A run's folder that somebody moves, replaces or deletes while it is trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import quick

from elbocli.errors import DataError
from elbocli.files import checkpoint as store
from elbocli.files import sealed_folder
from elbocli.files.dataset import Dataset
from elbocli.files.snapshots import folders
from elbocli.run.settings import Resolved, resolve
from elbocli.train import loop

pytestmark = pytest.mark.usefixtures("short_previews")

OPTIONS = {"steps": 12, "save_every": 2, "keep": 99, "log_every": 2, "snapshot_every": 3, "preview_every": 12}


@pytest.fixture
def resolved(digits: Path, preset: Path) -> Resolved:
    return resolve({"preset": str(preset), **OPTIONS}, Dataset(digits))


def trained_to(run: Path, digits: Path, resolved: Resolved, step: int, act: Callable[[], object], **more: Any) -> Any:
    """Train, act after a step, and go on; where the run is in the end, and what was said."""
    said = []
    reports = loop.run(Dataset(digits), run, resolved, **more)
    try:
        while True:
            report = next(reports)
            if report.message:
                said.append(report.message)
            if report.done == step and not report.then:
                act()
    except StopIteration as end:
        return end.value, said


def content(run: Path) -> dict[str, bytes]:
    """What is the same for the same run, by path."""
    whole = [*run.glob("checkpoints/*/*.safetensors"), *run.glob("snapshots/*/*.safetensors"), *run.glob("previews/*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in [*whole, run / "losslog.jsonl"]}


@pytest.mark.parametrize("step", [1, 7, 12])
def test_a_run_that_is_moved_goes_on_where_it_is(step: int, digits: Path, resolved: Resolved, tmp_path: Path) -> None:
    straight, run, other = (tmp_path / name for name in ("straight", "run", "other"))
    list(loop.run(Dataset(digits), straight, resolved))
    where, said = trained_to(run, digits, resolved, step, lambda: run.rename(other), log_to=["tensorboard"])
    assert where == other and not run.exists()
    assert f"{run}: was moved to {other}; training goes on there" in said and said[-1].startswith(f"{other}: done")
    assert content(other) == content(straight)
    assert len(list(other.glob("tensorboard/events*"))) == 2
    assert len(store.checkpoints(other)) == 6 and len(folders(other)) == 4
    assert json.loads((other / "status.json").read_text())["state"] == "done"
    assert not list(other.rglob(".*.tmp"))


def test_a_run_that_took_the_old_name_is_left_alone(digits: Path, resolved: Resolved, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"

    def act() -> None:
        run.rename(other)
        trained_to(run, digits, resolved, 0, lambda: None)

    where, _ = trained_to(run, digits, resolved, 7, act)
    assert where == other
    assert content(other) == content(run)
    assert len(store.checkpoints(run)) == len(store.checkpoints(other)) == 6


def test_a_file_stop_is_looked_for_where_the_run_is(digits: Path, resolved: Resolved, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"

    def act() -> None:
        run.rename(other)
        time.sleep(0.6)  # a STOP is looked for twice a second
        (other / "STOP").touch()

    where, said = trained_to(run, digits, resolved, 7, act)
    assert where == other and said[-1].startswith(f"{other}: ended by a file STOP")


def test_the_command_is_told_where_the_run_is(digits: Path, resolved: Resolved, tmp_path: Path) -> None:
    """The one for the last checkpoint, which the end of training waits for; those before may be left out."""
    run, other = tmp_path / "run", tmp_path / "other"
    command = f"echo $ELBO_RUN >> {tmp_path}/seen"
    trained_to(run, digits, resolved, 7, lambda: run.rename(other), on_checkpoint=command)
    assert (tmp_path / "seen").read_text().split()[-1] == str(other)


def test_a_checkpoint_during_which_the_run_is_moved_is_not_lost(
    digits: Path, resolved: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other, whole = tmp_path / "run", tmp_path / "other", sealed_folder.write_weights

    def slow(folder: Path, weights: Any) -> None:
        if folder.name.startswith(".step-00000012") and run.exists():
            run.rename(other)
        whole(folder, weights)

    monkeypatch.setattr(sealed_folder, "write_weights", slow)
    where, _ = trained_to(run, digits, resolved, 0, lambda: None)
    assert where == other and not run.exists()
    assert store.checkpoints(other)[-1].name == "step-00000012" and len(folders(other)) == 4
    assert not list(other.rglob(".*.tmp"))


def test_a_run_that_is_deleted_ends_in_a_sentence_and_leaves_nothing(
    digits: Path, resolved: Resolved, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def act() -> None:
        while run.exists():  # into which a checkpoint is written
            shutil.rmtree(run, ignore_errors=True)

    with pytest.raises(DataError, match="run: the run's folder is gone, deleted or moved to another disk"):
        trained_to(run, digits, resolved, 7, act)
    assert not run.exists()


def test_the_command_prints_where_the_run_is(digits: Path, preset: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    options = ["--preset", str(preset), "--steps", "3000", "--save-every", "20", "--on-checkpoint", "true"]
    line = [quick(), "-m", "elbocli", "train", str(digits), "-o", str(run), *options]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not store.checkpoints(run):
        time.sleep(0.01)
    run.rename(other)
    time.sleep(0.3)
    (other / "STOP").touch()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stdout == f"{other}\n" and f"was moved to {other}" in stderr
    assert not run.exists() and (other / "config.yaml").exists()
