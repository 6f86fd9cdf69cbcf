"""What fits on a device is found by trying stand-ins, by each process apart, and all take what the least of them can."""

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forks import quick
from hypothesis import given
from hypothesis import strategies as st

from elbocli.errors import DataError
from elbocli.files.dataset import Dataset
from elbocli.run.settings import resolve
from elbocli.runtime.processes import ALONE, World
from elbocli.train import micro_batch
from elbocli.train.replicated import empty_copy
from elbocli.train.state import TrainState

FP32 = torch.autocast("cpu", enabled=False)
SCRIPT = Path(__file__).with_name("short_of_memory.py")
FAILURES = {
    "fsdp": [
        *("-,-", "forward:1:5,-", "backward:1:5,-", "forward:1:5,forward:1:5"),
        *("backward:1:5,backward:4:5", "forward:0:5,backward:3:5"),
    ],
    "ddp": ["forward:1:5,-", "backward:4:5,backward:1:5"],
}
"""By way of sharing, where memory runs out in each of two processes."""


# --- parts ---


@given(batch=st.integers(1, 5000), processes=st.integers(1, 64), most=st.integers(1, 5000))
def test_parts_are_as_few_as_can_be_or_of_one_size(batch: int, processes: int, most: int) -> None:
    share = math.ceil(batch / processes)
    parts, few = micro_batch.count_parts(batch, processes, most), math.ceil(share / most)
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
    parts = [micro_batch.split(World(rank, processes), batch, most) for rank in range(processes)]
    assert {len(part) for mine in parts for part in mine} == sizes
    assert len({len(mine) for mine in parts}) == 1
    assert [place for mine in parts for part in mine for place in part] == list(range(batch))


# --- the search ---


def device(fixed: int, each: int, room: int, tried: list[int]) -> Callable[[int], float]:
    """A step of n images takes fixed + each · n bytes of `room`."""

    def used(count: int) -> float:
        tried.append(count)
        taken = fixed + each * count
        return taken if taken <= room else math.inf

    return used


@pytest.mark.parametrize(
    "fixed, each, share, fits",
    [(100, 10, 64, 64), (100, 10, 200, 82), (100, 500, 64, 1), (0, 920, 64, 1), (995, 0, 8, 8), (900, 200, 64, 0)],
)
def test_the_most_that_fit_are_found(fixed: int, each: int, share: int, fits: int) -> None:
    tried: list[int] = []
    assert micro_batch.largest(device(fixed, each, 1000, tried), share, 1000) == fits
    assert len(tried) <= 3


def test_what_the_optimizer_will_need_is_not_there_for_a_step() -> None:
    """Its moments come with the first update: memory that is free while trying, and must stay so."""
    bent = lambda count: 100 + 10 * count + (count > 2) * 300  # noqa: E731
    found = micro_batch.largest(bent, 64, 500)
    assert found > 1 and bent(found) <= 500
    assert micro_batch.largest(device(600, 100, 1000, []), 64, 500) == 0


class Allocator:
    """A Gauge in which passes of n images take 10 + 50 · n bytes; 300 more come with the first and stay, and 2000 with
    the first of each n, where kernels are chosen by trying them. words: what a pass of more than 10 images ends with.
    """

    def __init__(self, room: int, words: str = ""):
        self.room, self.words, self.tried = room, words, list[int]()
        self.workspace = self.top = 0

    def free(self) -> int:
        return self.room - self.workspace

    def reset(self) -> int:
        self.top = self.workspace
        return self.workspace

    def peak(self) -> int:
        return self.top

    def run(self, count: int) -> None:
        """See a pass of n images."""
        if self.words and count > 10:
            raise RuntimeError(self.words)
        self.workspace = 300
        self.top = max(self.top, self.workspace + 10 + 50 * count + (count not in self.tried) * 2000)
        self.tried.append(count)


def searched(state: TrainState, gauge: Allocator, share: int = 64) -> int:
    """What the search finds where passes take what `gauge` says."""
    state.network.register_forward_pre_hook(lambda _, inputs: gauge.run(len(inputs[0])))
    gauge.room += 2 * sum(weight.nbytes for weight in state.network.parameters())  # for the moments
    return micro_batch.micro_batch(state.spread, state.resolved.network, ALONE, share, FP32, gauge)


@pytest.fixture
def state(digits: Path, preset: Path) -> TrainState:
    return TrainState(resolve({"preset": str(preset)}, Dataset(digits)), Dataset(digits))


