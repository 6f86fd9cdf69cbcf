"""A network in training over the processes of a World: replicated (DDP) or sharded (FSDP2).

What is kept and updated here are *pieces*: of every parameter the whole, or this process's part of it along the first
dimension. Optimizer and averages see pieces alone, and checkpoints hold whole tensors, so that neither knows which
it was, and a run may go on under the other.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from elbocli.loops.runtime import PRECISIONS
from elbocli.loops.world import World
from elbocli.nn.blocks import Network
from elbocli.nn.networks import place


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

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a part of a batch: gradients are averaged over processes with the last."""
        several = isinstance(self.forward, DistributedDataParallel)
        return self.forward.no_sync() if several and not last else nullcontext()  # type: ignore[operator]

    def gradients(self) -> list[Tensor]:
        """Of the pieces, after the last part of a batch."""
        return [piece.grad for piece in self.pieces if piece.grad is not None]

    def clear(self) -> None:
        """Forget the gradients."""
        for piece in self.pieces:
            piece.grad = None

    def changed(self) -> None:
        """The pieces' values were changed by other hands than the optimizer's."""

    def whole(self, index: int, piece: Tensor) -> Tensor:
        """The whole tensor that is shaped like parameter `index`."""
        return piece

    def part(self, index: int, whole: Tensor) -> Tensor:
        """This process's piece of it."""
        return whole


class Sharded:
    """A part of each parameter in each process; the wholes of a block are together only while it works."""

    sharded = True

    def __init__(self, network: Network, world: World, compile: bool, precision: str):
        # Not placed: it goes to the device unit by unit, and its parts must lie contiguous. Images stay channels last.
        self.network = self.forward = network
        self.world, self.mesh = world, init_device_mesh(world.device.type, (world.size,))
        # Parameters travel in the precision they are used in; gradients are added up in float32. λ must not be rounded.
        policy = MixedPrecisionPolicy(
            param_dtype=PRECISIONS[precision] if precision != "fp32" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        self.shapes = [(parameter.shape, parameter.stride()) for parameter in network.parameters()]
        for unit in network.units():
            if compile:
                unit.compile()
            fully_shard(unit, mesh=self.mesh, mp_policy=policy)
        fully_shard(network, mesh=self.mesh, mp_policy=policy)
        self.names = [name for name, _ in network.named_parameters()]
        self._sharded = list(network.parameters())
        self.pieces = [nn.Parameter(_local(parameter.detach())) for parameter in self._sharded]

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """As Replica's, but every part's gradients are shared out at once: whole ones are what sharding saves."""
        return nullcontext()

    def gradients(self) -> list[Tensor]:
        """As Replica's."""
        for piece, parameter in zip(self.pieces, self._sharded):
            piece.grad = None if parameter.grad is None else _local(parameter.grad)
        return [piece.grad for piece in self.pieces if piece.grad is not None]

    def clear(self) -> None:
        """As Replica's."""
        for piece, parameter in zip(self.pieces, self._sharded):
            piece.grad = parameter.grad = None

    def changed(self) -> None:
        """As Replica's. What is outside all units stays together after a forward that no backward follows."""
        self.network.reshard()  # type: ignore[operator]

    def whole(self, index: int, piece: Tensor) -> Tensor:
        """As Replica's. Every process must ask."""
        shape, stride = self.shapes[index]
        return DTensor.from_local(piece, self.mesh, [Shard(0)], shape=shape, stride=stride).full_tensor()

    def part(self, index: int, whole: Tensor) -> Tensor:
        """As Replica's."""
        parts = whole.chunk(self.world.size)
        return parts[self.world.rank] if self.world.rank < len(parts) else whole[:0]


def _local(tensor: Any) -> Tensor:
    return tensor.to_local()


def spread(network: Network, world: World, parallel: str, compile: bool, precision: str) -> Replica | Sharded:
    """A network on the CPU, over the processes there are. parallel: `ddp` or `fsdp`, the same thing for one process."""
    if parallel == "fsdp" and world.size > 1:
        return Sharded(network, world, compile, precision)
    return Replica(network, world, compile)
