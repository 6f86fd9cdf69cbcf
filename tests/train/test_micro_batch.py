"""What fits on a device is found by halving, by each process apart, and all take what the least of them can."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.errors import DataError
from elbocli.files.dataset import Dataset
from elbocli.run.settings import resolve
from elbocli.runtime.processes import World
from elbocli.train.state import TrainState, count_parts, micro_batch, split

SCRIPT = Path(__file__).with_name("short_of_memory.py")
FAILURES = {
    "fsdp": ["-,-", "forward:1:5,-", "backward:1:5,-", "forward:0:5,backward:3:5"],
    "ddp": ["forward:1:5,-", "backward:4:5,backward:1:5"],
}
"""By way of sharing, where memory runs out in each of two processes."""


@given(batch=st.integers(1, 5000), processes=st.integers(1, 64), most=st.integers(1, 5000))
def test_parts_are_as_few_as_can_be_or_of_one_size(batch: int, processes: int, most: int) -> None:
    share = math.ceil(batch / processes)
    parts, few = count_parts(batch, processes, most), math.ceil(share / most)
    even = [count for count in range(few, 2 * few) if share % count == 0 and batch % processes == 0]
    assert parts == (even[0] if even else few)
    assert math.ceil(share / parts) <= most
    assert parts == 1 or most < share


@pytest.mark.parametrize(
    ("batch", "processes", "most", "sizes"),
    [
        *((256, 1, 60, {32}), (2048, 8, 17, {16}), (60, 4, 4, {3}), (64, 4, 5, {4}), (64, 4, 16, {16})),
        *((17, 1, 16, {8, 9}), (14, 2, 3, {2, 3}), (29, 3, 4, {3, 4})),  # a prime, too small a divisor, uneven shares
    ],
)
def test_parts_are_of_one_size_where_that_costs_less_than_twice_as_many(
    batch: int, processes: int, most: int, sizes: set[int]
) -> None:
    parts = [split(World(rank, processes), batch, most) for rank in range(processes)]
    assert {len(part) for mine in parts for part in mine} == sizes
    assert len({len(mine) for mine in parts}) == 1
    assert [place for mine in parts for part in mine for place in part] == list(range(batch))


@pytest.fixture
def state(digits: Path, preset: Path) -> TrainState:
    return TrainState(resolve({"preset": str(preset)}, Dataset(digits)), Dataset(digits))


def searched(state: TrainState, most: int, error: Exception) -> tuple[int, list[int]]:
    """What the search finds where passes of more than `most` images raise an error; and what it tries."""
    tried: list[int] = []

    def enter(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        tried.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise error

    state.network.register_forward_pre_hook(enter)
    return micro_batch(state.spread, 50), tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"),
        RuntimeError("FIND was unable to find an engine"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_batches_are_halved_until_one_fits_and_nothing_is_left(error: Exception, state: TrainState) -> None:
    assert searched(state, 12, error) == (
        7,
        [50, 25, 13, 7, 7],
    )  # twice, with the gradients of the first pass beside it
    assert all(weight.grad is None for weight in state.network.parameters())


def test_other_errors_are_not_taken_for_it(state: TrainState) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        searched(state, 12, RuntimeError("a bug"))


def test_when_not_even_one_image_fits_it_is_said(state: TrainState) -> None:
    with pytest.raises(DataError, match="not even one image"):
        searched(state, 0, torch.OutOfMemoryError("x"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_out_of_memory_leaves_nothing_behind_in_any_process(parallel: str, digits: Path, preset: Path) -> None:
    """In forward or backward, in one process or both, in the same unit or others. The passes are real, the memory is not."""
    line = [sys.executable, SCRIPT, digits, preset, parallel, *FAILURES[parallel]]
    result = subprocess.run(line, capture_output=True, text=True, timeout=400, check=False)
    assert result.stdout.splitlines() == [f"{case} [0, 0]" for case in FAILURES[parallel]], result.stderr


def test_all_processes_say_so_when_one_has_no_room_for_an_image(digits: Path, preset: Path) -> None:
    line = [sys.executable, SCRIPT, digits, preset, "fsdp", "-,backward:2:0"]
    result = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    assert result.stdout == "-,backward:2:0 [1, 1]\n", result.stderr
    assert result.stderr.count("not even one image at a time fits") == 2
