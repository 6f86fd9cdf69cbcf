"""The whole search for a micro-batch in two processes whose memory is pretended, and what two steps do after it.

python short_of_memory.py DATA.h5 PRESET ddp|fsdp CASE…: forks both processes for each case and prints its exit codes.
A CASE says by rank where memory runs out: forward:1:5,- is in the forward pass of rank 0's second unit above 5 images,
and nowhere in rank 1.
"""

from __future__ import annotations

import gc
import signal
import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before processes fork: FSDP imports it, which takes long
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import group

from elbocli.files.dataset import Dataset
from elbocli.nn.networks import Network
from elbocli.run.settings import resolve
from elbocli.runtime.processes import World, to_local
from elbocli.train.state import TrainState, micro_batch
from elbocli.train.step import step_losses

SHARE = 8
PATIENCE_S = 60


class OutInBackward(torch.autograd.Function):
    """The identity, until its gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("pretended")


@dataclass
class Pretended:
    """Beyond `most` images, unit number `unit` of any network finds no memory."""

    unit: int
    most: int
    backward: bool
    networks: list[weakref.ref[Network]] = field(default_factory=list)

    def watch(self) -> None:
        """From here on, all networks' units run out of memory when this says so."""
        whole = Network.through

        def through(network: Network, unit: nn.Module, *inputs: Any) -> Tensor:
            number = next(k for k, one in enumerate(network.units()) if one is unit)
            if number == 0:
                self.networks.append(weakref.ref(network))
            if number == self.unit and len(inputs[0]) > self.most:
                if not self.backward:
                    raise torch.OutOfMemoryError("pretended")
                inputs = (OutInBackward.apply(inputs[0]), *inputs[1:])
            return whole(network, unit, *inputs)

        Network.through = through  # type: ignore[method-assign, assignment]


def gradients(state: TrainState, step: int) -> list[Tensor]:
    """Of this process's pieces, after its only part of a step."""
    loss, _, _ = step_losses(
        state.spread.forward, state.batches, step, 0, state.weighting, state.schedule, state.prediction
    )
    loss.sum().backward()
    found = [to_local(weight.grad).clone() for weight in state.network.parameters()]
    state.optimizer.zero_grad()
    return found


def searched(world: World, data: Path, preset: Path, parallel: str, case: str) -> None:
    """Search, and see that the network is as good as one that was never searched with."""
    signal.alarm(PATIENCE_S)  # whoever waits for ever ends by it
    where, _, place = case.split(",")[world.rank].partition(":")
    unit, most = map(int, place.split(":")) if place else (-1, 0)
    memory = Pretended(unit, most, where == "backward")
    dataset = Dataset(data)
    resolved = resolve({"preset": str(preset), "parallel": parallel, "batch": 2 * SHARE}, dataset)
    state, clean = (TrainState(resolved, dataset, world) for _ in range(2))
    memory.watch()
    found = micro_batch(state.spread, SHARE)

    assert found == (4 if ":5" in case else SHARE), found
    if state.spread.sharded:
        assert memory.networks and not any(network() for network in memory.networks), "a stand-in is left"
    memory.unit = -1
    for step in range(2):
        mine, expected = gradients(state, step), gradients(clean, step)
        assert all(map(torch.equal, mine, expected)), f"gradients of step {step} differ"


if __name__ == "__main__":
    data, preset, parallel, *cases = sys.argv[1:]
    gc.freeze()  # what is there needs no look in each collection of each process
    for case in cases:
        work = lambda world, case=case: searched(world, Path(data), Path(preset), parallel, case)  # noqa: E731
        print(case, group.forked(2, work), flush=True)
