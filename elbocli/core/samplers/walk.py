"""A sampler as a user names it, the grid of λ that it walks, and the walk itself."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

from elbocli.core.registry import Declaration, parse_spec
from elbocli.core.samplers import (
    SAMPLERS,
    Denoise,
    DenoiseWithVariance,
    DrawNoise,
    Move,
    SamplerPreset,
    SamplerTraits,
)
from elbocli.core.spacing import usual_spacing
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from elbocli.core.schedule import Schedule


class Sampler(NamedTuple):
    """A declared step with all its parameters; usual: how it is walked where nothing else is asked for."""

    declared: Declaration[SamplerTraits]
    usual: SamplerPreset

    def __repr__(self) -> str:
        return f"Sampler({self.spec!r})"

    @property
    def spec(self) -> str:
        """Text that means the same again."""
        return self.declared.spec


def parse_sampler(text: str) -> Sampler:
    """The sampler that a user wrote: `ddim`, `heun:s_churn=40`, `heun:edm-imagenet64,s_churn=20`.

    A preset, if any, comes first; further parameters override it. Raises UsageError.
    """
    name, _, words = text.strip().partition(":")
    declared = SAMPLERS.find(name)
    first, _, rest = words.partition(",")
    usual, presets = declared.traits.usual, declared.traits.presets
    if first in presets:
        usual, words = presets[first], rest
    elif presets and first and "=" not in first:
        known = ", ".join(f"{declared.name}:{preset}" for preset in presets)
        raise UsageError(f"{text!r}: {name} has no preset {first!r} (its presets: {known}); expected key=value")
    return Sampler(declared.bind(usual.params).read(parse_spec(f"{name}:{words}").params), usual)


def time_grid(schedule: Schedule, steps: int, spacing: Declaration[None] | None = None) -> list[float]:
    """`steps` + 1 levels of a schedule, as one of SPACINGS chooses them, then inf (clean). spacing: None is the usual one.

    Raises UsageError when the schedule doesn't have so many.
    """
    return [*(spacing or usual_spacing(schedule))(schedule, steps), math.inf]


def too_few(sampler: Sampler, steps: int) -> list[str]:
    """A note where so few steps leave nothing of what sets the sampler apart."""
    name, least = sampler.declared.name, sampler.declared.traits.least
    if steps >= least:
        return []
    why = (
        "a single step by any sampler is the network's guess from noise alone, a blur near the mean of all images"
        if steps == 1
        else f"in fewer than {least} steps, {name} draws what ddim draws"
    )
    return [f"--steps {steps}: {why}; for {name} give --steps {least} or more"]


def walk(
    sampler: Sampler,
    z: Tensor,
    grid: list[float],
    denoise: Denoise | DenoiseWithVariance,
    noise: DrawNoise,
    every_step: bool = False,
) -> Tensor:
    """Data at grid[-1] from noise z [B, …] at grid[0]. grid: λ, rising, inf for clean data. denoise: as the
    sampler wants it. noise: a draw like z. every_step: draw once in each step, as EDM does, also where none is added.
    """
    last = None
    for before, now, then in zip([-math.inf, *grid], grid, grid[1:]):
        move = Move(now, then, before, len(grid) - 1)
        drawn = itertools.repeat(noise()).__next__ if every_step else noise
        z, last = sampler.declared(z, last, move, denoise, drawn)
    return z
