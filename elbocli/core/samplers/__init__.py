"""Samplers: pure steps from one λ to the next, declared by name. Each module here but `walk` declares one; being here is enough.

A step sees z, which is variance preserving, and a denoiser D(z, λ) → x̂. λ = inf is clean data.
Coefficients are Python floats in double precision; only z and x̂ are tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, NamedTuple

from elbocli.core.logsnr import alpha_sigma
from elbocli.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Denoise = Callable[["Tensor", float], "Tensor"]
DenoiseWithVariance = Callable[["Tensor", float], tuple["Tensor", "Tensor"]]
"""D(z, λ) → (x̂, γ): how far the logarithm of a step's variance lies from its smallest to its largest, for each value."""
DrawNoise = Callable[[], "Tensor"]
STEPS = 128


class Move(NamedTuple):
    """A step from λ = now to λ = then > now. before: where the one before began, −inf for the first; steps: of the walk."""

    now: float
    then: float
    before: float = -math.inf
    steps: int = 1

    @property
    def width(self) -> float:
        """Δ log(α/σ), half of Δλ: the h of the literature on solvers."""
        return 0.5 * (self.then - self.now)

    @property
    def scales(self) -> tuple[float, float, float, float]:
        """α and σ at `now`, then at `then`."""
        return (*alpha_sigma(self.now), *alpha_sigma(self.then))


class SamplerPreset(NamedTuple):
    """A way to walk a sampler: on the grid of which schedule, over how many steps, with which parameters set."""

    grid: str
    steps: int = STEPS
    params: Mapping[str, float] = {}
    source: str = ""


class SamplerTraits(NamedTuple):
    """usual: how it is walked where nothing else is asked for. presets: published ways of walking it, by name. least: the
    fewest steps at which it does what sets it apart; in fewer, it gives the images that ddim gives. learned: whether its
    denoiser is one with a variance. ancestral: whether its steps are draws from q(z' | z, x̂), with noise.
    """

    usual: SamplerPreset
    presets: Mapping[str, SamplerPreset]
    least: int = 2
    learned: bool = False
    ancestral: bool = False


SAMPLERS: Registry[SamplerTraits] = Registry("sampler")


def sampler(
    name: str,
    *,
    grid: str,
    presets: Mapping[str, SamplerPreset] | None = None,
    least: int = 2,
    learned: bool = False,
    ancestral: bool = False,
    **declared: Any,
) -> Callable[..., Any]:
    """Declare a step (z, last, move, denoise, noise, **params) → (z at move.then, x̂).

    last: the x̂ that the step before gave, None for the first; what a multistep method remembers. grid: its usual schedule.
    least, learned, ancestral: as in SamplerTraits. declared: as Registry.declare takes it.
    """
    traits = SamplerTraits(SamplerPreset(grid), presets or {}, least, learned, ancestral)
    return SAMPLERS.declare(name, traits=traits, **declared)


for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
