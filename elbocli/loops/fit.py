"""How many images a process can see at once: found by trying, on devices whose memory can be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elbocli.errors import DataError
from elbocli.loops.world import World
from elbocli.nn.networks import NetworkConfig

if TYPE_CHECKING:
    from elbocli.loops.parallel import Replica
    from elbocli.loops.sharded import Sharded

MARGIN = 0.92
"""Of what is free: allocators leave gaps."""


def largest(used: Callable[[int], int], share: int, free: int) -> int:
    """The most images, at most `share`, whose step fits into `free` bytes. used(n): bytes that a step of n needs
    beyond what is there between steps; it raises torch.OutOfMemoryError when they are not there.

    What n images need is taken as a line through 1 and 2 images, and then tried. Raises DataError when not even one fits.
    """
    try:
        one, two = used(1), used(min(2, share))
        count = share if two <= one else min(share, 1 + int((MARGIN * free - one) / (two - one)))
    except torch.OutOfMemoryError:
        count = 0
    while count > 1:
        try:
            used(count)
            break
        except torch.OutOfMemoryError:
            count = count * 3 // 4
    if count < 1:
        raise DataError(
            "not even one image at a time fits into the device's memory; try --activation-checkpointing, "
            "--parallel fsdp on more devices, or --precision bf16; 'elbo train --dry-run' says what fits where"
        )
    return count


def micro_batch(spread: Replica | Sharded, config: NetworkConfig, world: World, share: int, precision: torch.autocast) -> int:
    """The part of a batch that fits in every process, on CUDA; elsewhere the whole share. Raises DataError."""
    if world.device.type != "cuda":
        return share
    cuda = torch.cuda

    def used(count: int) -> int:
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        z = torch.zeros(count, config.image_channels, config.image_size, config.image_size, device=world.device)
        z = z.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(count, dtype=torch.long, device=world.device) if config.num_classes else None
        try:
            # Compiled code needs no more memory, and would be compiled anew for every count.
            with torch.compiler.set_stance("force_eager"), precision:
                out: Tensor = spread.forward(z, torch.zeros(count, device=world.device), labels)
                out.float().square().mean().backward()
            cuda.synchronize()
            return cuda.max_memory_allocated() - before
        finally:
            spread.clear()

    moments = 2 * sum(piece.numel() * piece.element_size() for piece in spread.pieces)
    free = cuda.mem_get_info()[0] + cuda.memory_reserved() - cuda.memory_allocated() - moments
    with world.together():
        count = largest(used, share, free)
    return -world.most([-count])[0]
