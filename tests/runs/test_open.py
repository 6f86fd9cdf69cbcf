"""A run finds its dataset from any folder, also after both have moved, and knows its own checkpoints and snapshots."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from harness import heard
from msgspec import structs
from safetensors.torch import load_file

from elbocli.commands.ema import make_average
from elbocli.errors import DataError, FormatError
from elbocli.files.checkpoint import RunData, latest
from elbocli.files.dataset import Dataset
from elbocli.report.describe import verify
from elbocli.runs.config import read_config
from elbocli.runs.open import dataset_of, open_run
from elbocli.runs.settings import resolve
from elbocli.training import loop

RUN = Path("runs/a")
DATA = Path("data/d.h5")


@pytest.fixture
def home(tmp_path, digits, monkeypatch):
    """The current folder, with data/d.h5 and a run, runs/a."""
    home = tmp_path / "home"
    (home / RUN).mkdir(parents=True)
    (home / "data").mkdir()
    shutil.copy(digits, home / DATA)
    monkeypatch.chdir(home)
    return home


def trained_on(typed):
    """Section `data` of the run, trained from the current folder."""
    digest = Dataset(DATA).attributes.payload_sha256
    return RunData(path=str(typed), payload_sha256=digest, from_run=os.path.relpath(DATA, RUN))


def test_a_dataset_is_found_as_typed_else_from_the_run_and_not_by_its_name_alone(home):
    assert dataset_of(trained_on(DATA), RUN) == DATA
    assert dataset_of(trained_on(home / DATA), RUN) == home / DATA
    Path("d.h5").write_text("another")
    assert dataset_of(trained_on("d.h5"), RUN) == DATA
    assert dataset_of(structs.replace(trained_on("../d.h5"), from_run=None), RUN) == Path("../d.h5")


@pytest.mark.parametrize("elsewhere", ["runs", "runs/a", "data", ".."])
def test_from_another_folder_a_dataset_is_found_from_the_run(elsewhere, home, monkeypatch):
    data = trained_on(DATA)
    monkeypatch.chdir(home / elsewhere)
    found = dataset_of(data, home / RUN)
    assert found.samefile(home / DATA) and not found.is_absolute()


def test_a_dataset_is_found_after_all_has_moved_and_through_links(home):
    data = trained_on(home / DATA)
    moved = home.rename(home.with_name("moved"))
    link = moved.with_name("link")
    link.symlink_to(moved / RUN)
    for run in (moved / RUN, link):
        assert dataset_of(data, run).samefile(moved / DATA)


# Identity


@pytest.fixture(scope="module")
def train(digits, preset):
    """train(out, **options): 20 steps, with 4 checkpoints and 4 snapshots; what is said."""

    def run(out, **options):
        data = Dataset(digits)
        many = {
            "steps": 20,
            "save_every": 5,
            "keep_last": 10,
            "snapshot_every": 5,
            "preview_every": 0,
            "warmup_steps": 3,
            "log_every": 5,
            **options,
        }
        with heard() as lines:
            loop.run(data, out, resolve({"preset": str(preset), **many}, data))
        return lines

    return run


@pytest.fixture(scope="module")
def runs(train, tmp_path_factory):
    """A folder with the runs `mine` and `other`, which differ by their seed."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "mine")
    train(folder / "other", seed=1)
    return folder


@pytest.fixture
def mixed(runs, tmp_path):
    """The run `mine`, whose newest checkpoint and last three snapshots are those of `other`."""
    mine = shutil.copytree(runs / "mine", tmp_path / "mine")
    for name in ("checkpoints/step-00000020", *(f"snapshots/step-000000{step}" for step in (10, 15, 20))):
        shutil.rmtree(mine / name)
        shutil.copytree(runs / "other" / name, mine / name)
    return mine


def test_a_checkpoint_of_another_run_is_named_and_passed_over(mixed, train, runs, caplog):
    newest = "checkpoints/step-00000020"
    with pytest.raises((FormatError, DataError), match=r"step-00000020: .*of another run"):
        open_run(mixed / newest, torch.device("cpu"))
    with pytest.raises(FormatError, match=r"step-00000020: .*of another run"):
        verify(mixed)
    assert latest(mixed).step == 15 and "of another run" in caplog.messages[-1]
    assert any("after step 15" in said for said in train(mixed))
    for name in ("model", "ema-0.9"):
        again, whole = (load_file(run / newest / f"{name}.safetensors") for run in (mixed, runs / "mine"))
        assert all(torch.equal(again[key], whole[key]) for key in whole)


def test_snapshots_of_another_run_make_no_average(mixed, tmp_path):
    with heard() as said:
        make_average(mixed, 0.1, tmp_path / "a.safetensors")
    assert sum("of another run" in message for message in said) == 3


def test_a_run_that_is_copied_moved_or_trained_on_is_the_same(train, runs, tmp_path):
    copy = shutil.copytree(runs / "mine", tmp_path / "elsewhere" / "copy")
    assert verify(copy).verified
    train(copy, steps=25)
    assert verify(copy).facts["step"] == 25
    assert read_config(copy).run_id == read_config(runs / "mine").run_id != read_config(runs / "other").run_id


def test_a_checkpoint_from_before_runs_had_identities_is_taken(mixed):
    meta = mixed / "checkpoints" / "step-00000020" / "meta.json"
    content = json.loads(meta.read_text())
    del content["run_id"]
    meta.write_text(json.dumps(content))
    assert latest(mixed).step == 20


@pytest.mark.parametrize(("own", "on_cuda"), [("bf16", "bf16"), ("tf32", "tf32"), ("auto", "fp32")])
def test_precision_auto_is_the_runs_own_on_cuda_and_fp32_on_a_cpu(own, on_cuda, runs):
    run = open_run(runs / "mine", torch.device("cpu"))
    run = dataclasses.replace(run, settings=dataclasses.replace(run.settings, precision=own))
    found = [run.precision(asked, torch.device(device)).name for device in ("cuda", "cpu") for asked in ("auto", "fp16")]
    assert found == [on_cuda, "fp16", "fp32", "fp16"]
