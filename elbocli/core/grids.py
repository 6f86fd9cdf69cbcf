"""Grids: the levels of λ that a sampler visits, made of what a run is known to do; declared once each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elbocli.core.registry import Registry

if TYPE_CHECKING:
    from elbocli.core.adaptive import ErrorMoments
    from elbocli.core.samplers.walk import Sampler
    from elbocli.core.schedule import Schedule

GRIDS: Registry[None] = Registry("grid")
"""GridTask → Schedule, whose levels at even t are the grid."""


@dataclass(frozen=True)
class GridTask:
    """Knowledge that a grid is made of. moments: of the errors at each level, as the run's log has them. floor: least density, relative
    to a uniform one. equal: → the levels at which all steps of the sampler err alike, measured.
    """

    moments: Callable[[], ErrorMoments]
    floor: float
    equal: Callable[[], list[float]]


def _adaptive(task: GridTask, weighting: str) -> Schedule:
    from elbocli.core.adaptive import fit_schedule
    from elbocli.core.weighting import parse_weighting

    return fit_schedule(task.moments(), parse_weighting(weighting), "loss", task.floor)


@GRIDS.declare(
    "entropic",
    formula="density e(logsnr): equal steps of the entropy of x given z",
    source="Stancevic et al. 2025; the adaptive schedule of elbo",
)
def entropic(task: GridTask) -> Schedule:
    """dH[x | z]/dλ = −½ E‖ε−ε̂‖² (I-MMSE)."""
    return _adaptive(task, "elbo")


@GRIDS.declare(
    "rescaled",
    formula="density e^(-logsnr/2) e(logsnr)",
    source="Stancevic et al. 2025: rescaled entropic; the adaptive schedule of fm-ot",
)
def rescaled(task: GridTask) -> Schedule:
    """The entropy's steps times σ/α: what they change of the data's values."""
    return _adaptive(task, "fm-ot")


@GRIDS.declare(
    "solver",
    formula="equal error of every step, measured",
    source="along the run's own trajectories; of ddpm by its log",
)
def solver(task: GridTask) -> Schedule:
    """The levels themselves: a table of so many knots at even t."""
    return schedule_of_levels(task.equal(), "solver")


def purpose_of(sampler: Sampler, steps: int, guidance: float) -> str:
    """Text of what a grid is made for, and for nothing else. guidance: the scale, 1 is none; no ancestral grid knows of it."""
    guided = guidance != 1 and not sampler.declared.traits.ancestral
    return f"{sampler.spec}, {steps} steps" + (f", guidance {guidance:g}" if guided else "")


def schedule_of_levels(levels: list[float], name: str) -> Schedule:
    """The schedule whose levels at as many even t, both ends included, are these to the last bit. levels: rising, ≥ 2."""
    import torch

    from elbocli.core.schedule import Table, make_schedule

    times = torch.linspace(1, 0, len(levels), dtype=torch.float64).flip(0).tolist()
    return make_schedule(Table(list(zip(times, levels[::-1], strict=True))), name, None, None)
