"""Checkpoints and snapshots that a run deletes while others read them: newer ones are found, and what is held stays readable."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from elbocli.errors import DataError, FormatError, Vanished
from elbocli.files import checkpoint as store
from elbocli.files import reading, sealed_folder, snapshots
from elbocli.info import verify


class Run:
    """A run of checkpoints that hold the number of their step, of which the newest alone is kept."""

    def __init__(self, path: Path):
        self.path, self.step = path, 0
        self.path.mkdir()
        self.rotate()

    def rotate(self) -> None:
        self.step += 1
        numbers = {"x": torch.full((2000,), float(self.step))}
        store.save(self.path, self.step, {"model": numbers}, {"y": numbers}, {"images": 1, "log_bytes": {}})
        store.drop(self.path, lambda steps: {max(steps)})

    def check(self, found: store.Checkpoint | None) -> None:
        assert found is not None
        for held in (found.weights("model"), found.state()["y"]):
            assert held["x"].tolist() == [found.step] * 2000


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def unwarned(text: str) -> None:
    pytest.fail(text)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], list[int]]:
    """meanwhile(k, do): call `do` before the k-th file is opened. Returns a list that grows by each file."""

    def set_up(k: int, do: Callable[[], Any]) -> list[int]:
        opened: list[int] = []
        for module in (sealed_folder, reading):
            usual = module.open_file  # type: ignore[attr-defined]

            def opening(path: Path, usual: Callable[..., Any] = usual) -> Any:
                opened.append(len(opened))
                if len(opened) - 1 == k:
                    do()
                return usual(path)

            monkeypatch.setattr(module, "open_file", opening)
        return opened

    return set_up


@pytest.mark.parametrize("k", range(3))
def test_the_newest_is_found_whenever_it_is_replaced(k: int, run: Run, meanwhile: Any) -> None:
    opened = meanwhile(k, run.rotate)
    run.check(store.latest(run.path, unwarned))
    assert len(opened) > k


def test_what_is_held_is_read_when_it_is_gone_and_closed_with_its_owner(run: Run) -> None:
    before = len(os.listdir("/dev/fd"))
    found = store.latest(run.path, unwarned)
    assert found is not None and len(os.listdir("/dev/fd")) == before + 2
    run.rotate()
    assert not found.path.exists()
    run.check(found)
    again = pickle.loads(pickle.dumps(found))
    assert again == found and not again.held
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        again.weights("model")
    del found
    assert len(os.listdir("/dev/fd")) == before


def test_what_was_read_stays_when_the_files_are_cut_short(run: Run) -> None:
    found = store.latest(run.path, unwarned)
    assert found is not None
    held = found.weights("model")["x"], found.state()["y"]["x"]
    for file in found.path.iterdir():
        os.truncate(file, 0)
    assert all(bool((each == 1).all()) for each in held)
    for read in (lambda: found.weights("model"), found.state):
        with pytest.raises(FormatError, match=r"step-00000001/(model|state)"):
            read()


def test_one_that_a_user_names_and_that_goes_is_called_gone(run: Run, meanwhile: Any) -> None:
    path = run.path / store.FOLDER / "step-00000001"
    meanwhile(1, run.rotate)
    with pytest.raises(Vanished, match="step-00000001: is gone"):
        store.read_checkpoint(path)


def test_a_file_that_is_missing_from_a_folder_that_stays_is_damage(run: Run) -> None:
    (run.path / store.FOLDER / "step-00000001" / "state.pt").unlink()
    with pytest.raises(FormatError, match="every checkpoint is damaged"):
        store.latest(run.path, unwarned)


def test_a_run_that_deletes_without_end_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path) -> Any:
        raise Vanished(str(path))

    monkeypatch.setattr(store, "read_checkpoint", gone)
    with pytest.raises(DataError, match="deleted faster than they could be read"):
        store.latest(run.path, unwarned)


@pytest.mark.parametrize("k", range(4))
def test_verify_looks_again(k: int, run: Run, meanwhile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_network_files", lambda path: 0)
    meanwhile(k, run.rotate)
    reports = verify._folder(run.path)
    with pytest.raises(StopIteration) as end:
        while True:
            next(reports)
    assert end.value.value == {"verified": ["sha256 of 2 files in 1 checkpoints"]}


def test_a_snapshot_that_goes_is_left_out_and_is_gone_later(tmp_path: Path, meanwhile: Any) -> None:
    for step in (1, 2):
        snapshots.write(tmp_path, step, {"ema-power-0.1": {"x": torch.ones(3)}}, {"images": 1})
    both = snapshots.whole(tmp_path, unwarned)
    file = both[1].tensors("ema-power-0.1")
    meanwhile(3, lambda: snapshots.drop_after(tmp_path, 1))
    assert [each.step for each in snapshots.whole(tmp_path, unwarned)] == [1]
    with pytest.raises(FormatError):
        both[1].layout("ema-power-0.1")
    assert file.read("x").tolist() == [1, 1, 1]


def test_reads_beside_a_thread_that_rotates(run: Run) -> None:
    ending = threading.Event()

    def write() -> None:
        while not ending.is_set():
            run.rotate()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        reads = 0
        while reads < 50 or run.step < 20:
            run.check(store.latest(run.path, unwarned))
            reads += 1
    finally:
        ending.set()
        writer.join()
