"""Parts of a batch: as many images as a process can see at once, found by trying where a device tells its memory.

The search runs a stand-in, never the network itself. The stand-in takes the same memory and does not communicate. So a
failure in it, in any process, changes nothing and keeps no other process waiting.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from elbocli.errors import DataError, UsageError
from elbocli.nn.networks import NetworkConfig
from elbocli.runtime.processes import World, to_local

if TYPE_CHECKING:
    from elbocli.train.replicated import Replica
    from elbocli.train.sharded import Sharded

MARGIN = 0.92
"""Share of free memory to fill: allocators leave gaps."""
LACKING = ("unable to find an engine", "ALLOC_FAILED", "out of memory")
"""Words of cuDNN, cuBLAS and the driver, for which memory that is not there is a plain RuntimeError."""


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


class Gauge(Protocol):
    """A look at this process's memory on a device, in bytes."""

    def free(self) -> int:
        """Return what is there to be had."""

    def reset(self) -> int:
        """Return what is held, and forget the peak and all that is only kept in case."""

    def peak(self) -> int:
        """Return the most that was held since `reset`."""


class CudaGauge:
    """A Gauge of a CUDA device: its caching allocator."""

    def __init__(self, device: torch.device):
        self.device = device

    def free(self) -> int:
        """See Gauge. What the allocator keeps without holding it can be had as well."""
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept

    def reset(self) -> int:
        """See Gauge."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        """See Gauge."""
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)


def gauge_of(device: torch.device) -> Gauge | None:
    """Return the Gauge of a device that has one."""
    return CudaGauge(device) if device.type == "cuda" else None


def largest(used: Callable[[int], float], share: int, free: int) -> int:
    """Return the most images, up to `share`, whose step fits into `free` bytes; 0 when not even one does.

    used(n): bytes that a step of n needs beyond those between steps, infinity when they are not there. A line through
    the needs of 1 and 2 images gives a guess, which is then tried.
    """
    one = used(1)
    if one > free:
        return 0
    two = used(min(2, share))
    count = share if two <= one else min(share, 1 + int(max(0, MARGIN * free - one) / (two - one)))
    while count > 1 and used(count) > free:
        count = count * 3 // 4
    return count


def part(
    network: nn.Module, config: NetworkConfig, count: int, device: torch.device, precision: torch.autocast
) -> None:
    """Do one part of a step with so many images in it."""
    z = torch.zeros(count, config.image_size, config.image_size, config.image_channels, device=device)
    labels = torch.zeros(count, dtype=torch.long, device=device) if config.num_classes else None
    with precision:
        out: Tensor = network(z.permute(0, 3, 1, 2), torch.zeros(count, device=device), labels)
        loss = out.float().square().mean()
    loss.backward()


def micro_batch(
    spread: Replica | Sharded,
    config: NetworkConfig,
    world: World,
    share: int,
    precision: torch.autocast,
    gauge: Gauge | None,
) -> int:
    """Return how many images fit in every process; the whole share where there is no gauge. Raises DataError, in all alike.

    Processes measure apart, and exchange nothing but what each has found. Compiled code needs no more than stand-ins,
    which are not compiled.
    """
    if gauge is None:
        return share
    stand_in = spread.stand_ins()
    world.added(torch.zeros(1, device=world.device))  # what NCCL takes with the first exchange is not free

    def taken(count: int) -> int:
        gc.collect()  # sharded networks are circles, and what failed in one is held by it
        network = stand_in()
        held = gauge.reset()
        part(network, config, count, world.device, precision)  # kernels are chosen here, by trying them in memory
        gauge.reset()
        part(network, config, count, world.device, precision)  # has the gradients of the first beside it
        return gauge.peak() - held

    def used(count: int) -> float:
        try:
            return taken(count)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in LACKING):
                return math.inf
            raise

    # Workspaces that libraries get once and keep are neither an image's need nor free: they come with the first pass.
    with suppress(torch.OutOfMemoryError):
        taken(1)
    gc.collect()
    gauge.reset()
    # The optimizer's moments come with the first update, and must find room. Stand-ins' weights lie there meanwhile.
    moments = 2 * sum(to_local(weight).nbytes for weight in spread.network.parameters())
    found = largest(used, share, gauge.free() - moments)
    gc.collect()
    gauge.reset()
    found = -world.most([-found])[0]
    if found < 1:
        raise DataError(
            "not even one image at a time fits into the device's memory; try --activation-checkpointing, "
            "--parallel fsdp on more devices, or --precision bf16; 'elbo train --dry-run' says what fits where"
        )
    return found
