"""Out of memory on purpose: the search for the largest part of a batch, where little is left to it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import device_runs as on
import made_data
import torch
from record import Row
from worker import Session

from elbocli.train.state import TrainState
from elbocli.train.step import update


def rows(session: Session) -> Iterator[Row]:
    """Report what the search finds, and that steps of so many images then run."""
    cuda = session.device == "cuda"
    batch = 2048 if cuda else 8
    noise = made_data.packed(session.folder, 64, 3, count=batch)
    for precision in ("fp32", "bf16"):
        with on.little_memory(session.device), on.arithmetic(precision, session.device):
            settings = on.resolved(noise, session.device, preset="small64", batch=batch, precision=precision)
            state = TrainState(settings, noise)
            parts = [len(part) for part in state.batches.parts]
            searched = len(parts) > 1 if cuda else len(parts) == 1
            yield Row(
                f"{precision}: images at a time, of {batch}",
                max(parts),
                "images",
                ok=searched,
                note=f"{len(parts)} parts",
            )
            for _ in range(3):
                update(state)
            loss = state.interval()[1]
            yield Row(f"{precision}: loss after 3 steps of so many", loss, ok=math.isfinite(loss))
            if cuda:
                used = torch.cuda.max_memory_reserved()
                yield Row(
                    f"{precision}: memory reserved, of {on.LIMIT / 1e9:.2f} GB", used / 1e9, "GB", ok=used <= on.LIMIT
                )
                torch.cuda.reset_peak_memory_stats()
            del state
