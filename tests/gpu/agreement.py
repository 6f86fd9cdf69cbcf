"""The CPU and the card compute the same: losses of first steps, images drawn, a bound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import device_runs as on
import made_data
import numpy as np
from record import Row
from worker import Session

LOSSES, PIXELS, BITS = 1e-3, 0.5, 1e-4
"""Largest differences: of losses, relative; of pixels, mean levels; of bits per dimension, relative."""
SMALL: dict[str, Any] = {"log_every": 10, "preview_every": 0, "warmup": 5}


def rows(session: Session) -> Iterator[Row]:
    """The largest differences, in float32."""
    digits = made_data.packed_digits(session.folder)
    noise = made_data.packed(session.folder, 32, 3, count=64)
    steps = 3 if session.small else 20
    cases = (("digits", digits, 32), ("digits-uvit", digits, 32), ("small32-uvit", noise, 8))
    for preset, data, batch in cases[:2] if session.small else cases:
        options = {**SMALL, "preset": preset, "batch": batch, "precision": "fp32"}
        cpu, device = (np.array(on.losses(data, where, steps, **options)) for where in ("cpu", session.device))
        apart = float(np.abs(device / cpu - 1).max())
        yield Row(f"{preset}: {steps} losses, largest difference", apart, "relative", ok=apart < LOSSES)
    for preset, data, batch in cases[:1] if session.small else (cases[0], cases[2]):
        run = session.folder / f"agree-{preset}"
        on.trained(data, run, "cpu", preset=preset, batch=batch, steps=2 * steps, precision="fp32", **SMALL)
        yield from drawn(session, run, preset)


def drawn(session: Session, run: Path, preset: str) -> Iterator[Row]:
    """Images of a run and its bound."""
    for sampler in ("ddim", "ddpm"):
        images = [
            on.samples(run, run / f"{sampler}-{index}.npy", where, sampler=sampler, n=8, steps=8, batch=4)
            for index, where in enumerate(("cpu", session.device))
        ]
        apart = np.abs(images[0].astype(int) - images[1].astype(int))
        yield Row(
            f"{preset}: {sampler}, mean difference of pixels",
            float(apart.mean()),
            "levels",
            ok=bool(apart.mean() < PIXELS),
        )
    bits = [on.bits(run, where, images=8) for where in ("cpu", session.device)]
    apart = abs(bits[1] / bits[0] - 1)
    yield Row(
        f"{preset}: bits per dimension, difference",
        apart,
        "relative",
        ok=apart < BITS,
        note=f"{bits[0]:.5f} on the CPU",
    )
