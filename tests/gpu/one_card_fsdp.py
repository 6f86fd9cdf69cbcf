"""FSDP2 over NCCL, in a group of one card: all that can be seen of sharding without a second one."""

from __future__ import annotations

from collections.abc import Iterator

import device_runs as on
import made_data
import torch
import torch.distributed as dist
from record import Row
from worker import Session

LIMIT = {"fp32": 1e-4, "bf16": 0.05}
"""Largest differences of gradients, relative: bf16's weights are rounded before they are gathered."""


def rows(session: Session) -> Iterator[Row]:
    """Gradients of sharded networks against the same whole, twice over, and what a collective does."""
    digits = made_data.packed_digits(session.folder)
    noise = made_data.packed(session.folder, 32, 3, count=64)
    for preset, data in (("digits", digits), ("small32-uvit", noise)):
        config = on.resolved(data, session.device, preset=preset).network
        for precision, limit in LIMIT.items():
            sharded, whole = on.sharded_and_whole(config, session.device, precision)
            if len(sharded) != len(whole):
                yield Row(f"{preset}, {precision}: gradients", f"{len(sharded)} of {len(whole)}", ok=False)
                continue
            apart = max(float((one - other).norm() / other.norm()) for one, other in zip(sharded, whole) if other.any())
            name = f"{preset}, {precision}: {len(whole)} gradients, largest difference"
            yield Row(name, apart, "relative", ok=apart < limit)
    with on.alone_in_a_group(session.device) as world:
        value = torch.ones(3, device=world.device)
        dist.all_reduce(value)
        yield Row("backend", dist.get_backend(), ok=bool((value == 1).all()))
