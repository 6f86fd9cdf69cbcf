"""A network sharded over processes (FSDP2). Apart from replicas, because what it imports takes a while."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from elbocli.errors import UsageError
from elbocli.nn.networks import Network
from elbocli.runtime.device import PRECISIONS
from elbocli.runtime.processes import World
from elbocli.train.replicated import empty_copy

ON_CPU = hasattr(torch.cpu.Stream, "record_event")
"""Whether this torch's FSDP works on the CPU: that of 2.6 asks for events that are not there, and forgets that it changed weights."""
SHAPES = 8
"""Ways to call a unit, for each of which it is compiled: the parts of a batch, validation, previews."""


class Sharded:
    """A part of each parameter in each process; the wholes of a block are together only while it works.

    Raises UsageError where this torch can't do that.
    """

    sharded = True

    def __init__(self, network: Network, world: World, precision: str):
        if world.device.type == "cpu" and not ON_CPU:
            raise UsageError(
                f"--parallel fsdp: torch {torch.__version__} can't do it on the CPU; take ddp, or torch 2.7"
            )
        # Not placed: it goes to the device unit by unit, and its parts must lie contiguous. Images stay channels last.
        self.network = self.forward = network
        self.world, self.mesh = world, init_device_mesh(world.device.type, (world.size,))
        # Parameters travel in the precision they are used in; gradients are added up in float32. λ must not be rounded.
        self._policy = MixedPrecisionPolicy(
            param_dtype=None if PRECISIONS[precision] == torch.float32 else PRECISIONS[precision],
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        self.shapes = [parameter.shape for parameter in network.parameters()]
        self._outline = empty_copy(network, torch.device("meta"))  # sharded networks can't be copied
        shard(network, self.mesh, self._policy)
        self.names = [name for name, _ in network.named_parameters()]
        self._sharded: list[Any] = list(network.parameters())
        self.pieces = [nn.Parameter(parameter.detach().to_local()) for parameter in self._sharded]

    def stand_ins(self) -> Callable[[], nn.Module]:
        """See Replica. Their gathered weights are whatever was in memory: nothing is exchanged for them."""
        import torch.testing._internal.distributed.fake_pg  # makes the backend "fake" known

        # Meshes of the same processes are one to torch's caches, unless they have a name.
        silent = DeviceMesh.from_group(
            dist.new_group(backend="fake"), self.world.device.type, mesh_dim_names=("stand_in",)
        )
        return lambda: shard(empty_copy(self._outline, torch.device("cpu")), silent, self._policy)

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
        """See Replica. Parameters outside all units stay gathered after a forward pass without a backward pass."""
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


def shard(network: Network, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> Network:
    """Shard a network over a mesh, unit by unit and what is outside them, and return it."""
    for module in (*network.units(), network):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return network


def compile_units(units: list[nn.Module]) -> None:
    """Compile each by itself, and all of them: they share their code, whose versions torch limits to 8."""
    from torch._dynamo import config

    most = SHAPES * len(units)
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        name = limit if hasattr(config, limit) else limit.replace("recompile", "cache_size")  # in torch 2.6
        setattr(config, name, max(getattr(config, name), most))
    for unit in units:
        unit.compile(dynamic=False)
