"""A network sharded over processes (FSDP2). Apart from replicas, because what it imports takes a while."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from elbocli.nn.networks import Network
from elbocli.runtime.device import PRECISIONS
from elbocli.runtime.processes import World

SHAPES = 8
"""Ways to call a unit, for each of which it is compiled: the parts of a batch, validation, previews."""


class Sharded:
    """A part of each parameter in each process; the wholes of a block are together only while it works."""

    sharded = True

    def __init__(self, network: Network, world: World, precision: str):
        # Not placed: it goes to the device unit by unit, and its parts must lie contiguous. Images stay channels last.
        self.network = self.forward = network
        self.world, self.mesh = world, init_device_mesh(world.device.type, (world.size,))
        # Parameters travel in the precision they are used in; gradients are added up in float32. λ must not be rounded.
        policy = MixedPrecisionPolicy(
            param_dtype=PRECISIONS[precision] if precision != "fp32" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        self.shapes = [parameter.shape for parameter in network.parameters()]
        for unit in network.units():
            fully_shard(unit, mesh=self.mesh, mp_policy=policy)
        fully_shard(network, mesh=self.mesh, mp_policy=policy)
        self.names = [name for name, _ in network.named_parameters()]
        self._sharded: list[Any] = list(network.parameters())
        self.pieces = [nn.Parameter(parameter.detach().to_local()) for parameter in self._sharded]

    def compile(self, parts: int) -> str:
        """Compile each unit by itself: between them, whole parameters come and go."""
        compile_units(self.network.units())
        return "compiled"

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """See Replica; but every part's gradients are shared out at once: whole ones are what sharding saves."""
        return nullcontext()

    def gradients(self) -> list[Tensor]:
        """See Replica."""
        for piece, parameter in zip(self.pieces, self._sharded):
            piece.grad = None if parameter.grad is None else parameter.grad.to_local()
        return [piece.grad for piece in self.pieces if piece.grad is not None]

    def clear(self) -> None:
        """See Replica."""
        for piece, parameter in zip(self.pieces, self._sharded):
            piece.grad = parameter.grad = None

    def changed(self) -> None:
        """See Replica. What is outside all units stays together after a forward that no backward follows."""
        self.network.reshard()  # type: ignore[operator]

    def whole(self, index: int, piece: Tensor) -> Tensor | None:
        """See Replica. Every process must ask."""
        count, *rest = self.shapes[index]
        padded = piece.new_zeros(-(-count // self.world.size), *rest)  # only the last parts are shorter
        padded[: len(piece)] = piece
        parts = self.world.gathered(padded)
        return torch.cat(parts)[:count] if parts else None

    def part(self, index: int, whole: Tensor) -> Tensor:
        """See Replica."""
        parts = whole.chunk(self.world.size)
        return parts[self.world.rank] if self.world.rank < len(parts) else whole[:0]


def compile_units(units: list[nn.Module]) -> None:
    """Compile each by itself, and all of them: they share their code, whose versions torch limits to 8."""
    from torch._dynamo import config

    most = SHAPES * len(units)
    config.recompile_limit = max(config.recompile_limit, most)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, most)
    for unit in units:
        unit.compile(dynamic=False)
