"""Noise levels of a sampler's steps: their spacing on a schedule, and schedules of given levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Annotated

from elbocli.core.registry import Bounds, Declaration, Registry
from elbocli.core.schedule_curves import Steps
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from elbocli.core.schedule import Schedule
    from elbocli.sampling.samplers import Sampler


@dataclass(frozen=True, repr=False)
class Spacing(Declaration[["Schedule", int], list[float]]):
    """Function (schedule, number of steps) → rising λ at which the steps start."""


SPACINGS = Registry("spacing", Spacing)
spacing = SPACINGS.declare


@spacing("even", formula="logsnr(t) at t even from 1 to 0", source="a walk of equal steps in t")
def even(schedule: Schedule, steps: int) -> list[float]:
    import torch

    return schedule.logsnr(torch.linspace(1, 0, steps, dtype=torch.float64)).tolist()


@spacing(
    "sit",
    formula="logsnr(t) at t even from 1 to the t whose logsnr is 2 log((1-last)/last)",
    source="Ma et al. 2024 (SiT): a last step of .04 on the flow path",
    known_as=["repa"],
)
def sit(schedule: Schedule, steps: int, last: Annotated[float, Bounds(0, 0.5, above=0)] = 0.04) -> list[float]:
    import torch

    end = schedule.t(torch.tensor(2 * math.log((1 - last) / last), dtype=torch.float64))
    return schedule.logsnr(torch.linspace(1, float(end), steps, dtype=torch.float64)).tolist()


@spacing("trailing", formula="logsnr(t) at t = 1, (T-1)/T, ... 1/T", source="Li & He 2025 (JiT)", known_as=["jit"])
def trailing(schedule: Schedule, steps: int) -> list[float]:
    import torch

    return schedule.logsnr(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]).tolist()


@spacing(
    "timesteps",
    formula="timesteps i (T-1)/(steps-1) of T, rounded, the first and the last included",
    source="Nichol & Dhariwal 2021; ADM, DiT",
    known_as=["adm", "dit", "respaced"],
)
def timesteps(schedule: Schedule, steps: int) -> list[float]:
    """Return rising λ of `steps` evenly spaced timesteps. Raises UsageError if the schedule has fewer."""
    levels = _levels(schedule)
    if steps > len(levels):
        raise UsageError(f"{schedule.base} has {len(levels)} timesteps in its logsnr range, fewer than {steps}; use fewer steps")
    if steps == 1:
        return levels[-1:]
    part = (len(levels) - 1) / (steps - 1)  # as in ADM, a running sum is rounded; multiples could round otherwise
    return [levels[round(at)] for at in accumulate(repeat(part, steps - 1), initial=0.0)][::-1]


@spacing(
    "stride",
    formula="timesteps 0, k, 2k, ... of T, with the least k that gives so many",
    source="Song et al. 2021; ADM's ddimN",
    known_as=["ddim"],
)
def stride(schedule: Schedule, steps: int) -> list[float]:
    """Return rising λ at every k-th timestep. Raises UsageError: no k gives `steps` timesteps."""
    levels = _levels(schedule)
    counts = {len(levels[::k]): k for k in range(len(levels), 0, -1)}
    if steps not in counts:
        near = min(counts, key=lambda count: abs(count - steps))
        raise UsageError(f"no stride gives {steps} of the {len(levels)} timesteps of {schedule.base}; use {near} steps")
    return levels[:: counts[steps]][::-1]


def _levels(schedule: Schedule) -> list[float]:
    """Return falling λ of the timesteps in the schedule's λ range. Raises UsageError: schedule without timesteps."""
    if not isinstance(schedule.curve, Steps):
        raise UsageError(
            f"{schedule.base} has no timesteps, which this spacing needs; choose a schedule such as t-linear, or spacing 'even'"
        )
    low = schedule.logsnr_min - 1e-9
    high = schedule.logsnr_max + 1e-9
    return [at for at in (schedule.curve.level + schedule.shift).tolist()[::-1] if low <= at <= high]


def usual_spacing(schedule: Schedule, sampler: Sampler | None = None) -> Spacing:
    """Return the default spacing: the sampler's; without one, `timesteps` for named discrete schedules, else `even`."""
    if sampler and sampler.spacing:
        return SPACINGS[sampler.spacing]
    discrete = schedule.declared is not None and isinstance(schedule.curve, Steps)
    return SPACINGS["timesteps" if discrete else "even"]


def logsnr_grid(schedule: Schedule, steps: int, spacing: Spacing | None = None) -> list[float]:
    """Return the rising λ of a sampler's steps, [steps + 1]; the last is inf (clean data).

    spacing: one of SPACINGS; None: the default for the schedule.
    Raises UsageError: the schedule has too few timesteps.
    """
    return [*(spacing or usual_spacing(schedule))(schedule, steps), math.inf]


def schedule_of_levels(levels: list[float]) -> Schedule:
    """Return a schedule with the given rising λ at equally spaced t."""
    import torch

    from elbocli.core.schedule import Table, make_schedule

    times = torch.linspace(1, 0, len(levels), dtype=torch.float64).flip(0).tolist()
    return make_schedule(Table(list(zip(times, levels[::-1], strict=True))), "solver")
