"""Checkpoints and snapshots know the run that they are of; a run that is copied whole is the same run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import heard
from safetensors.torch import load_file

from elbocli.ema.command import make_average
from elbocli.errors import DataError, FormatError
from elbocli.files.checkpoint import latest, read_config
from elbocli.files.dataset import Dataset
from elbocli.info.describe import verify
from elbocli.run.open import open_run
from elbocli.run.settings import resolve
from elbocli.train import loop

Train = Callable[..., list[str]]


@pytest.fixture(scope="module")
def train(digits: Path, preset: Path) -> Train:
    """train(out, **options): 20 steps, with 4 checkpoints and 4 snapshots; what is said."""

    def run(out: Path, **options: Any) -> list[str]:
        data = Dataset(digits)
        many = {"steps": 20, "save_every": 5, "keep": 10, "snapshot_every": 5, **options}
        with heard() as lines:
            loop.run(data, out, resolve({"preset": str(preset), **many}, data))
        return lines

    return run


@pytest.fixture(scope="module")
def runs(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `mine` and `other`, which differ by their seed."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "mine")
    train(folder / "other", seed=1)
    return folder


@pytest.fixture
def mixed(runs: Path, tmp_path: Path) -> Path:
    """The run `mine`, whose newest checkpoint and last three snapshots are those of `other`."""
    mine = shutil.copytree(runs / "mine", tmp_path / "mine")
    for name in ("checkpoints/step-00000020", *(f"snapshots/step-000000{step}" for step in (10, 15, 20))):
        shutil.rmtree(mine / name)
        shutil.copytree(runs / "other" / name, mine / name)
    return mine


def test_a_checkpoint_of_another_run_is_named_and_passed_over(
    mixed: Path, train: Train, runs: Path, caplog: Any
) -> None:
    strange = mixed / "checkpoints" / "step-00000020"
    for read in (verify, lambda path: open_run(path, torch.device("cpu"))):
        with pytest.raises((FormatError, DataError), match="step-00000020: of another run than"):
            read(strange)
    with pytest.raises(FormatError, match="step-00000020: of another run than"):
        verify(mixed)
    found = latest(mixed)
    assert found is not None and found.step == 15 and "of another run" in caplog.messages[-1]
    assert any("going on after step 15" in said for said in train(mixed))
    for name in ("model", "ema-0.9"):
        again, whole = (
            load_file(run / "checkpoints/step-00000020" / f"{name}.safetensors") for run in (mixed, runs / "mine")
        )
        assert all(bool((again[key] == whole[key]).all()) for key in whole)


def test_snapshots_of_another_run_make_no_average(mixed: Path, tmp_path: Path) -> None:
    with heard() as said:
        make_average(mixed, 0.1, tmp_path / "a.safetensors")
    assert sum("of another run than" in message for message in said) == 3


def test_a_run_that_is_copied_moved_or_trained_on_is_the_same(train: Train, runs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(runs / "mine", tmp_path / "elsewhere" / "copy")
    assert latest(copy) is not None and verify(copy)["verified"]
    train(copy, steps=25)
    assert verify(copy)["step"] == 25
    assert read_config(copy).run_id == read_config(runs / "mine").run_id != read_config(runs / "other").run_id


def test_a_checkpoint_from_before_runs_had_identities_is_taken(mixed: Path) -> None:
    meta = mixed / "checkpoints" / "step-00000020" / "meta.json"
    content = json.loads(meta.read_text())
    del content["run_id"]
    meta.write_text(json.dumps(content))
    found = latest(mixed)
    assert found is not None and found.step == 20
