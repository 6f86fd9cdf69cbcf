"""Checkpoints and snapshots that can't be written: which of them end training, and which don't."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elbocli.errors import DataError
from elbocli.files import checkpoint as snapshots
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.run.settings import resolve
from elbocli.train import loop
from elbocli.train.saver import MOST_FAILURES, Saver


@pytest.fixture
def saver() -> Iterator[Saver]:
    made = Saver()
    yield made
    made.close()


def full() -> None:
    raise DataError("disk full")


def test_snapshots_that_fail_never_end_training_and_each_is_told(saver: Saver) -> None:
    for _ in range(MOST_FAILURES + 2):
        saver.start(full, vital=False)
        saver.finish()
    saver.settle()
    assert saver.failures == 0
    assert saver.warnings == ["disk full; training goes on without this snapshot"] * (MOST_FAILURES + 2)


def test_snapshots_that_succeed_hide_no_checkpoint_that_fails(saver: Saver) -> None:
    for _ in range(MOST_FAILURES - 1):
        saver.start(full)
        saver.start(lambda: None, vital=False)
        saver.finish()
    assert saver.failures == MOST_FAILURES - 1
    with pytest.raises(DataError, match=r"disk full$"):
        saver.settle()
    saver.start(full)
    with pytest.raises(DataError, match="3 times in a row"):
        saver.finish()


def test_a_checkpoint_that_succeeds_begins_anew(saver: Saver) -> None:
    saver.start(full)
    saver.start(lambda: None)
    saver.settle()
    assert saver.failures == 0


def test_a_run_without_room_for_snapshots_is_trained_to_its_end(
    digits: Path, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any, **__: Any) -> Path:
        raise DataError("snapshot: could not write: No space left on device")

    monkeypatch.setattr(snapshots, "save", write)
    options = {"steps": 10, "snapshot_every": 2, "save_every": 5}
    reports = loop.run(Dataset(digits), tmp_path / "run", resolve({"preset": str(preset), **options}, Dataset(digits)))
    warnings = [report.message for report in reports if report.level == "warning"]
    assert len(warnings) == 5 and all("training goes on without this snapshot" in text for text in warnings)
    assert [path.name for path in store.checkpoints(tmp_path / "run")] == ["step-00000005", "step-00000010"]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
