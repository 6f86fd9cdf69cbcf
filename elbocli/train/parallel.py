"""A network in training over the processes of a World, replicated (DDP) or sharded (FSDP2), and how they share a batch.

Sharded parameters are DTensors. Checkpoints hold whole tensors, so a run may continue with the other of the two.
"""

from __future__ import annotations

import gc
import math
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elbocli.errors import DataError, UsageError
from elbocli.nn.networks import Network, count_parameters, place
from elbocli.runtime.device import PRECISIONS
from elbocli.runtime.processes import World, to_local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

SMALL = 100_000_000
"""Parameters up to which a step on a large card is shorter than launching its kernels one by one, roughly."""
SHAPES = 8
"""Ways to call a unit, for each of which it is compiled: the parts of a batch, validation, previews."""
SPARE = 0.08
"""Share of the memory that a trial takes which must be free beside it: allocators leave gaps."""
LACKING = ("unable to find an engine", "ALLOC_FAILED", "out of memory")
"""Words of cuDNN, cuBLAS and the driver, for which memory that is not there is a plain RuntimeError."""


class Parallel:
    """A network over processes: each has the whole and averages its gradients with the others', or each has a shard.

    forward: the network as it is called in training.
    """

    def __init__(self, network: Network, world: World, precision: str, sharded: bool = False):
        self.network, self.world, self.sharded = network, world, sharded
        self.forward: nn.Module = network
        if sharded:  # it goes to the device unit by unit, and shards must lie contiguous
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import MixedPrecisionPolicy

            # Parameters travel in the precision they are used in; gradients are added up in float32. λ must not be rounded.
            self._policy = MixedPrecisionPolicy(
                param_dtype=None if PRECISIONS[precision] == torch.float32 else PRECISIONS[precision],
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,
            )
            self._outline = _without_values(network, "meta")  # sharded networks can't be copied
            self._shard(network, init_device_mesh(world.device.type, (world.size,)))
            return
        place(network, world.device)
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.forward = DistributedDataParallel(network, devices, gradient_as_bucket_view=True)

    def _shard(self, network: Network, mesh: DeviceMesh) -> None:
        from torch.distributed.fsdp import fully_shard

        for module in (*network.units(), network):
            fully_shard(module, mesh=mesh, mp_policy=self._policy).set_force_sum_reduction_for_comms(True)

    def compile(self, parts: int) -> str:
        """Compile the network, for batches in so many parts. Returns what was done, in words.

        Small networks on CUDA wait for kernels to be launched, so theirs are replayed as CUDA graphs. Gradients then lie
        where the next pass writes: nothing may be added to them, exchanged, or computed again in between.
        """
        if self.sharded:
            compile_units(self.network.units())
            return "compiled"
        alone = self.world.size == 1 and parts == 1 and not self.network.recompute
        if self.world.device.type == "cuda" and alone and count_parameters(self.network) <= SMALL:
            self.network.compile(dynamic=False, mode="reduce-overhead")
            return "compiled to CUDA graphs"
        self.network.compile(dynamic=False)
        return "compiled"

    @cached_property
    def _silent_mesh(self) -> DeviceMesh:
        import torch.testing._internal.distributed.fake_pg  # noqa: F401 - makes the backend "fake" known
        from torch.distributed.device_mesh import DeviceMesh

        # Meshes of the same processes are one to torch's caches, unless they have a name.
        group = dist.new_group(backend="fake")
        return DeviceMesh.from_group(group, self.world.device.type, mesh_dim_names=("stand_in",))

    def stand_in(self, compiled: bool = False) -> nn.Module:
        """Return a network to try passes on that needs no other process, so that one that fails keeps none waiting.

        A sharded network has one of its own, whose gathered weights are whatever was in memory. Every process must ask.
        """
        if not self.sharded:
            return self.forward
        network = _without_values(self._outline, "cpu")
        self._shard(network, self._silent_mesh)
        if compiled:
            compile_units(network.units())
        return network

    def try_pass(self, network: nn.Module, images: int, autocast: torch.autocast, last: bool = False) -> None:
        """Do a forward and a backward pass of so many images, as training does. The gradients stay. last: see `accumulating`."""
        config, device = self.network.config, self.world.device
        z = torch.zeros(images, config.image_size, config.image_size, config.image_channels, device=device)
        labels = torch.zeros(images, dtype=torch.long, device=device) if config.num_classes else None
        with self.accumulating(last):
            with autocast:
                out: Tensor = network(z.permute(0, 3, 1, 2), torch.zeros(images, device=device), labels)
            out.float().square().mean().backward()

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a part of a batch: replicas average their gradients with the last part.

        Shards share out every part's gradients at once: whole ones are what sharding saves.
        """
        replicas = isinstance(self.forward, DistributedDataParallel)
        return self.forward.no_sync() if replicas and not last else nullcontext()  # type: ignore[operator]

    def changed(self) -> None:
        """Call this when something other than the optimizer has changed the parameters.

        Under FSDP, parameters outside all units stay gathered after a forward pass without a backward pass.
        """
        if self.sharded:
            self.network.reshard()  # type: ignore[operator]


def _without_values(network: Network, device: str) -> Network:
    """Return a copy of a network whose weights are on a device and have no values."""
    # Only what deepcopy finds here is not copied. Buffers must be: made-up indices can end a CUDA device's work for good.
    weights = {id(p): nn.Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in network.parameters()}
    return deepcopy(network, weights)


def compile_units(units: list[nn.Module]) -> None:
    """Compile each unit by itself, and all of them: they share their code, whose versions torch limits to 8."""
    from torch._dynamo import config

    most = SHAPES * len(units)
    config.recompile_limit = max(config.recompile_limit, most)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, most)
    for unit in units:
        unit.compile(dynamic=False)


def count_parts(batch: int, processes: int, most: int) -> int:
    """Return how many parts each process does its share of a batch in, none above `most` images.

    They are as few as can be, or up to twice as many (less one) where that makes all of them one size: a network is
    compiled for each size.
    """
    share = math.ceil(batch / processes)
    few = math.ceil(share / most)
    if batch % processes:
        return few  # shares differ, and so do their parts
    return next((parts for parts in range(few, 2 * few) if share % parts == 0), few)


def split(world: World, batch: int, most: int) -> list[range]:
    """Return the places in a batch that this process works on, in as many parts as any other, as even as can be.

    Raises UsageError when there are more processes than images.
    """
    parts = count_parts(batch, world.size, most)
    mine = world.share(batch)
    if batch // world.size < parts:
        raise UsageError(
            f"a batch of {batch} images can't be shared by {world.size} processes in {parts} parts each; "
            "raise --batch or --micro-batch, or start fewer"
        )
    cuts = [mine.start + len(mine) * k // parts for k in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


def micro_batch(spread: Parallel, images: int, autocast: torch.autocast) -> int:
    """Return how many images fit into the CUDA device of every process: so many, or half of them, or a quarter, and so on.

    Raises DataError, in all alike, when not even one does.
    """
    world = spread.world
    world.added(torch.zeros(1, device=world.device))  # what NCCL takes with the first exchange is not free
    while True:
        network, beside, lacking = spread.forward, list[Tensor](), False
        try:
            network = spread.stand_in()
            # The optimizer's moments come with the first update, and must find room. A stand-in's weights are one of the two.
            for weight in spread.network.parameters():
                beside += [torch.empty_like(to_local(weight)) for _ in range(1 if spread.sharded else 2)]
            spread.try_pass(network, images, autocast)
            spare = int(SPARE * torch.cuda.max_memory_allocated(world.device))
            beside.append(torch.empty(spare, dtype=torch.uint8, device=world.device))
            spread.try_pass(network, images, autocast)  # has the gradients of the first pass beside it
        except RuntimeError as error:
            lacking = isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in LACKING)
            if not lacking:
                raise
        del network, beside
        spread.network.zero_grad()
        gc.collect()  # sharded networks are circles
        torch.cuda.empty_cache()
        if not world.most([int(lacking)])[0]:
            return images
        if images == 1:
            raise DataError(
                "not even one image at a time fits into the device's memory; try --activation-checkpointing, "
                "--parallel fsdp on more devices, or --precision bf16; 'elbo train --dry-run' says what fits where"
            )
        images = math.ceil(images / 2)
