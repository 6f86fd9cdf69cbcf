"""Samplers: pure steps from one λ to the next, declared by name, and the walk along a grid of λ.

A step sees z, which is variance preserving, and a denoiser D(z, λ) → x̂. λ = inf is clean data.
Coefficients are Python floats in double precision; only z and x̂ are tensors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from elbocli.core.prediction import alpha_sigma
from elbocli.core.registry import Declaration, Registry, parse_spec
from elbocli.core.sampling import usual_spacing
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from elbocli.core.schedule import Schedule


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
    """grid, steps: how it is walked where nothing else is asked for. presets: published ways of walking it, by name.
    learned: whether its denoiser is one with a variance. ancestral: whether its steps are draws from q(z' | z, x̂), with noise.
    """

    grid: str
    steps: int = STEPS
    presets: Mapping[str, SamplerPreset] = {}
    learned: bool = False
    ancestral: bool = False


SAMPLERS = Registry("sampler", SamplerTraits)
"""(z [B, …], last, move, denoise, noise, parameters) → (z at move.then, x̂). last: the x̂ that the step before gave, None for the
first; what a multistep method remembers. denoise: a Denoise, or a DenoiseWithVariance; noise: a DrawNoise.
"""
sampler = SAMPLERS.declare


@sampler("ddim", formula="alpha' x_hat + sigma' eps_hat", source="Song et al. 2021", grid="cosine", known_as=["euler"])
def ddim(z, last, move, denoise, noise):
    """α' x̂ + σ' ε̂ with ε̂ = (z − α x̂)/σ: first order."""
    alpha, sigma, alpha_then, sigma_then = move.scales
    x_hat = denoise(z, move.now)
    ratio = sigma_then / sigma
    return (z * ratio).add_(x_hat, alpha=alpha_then - alpha * ratio), x_hat


def ancestor(z, x_hat, move, noise, gamma):
    """z' from z and x̂. gamma: 0 is the small variance and 1 the large, of all values or of each; clean data has none."""
    alpha, sigma, alpha_then, sigma_then = move.scales
    kept = math.exp(-2 * move.width)
    fresh = -math.expm1(-2 * move.width)
    mean = (z * (kept * alpha_then / alpha)).add_(x_hat, alpha=fresh * alpha_then)
    if sigma_then == 0:
        return mean
    small, large = math.log(fresh * sigma_then**2), math.log(fresh * sigma**2)
    log_variance = (1 - gamma) * small + gamma * large
    if isinstance(log_variance, float):
        return mean.add_(noise(), alpha=math.exp(0.5 * log_variance))
    return mean.addcmul_(noise(), log_variance.mul_(0.5).exp_())


@sampler(
    "ddpm",
    formula="ancestral; variance small^(1-gamma) large^gamma",
    source="Ho et al. 2020; Kingma et al. 2021",
    grid="cosine",
    ancestral=True,
    within={"gamma": (0, 1)},
    known_as=["euler-ancestral:gamma=0", "euler-a:gamma=0"],
)
def ddpm(z, last, move, denoise, noise, gamma=0.2):
    """A draw from q(z' | z, x̂), whose variance is c σ'² (small), or from one with c σ² (large), c = 1 − e^{λ−λ'}.

    gamma interpolates their logarithms, as in simple diffusion.
    """
    x_hat = denoise(z, move.now)
    return ancestor(z, x_hat, move, noise, gamma), x_hat


@sampler(
    "ddpm-learned",
    formula="as ddpm, with the gamma that the network gives for each value",
    source="Nichol & Dhariwal 2021, eq. 15",
    grid="cosine",
    learned=True,
    ancestral=True,
)
def ddpm_learned(z, last, move, denoise, noise):
    """ddpm with γ = (v + 1)/2 of a network that gives v beside its prediction."""
    x_hat, gamma = denoise(z, move.now)
    return ancestor(z, x_hat, move, noise, gamma), x_hat


def advance(z, x_hat, last, move, eta=0.0):
    """The mean of z' under dy = (1 + η)(x̂ − y) dℓ + √(2η) e^{−ℓ} dW, with y = z/α and ℓ = log(α/σ) = λ/2.

    Were x̂ constant, y' would be e^{−(1+η)h} y + (1 − e^{−(1+η)h}) x̂ with h = Δℓ, exactly. For x̂ stands its value in
    the middle of the step, on the line through this x̂ and the last. The first step knows no last, and one to clean
    data has no middle: there x̂ itself. η = 0 is the probability-flow equation.
    """
    _, sigma, alpha_then, sigma_then = move.scales
    if sigma_then == 0:
        return x_hat
    h = move.width
    gain = -alpha_then * math.expm1(-(1 + eta) * h)
    mean = z * (sigma_then / sigma * math.exp(-eta * h))
    if last is None:
        return mean.add_(x_hat, alpha=gain)
    ahead = h / (move.now - move.before)
    return mean.add_(x_hat, alpha=gain * (1 + ahead)).add_(last, alpha=-gain * ahead)


@sampler(
    "dpmpp-2m",
    formula="sigma'/sigma z + alpha' (1 - e^-h) x_hat extrapolated to the middle",
    source="Lu et al. 2022: DPM-Solver++(2M)",
    grid="edm-sample",
    known_as=["dpm++-2m", "dpmpp", "dpm++", "dpm-solver++", "dpm-solver++(2m)"],
)
def dpmpp_2m(z, last, move, denoise, noise):
    """Second order at one evaluation a step."""
    x_hat = denoise(z, move.now)
    return advance(z, x_hat, last, move), x_hat


@sampler(
    "dpmpp-2m-sde",
    formula="as dpmpp-2m, with sigma' sqrt(1 - e^(-2 eta h)) of fresh noise",
    source="Lu et al. 2022: SDE-DPM-Solver++(2M), midpoint",
    grid="edm-sample",
    known_as=["dpm++-2m-sde", "sde-dpm-solver++(2m)"],
    positive=["eta"],
)
def dpmpp_2m_sde(z, last, move, denoise, noise, eta=1.0):
    """eta: how much noise; 1 is the reverse of diffusion; towards 0 it becomes dpmpp-2m.

    The variance of y' is ∫ 2η e^{−2ℓ} e^{−2(1+η)(ℓ'−ℓ)} dℓ over the step: e^{−2ℓ'} (1 − e^{−2ηh}).
    """
    x_hat = denoise(z, move.now)
    mean = advance(z, x_hat, last, move, eta)
    spread = move.scales[3] * math.sqrt(-math.expm1(-2 * eta * move.width))
    return (mean.add_(noise(), alpha=spread) if spread else mean), x_hat


@sampler(
    "heun",
    formula="Heun in y = z/alpha, with churn",
    source="Karras et al. 2022, algorithm 2",
    grid="edm-sample",
    known_as=["edm"],
    presets={
        "edm-imagenet64": SamplerPreset(
            "edm-sample:rho=7,sigma_min=0.002,sigma_max=80",
            256,
            {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003},
            "Karras et al. 2022, table 5",
        )
    },
    within=dict.fromkeys(("s_churn", "s_min", "s_max", "s_noise"), (0, math.inf)),
)
def heun(z, last, move, denoise, noise, s_churn=0.0, s_min=0.0, s_max=1e5, s_noise=1.0):
    """Euler's step in y = z/α with d = (y − x̂)/σ_edm, then the mean of d at both its ends: second order.

    As x̂ moves along Euler's step by nothing, d₂ − d₁ = (x̂₁ − x̂₂)/σ', which is all that is left to add.
    s_churn: how much noise is added before, in all steps together, where s_min ≤ σ_edm ≤ s_max.
    """
    now, then, _, steps = move
    sigma, sigma_then = math.exp(-now / 2), math.exp(-then / 2)
    growth = min(s_churn / steps, math.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
    if growth > 0:
        noisier = sigma * (1 + growth)
        alpha_from = alpha_sigma(now)[0]
        now = -2 * math.log(noisier)
        scale = alpha_sigma(now)[0]
        z = (z * (scale / alpha_from)).add_(noise(), alpha=scale * s_noise * math.sqrt(noisier**2 - sigma**2))
        sigma = noisier
    alpha, alpha_then = alpha_sigma(now)[0], alpha_sigma(then)[0]
    x_hat = denoise(z, now)
    ratio = sigma_then / sigma
    euler = (z * (alpha_then / alpha * ratio)).add_(x_hat, alpha=alpha_then * (1 - ratio))
    if sigma_then == 0:
        return euler, x_hat
    correction = 0.5 * alpha_then * (1 / ratio - 1)
    # The difference first: at large steps the correction is large, and of either alone float32 loses what is left.
    return euler.add_(denoise(euler, then) - x_hat, alpha=correction), x_hat


Sampler = Declaration
"""A declared step with all its parameters; `usual` of its traits: how it is walked where nothing else is asked for."""


def parse_sampler(text: str) -> Sampler:
    """The sampler that a user wrote: `ddim`, `heun:s_churn=40`, `heun:edm-imagenet64,s_churn=20`.

    A preset, if any, comes first; further parameters override it. Raises UsageError.
    """
    name, _, words = text.strip().partition(":")
    declared = SAMPLERS.find(name)
    first, _, rest = words.partition(",")
    traits = declared.traits
    if first in traits.presets:
        preset, words = traits.presets[first], rest
        declared = replace(declared.bind(preset.params), traits=traits._replace(grid=preset.grid, steps=preset.steps))
    return declared.bind(parse_spec(f"{name}:{words}")[1])


def time_grid(schedule: Schedule, steps: int, spacing: Declaration | None = None) -> list[float]:
    """`steps` + 1 levels of a schedule, as one of SPACINGS chooses them, then inf (clean). spacing: None is the usual one.

    Raises UsageError when the schedule doesn't have so many.
    """
    return [*(spacing or usual_spacing(schedule))(schedule, steps), math.inf]


def no_noise() -> NoReturn:
    """A draw that a walk without noise never makes. Raises UsageError."""
    raise UsageError(
        "a sampler that adds noise doesn't serve here; take one without it (dpmpp-2m, heun without churn), or ddpm"
    )


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
        z, last = sampler(z, last, move, denoise, drawn)
    return z
