"""A network in training over the processes of a World: replicated (DDP) or sharded (FSDP2).

Sharded parameters are DTensors. Checkpoints hold whole tensors, so a run may continue with the other of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from elbocli.nn.networks import Network, count_parameters, place
from elbocli.runtime.processes import World

if TYPE_CHECKING:
    from elbocli.train.sharded import Sharded


SMALL = 100_000_000
"""Parameters up to which a step on a large card is shorter than launching its kernels one by one, roughly."""


def empty_copy(network: Network, device: torch.device) -> Network:
    """Return a copy of a network whose weights are on a device and have no values."""
    # Only what deepcopy finds here is not copied. Buffers must be: made-up indices can end a CUDA device's work for good.
    weights = {id(p): nn.Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in network.parameters()}
    return deepcopy(network, weights)


class Replica:
    """The whole network in this process: alone, or beside others that average their gradients."""

    sharded = False

    def __init__(self, network: Network, world: World):
        self.network, self.world = place(network, world.device), world
        self.forward: nn.Module = network
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.forward = DistributedDataParallel(network, devices, gradient_as_bucket_view=True)

    def compile(self, parts: int) -> str:
        """Compile the network, for batches in so many parts. Returns what was done, in words.

        Small networks on CUDA wait for kernels to be launched, so theirs are replayed as CUDA graphs. Gradients then lie
        where the next pass writes: nothing may be added to them, exchanged, or computed again in between.
        """
        alone = self.world.size == 1 and parts == 1 and not self.network.recompute
        if self.world.device.type == "cuda" and alone and count_parameters(self.network) <= SMALL:
            self.network.compile(dynamic=False, mode="reduce-overhead")
            return "compiled to CUDA graphs"
        self.network.compile(dynamic=False)
        return "compiled"

    def to_try(self) -> nn.Module:
        """Return a compiled network that needs no other process for a pass without exchange, to find out if it works."""
        return self.forward

    def stand_ins(self) -> Callable[[], nn.Module]:
        """Return a maker of networks that take as much memory as this one while they work, and need no other process.

        Every process must ask. Their results are meaningless.
        """
        return lambda: empty_copy(self.network, self.world.device)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a part of a batch: gradients are averaged over processes with the last."""
        several = isinstance(self.forward, DistributedDataParallel)
        return self.forward.no_sync() if several and not last else nullcontext()  # type: ignore[operator]

    def changed(self) -> None:
        """Call this when something other than the optimizer has changed the parameters."""


def distribute(network: Network, world: World, parallel: str, precision: str) -> Replica | Sharded:
    """A network on the CPU, over the processes there are. parallel: `ddp` or `fsdp`, the same thing for one process."""
    if parallel == "fsdp" and world.size > 1:
        from elbocli.train.sharded import Sharded

        return Sharded(network, world, precision)
    return Replica(network, world)
