"""A network in training over the processes of a World: replicated (DDP) or sharded (FSDP2).

What is kept and updated here are *pieces*: of every parameter the whole, or this process's part of it along the first
dimension. Optimizer and averages see pieces alone, and checkpoints hold whole tensors, so that neither knows which
it was, and a run may go on under the other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elbocli.nn.networks import Network, place
from elbocli.runtime.processes import World

if TYPE_CHECKING:
    from elbocli.train.sharded import Sharded


def empty_copy(network: Network, device: torch.device) -> Network:
    """Return a copy of a network whose weights are on a device and have no values."""
    # Only what deepcopy finds here is not copied. Buffers must be: made-up indices can end a CUDA device's work for good.
    weights = {id(p): nn.Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in network.parameters()}
    return deepcopy(network, weights)


class Replica:
    """The whole network in this process: alone, or beside others that average their gradients."""

    sharded = False

    def __init__(self, network: Network, world: World, compile: bool):
        self.network, self.world = place(network, world.device), world
        self.names = [name for name, _ in network.named_parameters()]
        self.pieces: list[nn.Parameter] = list(network.parameters())
        forward: nn.Module = torch.compile(network) if compile else network  # type: ignore[assignment]
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            forward = DistributedDataParallel(forward, devices, gradient_as_bucket_view=True)
        self.forward = forward

    def stand_ins(self) -> Callable[[], nn.Module]:
        """Return a maker of networks that take as much memory as this one while they work, and need no other process.

        Every process must ask. What they compute means nothing.
        """
        return lambda: empty_copy(self.network, self.world.device)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a part of a batch: gradients are averaged over processes with the last."""
        several = isinstance(self.forward, DistributedDataParallel)
        return self.forward.no_sync() if several and not last else nullcontext()  # type: ignore[operator]

    def gradients(self) -> list[Tensor]:
        """Return the pieces' gradients, after the last part of a batch."""
        return [piece.grad for piece in self.pieces if piece.grad is not None]

    def clear(self) -> None:
        """Forget the gradients."""
        for piece in self.pieces:
            piece.grad = None

    def changed(self) -> None:
        """The pieces' values were changed by other hands than the optimizer's."""

    def whole(self, index: int, piece: Tensor) -> Tensor | None:
        """The whole tensor that is shaped like parameter `index`, in the first process; it may be None in others."""
        return piece

    def part(self, index: int, whole: Tensor) -> Tensor:
        """This process's piece of it."""
        return whole


def distribute(network: Network, world: World, parallel: str, compile: bool, precision: str) -> Replica | Sharded:
    """A network on the CPU, over the processes there are. parallel: `ddp` or `fsdp`, the same thing for one process."""
    if parallel == "fsdp" and world.size > 1:
        from elbocli.train.sharded import Sharded

        return Sharded(network, world, compile, precision)
    return Replica(network, world, compile)
