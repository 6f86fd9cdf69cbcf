"""What fits on a device is found by trying, by all processes together."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elbocli.errors import DataError
from elbocli.files.dataset import Dataset
from elbocli.run.settings import resolve
from elbocli.runtime.device import Precision
from elbocli.runtime.processes import ALONE
from elbocli.train import micro_batch
from elbocli.train.state import TrainState

GROUP = Path(__file__).parents[1]


def device(fixed: int, each: int, room: int, tried: list[int]):
    """A step of n images takes fixed + each · n bytes of `room`."""

    def used(count: int) -> int:
        tried.append(count)
        if fixed + each * count > room:
            raise torch.OutOfMemoryError
        return fixed + each * count

    return used


@pytest.mark.parametrize(
    "fixed, each, share, fits",
    [(100, 10, 64, 64), (100, 10, 200, 82), (100, 500, 64, 1), (0, 920, 64, 1), (995, 0, 8, 8)],
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
    with pytest.raises(DataError, match="not even one image"):
        micro_batch.largest(device(600, 100, 1000, []), 64, 500)


def test_when_not_even_one_image_fits_it_is_said() -> None:
    with pytest.raises(DataError, match="not even one image"):
        micro_batch.largest(device(900, 200, 1000, []), 64, 1000)


def test_gradients_of_a_part_lie_beside_the_next(digits: Path, preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve({"preset": str(preset)}, Dataset(digits))
    state = TrainState(resolved, Dataset(digits))
    there: list[int] = []
    state.network.register_forward_pre_hook(lambda *_: there.append(len(state.spread.gradients())))
    micro_batch.passes(state.spread, resolved.network, ALONE, 2, Precision("fp32", state.device).autocast())
    assert there == [0, len(state.spread.pieces)]
    assert not state.spread.gradients()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_try_the_same_when_one_has_less_memory(parallel: str, digits: Path, preset: Path) -> None:
    """The passes are real; the memory is not. The second process runs out of it where the first doesn't."""
    code = f"""
import sys
sys.path.insert(0, {str(GROUP)!r})
import group, torch
from pathlib import Path
from elbocli.files.dataset import Dataset
from elbocli.train import micro_batch as fit
from elbocli.runtime.device import Precision
from elbocli.run.settings import resolve
from elbocli.train.state import TrainState
from elbocli.train.step import update
def work(world):
    dataset = Dataset(Path({str(digits)!r}))
    resolved = resolve({{"preset": {str(preset)!r}, "parallel": {parallel!r}}}, dataset)
    state = TrainState(resolved, dataset, world)
    def used(count):
        fit.passes(state.spread, resolved.network, world, count, Precision("fp32", world.device).autocast())
        if world.rank == 1 and count > 5:
            raise torch.OutOfMemoryError
        return 10 * count
    assert fit.largest(fit.agreed(used, world), 8, 100) == 4
    update(state)
    assert world.all(state.interval()[1])[0] > 0
print(group.forked(2, work))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert result.stdout == "[0, 0]\n", result.stderr
