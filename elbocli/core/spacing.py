"""Spacings: which levels of a schedule so many steps visit, declared once each."""

from __future__ import annotations

from itertools import accumulate, repeat
from typing import TYPE_CHECKING

from elbocli.core.discrete_schedule import Steps
from elbocli.core.registry import Declaration, Registry
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from elbocli.core.schedule import Schedule

SPACINGS: Registry[None] = Registry("spacing")
"""(schedule, steps) → the λ of each step, rising: [steps]."""
spacing = SPACINGS.declare


@spacing("even", formula="logsnr(t) at t even from 1 to 0", source="a walk of equal steps in t")
def even(schedule: Schedule, steps: int) -> list[float]:
    """Both ends included; a single step is at t = 1."""
    import torch

    t = torch.linspace(1, 0, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
    found: list[float] = schedule.logsnr(t).tolist()
    return found


@spacing(
    "timesteps",
    formula="timesteps i (T-1)/(steps-1) of T, rounded, the first and the last included",
    source="Nichol & Dhariwal 2021; ADM, DiT",
    known_as=["adm", "dit", "respaced"],
)
def timesteps(schedule: Schedule, steps: int) -> list[float]:
    """A sum of equal parts, rounded, as ADM has it: i (T−1)/(steps−1) in one product would round some halves otherwise."""
    levels = _levels(schedule, "timesteps")
    if steps > len(levels):
        raise UsageError(f"{schedule.base} has {len(levels)} timesteps in this range, and {steps} steps were asked for")
    if steps == 1:
        return levels[-1:]
    part = (len(levels) - 1) / (steps - 1)
    return [levels[round(at)] for at in accumulate(repeat(part, steps - 1), initial=0.0)][::-1]


@spacing(
    "stride",
    formula="timesteps 0, k, 2k, ... of T, with the least k that gives so many",
    source="Song et al. 2021; ADM's ddimN",
    known_as=["ddim"],
)
def stride(schedule: Schedule, steps: int) -> list[float]:
    """The noisiest of them is not the last timestep, as a rule."""
    levels = _levels(schedule, "stride")
    counts = {len(levels[::k]): k for k in range(len(levels), 0, -1)}
    if steps not in counts:
        near = sorted(counts, key=lambda count: abs(count - steps))[:2]
        raise UsageError(
            f"no stride takes exactly {steps} of the {len(levels)} timesteps of {schedule.base}; "
            f"{' or '.join(map(str, sorted(near)))} steps have one"
        )
    return levels[:: counts[steps]][::-1]


def _levels(schedule: Schedule, name: str) -> list[float]:
    """The λ of each timestep that lies in a schedule's range, falling from the first. Raises UsageError where there are none."""
    if not isinstance(schedule.curve, Steps):
        raise UsageError(
            f"spacing {name} needs a schedule of timesteps, such as t-linear or a scheduler_config.json; {schedule.base} is none"
        )
    low, high = schedule.logsnr_min - 1e-9, schedule.logsnr_max + 1e-9
    return [at for at in (schedule.curve.level + schedule.shift).tolist()[::-1] if low <= at <= high]


def usual_spacing(schedule: Schedule) -> Declaration[None]:
    """The one where no other is asked for: declared schedules of timesteps are walked as their authors did."""
    discrete = schedule.declared is not None and isinstance(schedule.curve, Steps)
    return SPACINGS["timesteps" if discrete else "even"]
