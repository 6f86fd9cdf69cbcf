"""Commands whose dataset is cut short or overwritten while they read it end with a sentence, and a run goes on later."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from elbocli.bound import estimate
from elbocli.bound.measure import MeasureSettings, open_measurement
from elbocli.core.metrics import asked
from elbocli.errors import DataError
from elbocli.evaluate import scoring
from elbocli.evaluate.settings import EvalSettings
from elbocli.files.dataset import Dataset
from elbocli.files.dataset_block import plain
from elbocli.files.dataset_writer import open_writer
from elbocli.run.settings import resolve
from elbocli.run.status import read_status
from elbocli.runtime.progress import Progress
from elbocli.train import loop

Reports = Callable[[Path], Iterator[Progress]]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Noise of 8 x 8, 2000 grey images: several pages of memory."""
    rows = np.random.default_rng(0).integers(0, 256, (2000, 8, 8, 1), np.uint8)
    with open_writer(tmp_path / "large.h5", plain((8, 8, 1)), len(rows), "noise") as writer:
        writer.append(rows, len(rows), {})
        writer.finish({"labels": np.arange(len(rows)) % 10}, {"class_names": [*"0123456789"]}, {"num_classes": 10})
    return tmp_path / "large.h5"


@pytest.fixture(params=["train", "bound", "eval"])
def reports(request: pytest.FixtureRequest, trained: Path, preset: Path, tmp_path: Path) -> Reports:
    """Messages of a command that reads the dataset of that name."""

    def train(data: Path) -> Iterator[Progress]:
        opened = Dataset(data)
        return loop.run(
            opened, tmp_path / "run", resolve({"preset": str(preset), "steps": 1000, "save_every": 2}, opened)
        )

    def bound(data: Path) -> Iterator[Progress]:
        settings = MeasureSettings(images=2000, draws=2, batch=8)
        return estimate.run(open_measurement(trained, data, settings, print))

    def evaluate(data: Path) -> Iterator[Progress]:
        settings = EvalSettings(metrics=asked(("fid",), 0), extractor="elbo-tiny", batch=8)
        return scoring.run([data], data, settings)

    found: Reports = {"train": train, "bound": bound, "eval": evaluate}[request.param]
    return found


def begun(reports: Iterator[Progress]) -> Iterator[Progress]:
    """The same, some batches later."""
    while (next(reports).done or 0) < 3:
        pass
    return reports


CHANGES: dict[str, Callable[[Path], None]] = {
    "cut short": lambda path: os.truncate(path, 8192),
    "overwritten": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_dataset_that_changes_ends_the_command_with_its_name(
    reports: Reports, change: str, large: Path, tmp_path: Path
) -> None:
    whole = shutil.copy(large, tmp_path / "whole.h5")
    under_way = begun(reports(large))
    CHANGES[change](large)
    with pytest.raises(DataError, match=r"large\.h5: has changed while it was read"):
        list(under_way)
    if (tmp_path / "run").exists():
        assert read_status(tmp_path / "run").state == "failed"
        shutil.copy(whole, large)
        assert any("going on after step" in report.message for report in [next(reports(large))])


def test_a_process_that_ends_by_a_fault_of_memory_says_where(tmp_path: Path, digits: Path, preset: Path) -> None:
    line = [sys.executable, "-m", "elbocli", "train", digits, "-o", tmp_path / "run", "--preset", preset]
    process = subprocess.Popen([*map(str, line), "--steps", "100000"], stderr=subprocess.PIPE)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGBUS)
    assert b"Bus error" in process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGBUS
