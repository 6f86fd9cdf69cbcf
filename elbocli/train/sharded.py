"""A network sharded over processes (FSDP2). Not in replicated.py, because its imports take 3 seconds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from elbocli.nn.networks import Network
from elbocli.runtime.device import PRECISIONS
from elbocli.runtime.processes import World
from elbocli.train.replicated import empty_copy

SHAPES = 8
"""Ways to call a unit, for each of which it is compiled: the parts of a batch, validation, previews."""


class Sharded:
    """A network whose parameters are sharded over all processes; a unit's are gathered only while it works."""

    sharded = True

    def __init__(self, network: Network, world: World, precision: str):
        # Not placed: it goes to the device unit by unit, and shards must lie contiguous. Images stay channels last.
        self.network = self.forward = network
        self.world, mesh = world, init_device_mesh(world.device.type, (world.size,))
        # Parameters travel in the precision they are used in; gradients are added up in float32. λ must not be rounded.
        self._policy = MixedPrecisionPolicy(
            param_dtype=None if PRECISIONS[precision] == torch.float32 else PRECISIONS[precision],
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        self._outline = empty_copy(network, torch.device("meta"))  # sharded networks can't be copied
        shard(network, mesh, self._policy)

    def stand_ins(self) -> Callable[[], Network]:
        """See Replica. Their gathered weights are whatever was in memory: nothing is exchanged for them."""
        import torch.testing._internal.distributed.fake_pg  # makes the backend "fake" known

        # Meshes of the same processes are one to torch's caches, unless they have a name.
        silent = DeviceMesh.from_group(
            dist.new_group(backend="fake"), self.world.device.type, mesh_dim_names=("stand_in",)
        )
        return lambda: shard(empty_copy(self._outline, torch.device("cpu")), silent, self._policy)

    def to_try(self) -> Network:
        """See Replica."""
        network = self.stand_ins()()
        compile_units(network.units())
        return network

    def compile(self, parts: int) -> str:
        """Compile each unit by itself: between them, whole parameters come and go."""
        compile_units(self.network.units())
        return "compiled"

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """See Replica; but every part's gradients are shared out at once: whole ones are what sharding saves."""
        return nullcontext()

    def changed(self) -> None:
        """See Replica. Parameters outside all units stay gathered after a forward pass without a backward pass."""
        self.network.reshard()  # type: ignore[operator]


def shard(network: Network, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> Network:
    """Shard a network over a mesh, unit by unit and what is outside them, and return it."""
    for module in (*network.units(), network):
        fully_shard(module, mesh=mesh, mp_policy=policy).set_force_sum_reduction_for_comms(True)
    return network


def compile_units(units: list[nn.Module]) -> None:
    """Compile each by itself, and all of them: they share their code, whose versions torch limits to 8."""
    from torch._dynamo import config

    most = SHAPES * len(units)
    config.recompile_limit = max(config.recompile_limit, most)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, most)
    for unit in units:
        unit.compile(dynamic=False)