def test_workspaces_are_counted_once_and_trials_of_kernels_not_at_all(state: TrainState) -> None:
    """Room for 700 bytes beside the workspace: 12 images take 610, within the margin; 13 take 660 and are not."""
    gauge = Allocator(1000)
    assert searched(state, gauge) == 12
    assert gauge.tried == [1, 1, 1, 1, 2, 2, 12, 12]
    assert all(weight.grad is None for weight in state.network.parameters())


@pytest.mark.parametrize(
    "words",
    [
        "FIND was unable to find an engine to execute this computation",
        pytest.param("CUBLAS_STATUS_ALLOC_FAILED when calling", marks=pytest.mark.slow),
    ],
)
def test_libraries_say_out_of_memory_in_their_own_words(words: str, state: TrainState) -> None:
    gauge = Allocator(1000, words)
    assert searched(state, gauge) == 9  # three quarters of 12
    assert gauge.tried[-2:] == [9, 9]


def test_other_errors_are_not_taken_for_it(state: TrainState) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        searched(state, Allocator(1000, "a bug"))


def test_when_not_even_one_image_fits_it_is_said(state: TrainState) -> None:
    with pytest.raises(DataError, match="not even one image"):
        searched(state, Allocator(350))


def test_a_run_searches_unless_it_is_told(digits: Path, preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elbocli.train.state.gauge_of", lambda device: Allocator(0))
    told, automatic = (resolve({"preset": str(preset), "micro_batch": most}, Dataset(digits)) for most in (4, 0))
    assert [len(part) for part in TrainState(told, Dataset(digits)).batches.parts] == [4] * 4
    with pytest.raises(DataError, match="not even one image"):
        TrainState(automatic, Dataset(digits))


def test_a_cuda_device_is_asked_for_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    numbers = {"memory_reserved": 70, "memory_allocated": 50, "max_memory_allocated": 60, "mem_get_info": (100, 200)}
    for name, number in (numbers | {"reset_peak_memory_stats": None, "synchronize": None}).items():
        monkeypatch.setattr(torch.cuda, name, lambda device, number=number: (asked.append(device), number)[1])
    gauge = micro_batch.gauge_of(torch.device("cuda", 1))
    assert gauge is not None
    assert (gauge.free(), gauge.reset(), gauge.peak()) == (120, 50, 60)
    assert set(asked) == {torch.device("cuda", 1)} and len(asked) == 7


def test_without_a_gauge_the_whole_share_is_taken(state: TrainState) -> None:
    assert micro_batch.gauge_of(state.device) is None
    assert micro_batch.micro_batch(state.spread, state.resolved.network, ALONE, 64, FP32, None) == 64


def test_gradients_of_a_part_lie_beside_the_next(state: TrainState) -> None:
    there: list[int] = []
    counted = lambda network, _: there.append(sum(p.grad is not None for p in network.parameters()))  # noqa: E731
    state.network.register_forward_pre_hook(counted)
    searched(state, Allocator(10**6), share=1)
    assert there == [0, len(list(state.network.parameters()))] * 3


# --- stand-ins ---


def test_a_stand_in_shares_no_memory_with_the_network_and_has_its_buffers(state: TrainState) -> None:
    network = state.network
    network.register_buffer("table", torch.arange(5), persistent=False)
    network.recompute = True
    other = empty_copy(network, state.device)
    for mine, its in zip(network.parameters(), other.parameters(), strict=True):
        assert (mine.shape, mine.stride(), mine.dtype, mine.requires_grad) == (
            *(its.shape, its.stride(), its.dtype, its.requires_grad),
        )
        assert mine.data_ptr() != its.data_ptr()
    assert torch.equal(network.table, other.table) and network.table.data_ptr() != other.table.data_ptr()
    assert other.recompute and other.training and other.config == network.config
    assert all(parameter.is_meta for parameter in empty_copy(network, torch.device("meta")).parameters())


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_out_of_memory_leaves_nothing_behind_in_any_process(parallel: str, digits: Path, preset: Path) -> None:
    """In forward or backward, in one process or both, in the same unit or others. The passes are real, the memory is not."""
    line = [quick(), SCRIPT, digits, preset, parallel, *FAILURES[parallel]]
    result = subprocess.run(line, capture_output=True, text=True, timeout=400, check=False)
    assert result.stdout.splitlines() == [f"{case} [0, 0]" for case in FAILURES[parallel]], result.stderr


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_processes_say_so_when_one_has_no_room_for_an_image(parallel: str, digits: Path, preset: Path) -> None:
    line = [quick(), SCRIPT, digits, preset, parallel, "-,backward:2:0"]
    result = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    assert result.stdout == "-,backward:2:0 [1, 1]\n", result.stderr
    assert result.stderr.count("not even one image at a time fits") == 2
