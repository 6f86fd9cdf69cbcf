"""What TensorBoard would show, read back by its own reader."""

import io
import itertools
import math
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from forks import quick
from PIL import Image
from tensorboard.summary.writer import event_file_writer

from elbocli.errors import DataError
from elbocli.files.grid import picture
from elbocli.train.tensorboard import TensorBoard


@pytest.fixture(autouse=True)
def _seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers take files by the second in their names, as starts of a run are seconds apart."""
    clock = itertools.count(int(time.time()) + 10)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(clock)))


def read(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0}).Reload()


def steps(run: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(run).Scalars(tag)]


def test_numbers_are_shown_under_their_steps(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    board.write(5, {"loss": 0.5, "lr": 1e-4, "images_per_s": 12, "note": "text", "bad": math.nan})
    board.write(10, {"loss": 0.25, "val_bpd": 3.5, "val_images": 60})
    board.close()
    found = read(tmp_path)
    tags = {"train/loss", "train/lr", "train/images_per_s", "val/bpd", "val/images"}
    assert set(found.Tags()["scalars"]) == tags
    assert steps(tmp_path) == [(5, 0.5), (10, 0.25)]
    assert steps(tmp_path, "val/bpd") == [(10, 3.5)]
    assert found.Scalars("train/lr")[0].value == pytest.approx(1e-4)


def test_what_was_shown_is_safe_without_close(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    board.write(1, {"loss": 1.0})
    assert steps(tmp_path) == [(1, 1.0)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_shown_as_it_is(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, channels), np.uint8)
    picture(pixels).save(tmp_path / "grid.png")
    TensorBoard(tmp_path, 0).picture(7, tmp_path / "grid.png")
    (event,) = read(tmp_path).Images("samples")
    sheet = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))[..., :channels]  # always in colour
    assert (event.step, event.width, event.height) == (7, 24, 16)
    assert np.array_equal(sheet, pixels)


def test_a_large_sheet_is_made_smaller(tmp_path: Path) -> None:
    Image.new("RGB", (1200, 1200)).save(tmp_path / "large.png")
    TensorBoard(tmp_path, 0).picture(1, tmp_path / "large.png")
    (event,) = read(tmp_path).Images("samples")
    assert (event.width, event.height) == (1024, 1024)


def test_a_run_that_goes_on_shows_no_step_twice(tmp_path: Path) -> None:
    """Killed after step 30 with a checkpoint of step 20, then once more, then from the start."""
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    first = TensorBoard(tmp_path, 0)
    for step in (10, 20, 30):
        first.write(step, {"loss": 1.0})
        first.picture(step, tmp_path / "dot.png")
    second = TensorBoard(tmp_path, 20)
    for step in (30, 40):
        second.write(step, {"loss": 2.0})
    assert steps(tmp_path) == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    assert [event.step for event in read(tmp_path).Images("samples")] == [10, 20]
    third = TensorBoard(tmp_path, 20)
    third.write(30, {"loss": 3.0})
    assert steps(tmp_path) == [(10, 1.0), (20, 1.0), (30, 3.0)]
    anew = TensorBoard(tmp_path, 0)
    anew.write(10, {"loss": 4.0})
    assert steps(tmp_path) == [(10, 4.0)]


def test_without_room_events_are_left_out_until_there_is_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board, usage = TensorBoard(tmp_path, 0), shutil.disk_usage
    board.write(1, {"loss": 1.0})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(DataError, match="no space left; events are left out meanwhile"):
        board.write(2, {"loss": 2.0})
    monkeypatch.undo()
    board.write(3, {"loss": 3.0})
    assert steps(tmp_path) == [(1, 1.0), (3, 3.0)]


FAILS = """
import resource, sys
from pathlib import Path
from elbocli.errors import DataError
from elbocli.train.tensorboard import TensorBoard
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
board = TensorBoard(Path(sys.argv[1]), 0)
def trouble(step):
    try:
        return board.write(step, {"loss": 1.0 / step, "lr": 1.0}) or ""
    except DataError as error:
        return str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, limit[1]))  # in the middle of an event
troubles = [trouble(step) for step in range(1, 21)]
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
assert troubles[0] == "" and trouble(21) == troubles[-1]
board.close()
print(*{trouble for trouble in troubles if trouble})
"""


def test_a_writer_that_fails_ends_no_training_and_hides_nothing_of_the_next_start(tmp_path: Path) -> None:
    result = subprocess.run([quick(), "-c", FAILS, tmp_path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("could not write: ") == 1 and "no more events until the run goes on" in result.stdout
    TensorBoard(tmp_path, 21).write(22, {"loss": 0.0})
    shown = [step for step, _ in steps(tmp_path)]
    assert shown[0] == 1 and shown[-1] == 22
