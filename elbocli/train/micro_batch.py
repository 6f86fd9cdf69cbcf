"""Parts of a batch: as many images as a process can see at once, found by trying where a device tells its memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elbocli.errors import DataError, UsageError
from elbocli.nn.networks import NetworkConfig
from elbocli.runtime.processes import World

if TYPE_CHECKING:
    from elbocli.train.replicated import Replica
    from elbocli.train.sharded import Sharded

MARGIN = 0.92
"""Share of free memory to fill: allocators leave gaps."""


def split(world: World, batch: int, most: int) -> list[range]:
    """Return the places in a batch that this process works on, in as many parts as any other, none above `most`.

    Raises UsageError when there are more processes than images.
    """
    parts = math.ceil(math.ceil(batch / world.size) / most)
    mine = world.share(batch)
    if batch // world.size < parts:
        raise UsageError(
            f"a batch of {batch} images can't be shared by {world.size} processes in {parts} parts each; "
            "raise --batch or --micro-batch, or start fewer"
        )
    cuts = [mine.start + len(mine) * k // parts for k in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


def largest(used: Callable[[int], int], share: int, free: int) -> int:
    """Return the most images, up to `share`, whose step fits into `free` bytes. used(n): bytes that a step of n needs
    beyond those between steps; it raises torch.OutOfMemoryError when they are not there.

    A line through the needs of 1 and 2 images gives a guess, which is then tried. Raises DataError when not even one fits.
    """

    def fits(count: int) -> bool:
        with suppress(torch.OutOfMemoryError):
            return used(count) <= free
        return False

    count = 0
    with suppress(torch.OutOfMemoryError):
        one, count = used(1), 1
        two = used(min(2, share))
        count = share if two <= one else min(share, 1 + int((MARGIN * free - one) / (two - one)))
    while count > 0 and not fits(count):
        count = count * 3 // 4
    if count < 1:
        raise DataError(
            "not even one image at a time fits into the device's memory; try --activation-checkpointing, "
            "--parallel fsdp on more devices, or --precision bf16; 'elbo train --dry-run' says what fits where"
        )
    return count


def agreed(used: Callable[[int], int], world: World) -> Callable[[int], int]:
    """Return `used` of the process that needs most; it raises torch.OutOfMemoryError in all processes when any does.

    So all try the same sizes, equally often: their passes need each other where the network is sharded.
    """

    def most(count: int) -> int:
        needed, lacking = 0, 1
        with suppress(torch.OutOfMemoryError):
            needed, lacking = used(count), 0
        needed, lacking = world.most([needed, lacking])
        if lacking:
            raise torch.OutOfMemoryError(f"{count} images at a time")
        return needed

    return most


def passes(
    spread: Replica | Sharded, config: NetworkConfig, world: World, count: int, precision: torch.autocast
) -> None:
    """Do two parts of a step with so many images in each: the second has the gradients of the first beside it."""
    z = torch.zeros(count, config.image_channels, config.image_size, config.image_size, device=world.device)
    z = z.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(count, dtype=torch.long, device=world.device) if config.num_classes else None
    try:
        for _ in range(2):
            # Compiled code needs no more memory, and would be compiled anew for every count. Replicas exchange nothing.
            with torch.compiler.set_stance("force_eager"), spread.accumulating(last=False), precision:
                out: Tensor = spread.forward(z, torch.zeros(count, device=world.device), labels)
                out.float().square().mean().backward()
    finally:
        spread.clear()


def micro_batch(
    spread: Replica | Sharded, config: NetworkConfig, world: World, share: int, precision: torch.autocast
) -> int:
    """Return how many images fit in every process, on CUDA; elsewhere the whole share. Raises DataError."""
    if world.device.type != "cuda":
        return share
    cuda = torch.cuda

    def used(count: int) -> int:
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        passes(spread, config, world, count, precision)
        cuda.synchronize()
        return cuda.max_memory_allocated() - before

    moments = 2 * sum(piece.numel() * piece.element_size() for piece in spread.pieces)
    free = cuda.mem_get_info()[0] + cuda.memory_reserved() - cuda.memory_allocated() - moments
    return largest(agreed(used, world), share, -world.most([-free])[0])
