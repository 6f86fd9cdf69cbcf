"""A run finds its dataset from any folder, also after both have moved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from elbocli.files.checkpoint import RunData
from elbocli.files.dataset import Dataset
from elbocli.run.open import dataset_of


def of(dataset: Path, typed: str, run: Path) -> RunData:
    """Section `data` of a run that was trained from the current folder."""
    digest = Dataset(dataset).attributes.payload_sha256
    return RunData(path=typed, payload_sha256=digest, from_run=os.path.relpath(dataset, run))


@pytest.fixture
def home(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data/d.h5 and a run, runs/a; one is in it."""
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / "runs/a").mkdir(parents=True)
    shutil.copy(digits, home / "data/d.h5")
    monkeypatch.chdir(home)
    return home


def test_it_is_found_from_the_run(home: Path) -> None:
    data = of(Path("data/d.h5"), "data/d.h5", Path("runs/a"))
    assert data.from_run == "../../data/d.h5"
    assert dataset_of(data, Path("runs/a")) == Path("data/d.h5")
    absolute = of(home / "data/d.h5", str(home / "data/d.h5"), Path("runs/a"))
    assert dataset_of(absolute, Path("runs/a")).samefile(home / "data/d.h5")


@pytest.mark.parametrize("elsewhere", ["runs", "runs/a", "data", ".."])
def test_from_another_folder_it_is_found_from_the_run(
    elsewhere: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = of(Path("data/d.h5"), "data/d.h5", Path("runs/a"))
    monkeypatch.chdir(home / elsewhere)
    for run in (home / "runs/a", Path(os.path.relpath(home / "runs/a"))):
        found = dataset_of(data, run)
        assert found.samefile(home / "data/d.h5") and not found.is_absolute()


def test_it_is_found_after_all_has_moved_and_through_links(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = of(home / "data/d.h5", str(home / "data/d.h5"), Path("runs/a"))
    moved = home.rename(home.with_name("moved"))
    monkeypatch.chdir(moved.parent)
    assert dataset_of(data, moved / "runs/a").samefile(moved / "data/d.h5")
    (moved.parent / "link").symlink_to(moved / "runs/a")
    assert dataset_of(data, Path("link")).samefile(moved / "data/d.h5")


def test_another_file_of_that_name_is_not_taken_for_it(home: Path) -> None:
    data = of(Path("data/d.h5"), "d.h5", Path("runs/a"))
    Path("d.h5").write_text("another")
    assert dataset_of(data, Path("runs/a")) == Path("data/d.h5")


def test_a_lost_dataset_is_named_as_typed(home: Path) -> None:
    data = replace(of(Path("data/d.h5"), "../data/d.h5", Path("runs/a")), from_run=None)
    assert dataset_of(data, Path("runs/a")) == Path("../data/d.h5")
