"""Samplers: pure functions for one step from λ to a higher λ, declared by name, and the walk along a grid of λ.

A step gets z, which is variance preserving, and a denoiser D(z, λ) → x̂. λ = inf is clean data.
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
"""Denoiser D(z, λ) → (x̂, γ), where γ interpolates each value's log variance from small (0) to large (1), see `ddpm`."""
DrawNoise = Callable[[], "Tensor"]
STEPS = 128


class Move(NamedTuple):
    """Step from λ = now to λ = then > now.

    before: λ at the start of the previous step; −inf in the first step. steps: number of steps of the whole walk.
    """

    now: float
    then: float
    before: float = -math.inf
    steps: int = 1

    @property
    def width(self) -> float:
        """Step size h = Δ log(α/σ) = Δλ/2, as in the literature on solvers."""
        return 0.5 * (self.then - self.now)

    @property
    def scales(self) -> tuple[float, float, float, float]:
        """α and σ at `now`, then at `then`."""
        return (*alpha_sigma(self.now), *alpha_sigma(self.then))


class SamplerPreset(NamedTuple):
    """Published settings of a sampler: schedule of its noise levels (grid), number of steps, and parameters."""

    grid: str
    steps: int = STEPS
    params: Mapping[str, float] = {}
    source: str = ""


class SamplerTraits(NamedTuple):
    """Facts about a sampler. grid, steps: default schedule and number of steps. presets: published settings by name.
    learned: whether the sampler needs a DenoiseWithVariance. ancestral: whether steps draw from q(z' | z, x̂), with noise.
    """

    grid: str
    steps: int = STEPS
    presets: Mapping[str, SamplerPreset] = {}
    learned: bool = False
    ancestral: bool = False


SAMPLERS = Registry("sampler", SamplerTraits)
"""Samplers: functions (z [B, …], last, move, denoise, noise, parameters) → (z at move.then, x̂).

last: x̂ of the previous step, for multistep methods; None in the first step. move: the step, a Move.
denoise: function (z, λ) → x̂, or a DenoiseWithVariance. noise: function () → standard normal noise, shaped like z.
"""
sampler = SAMPLERS.declare


@sampler("ddim", formula="alpha' x_hat + sigma' eps_hat", source="Song et al. 2021", grid="cosine", known_as=["euler"])
def ddim(z, last, move, denoise, noise):
    """Return α' x̂ + σ' ε̂ with ε̂ = (z − α x̂)/σ, a first-order step."""
    alpha, sigma, alpha_then, sigma_then = move.scales
    x_hat = denoise(z, move.now)
    ratio = sigma_then / sigma
    return (z * ratio).add_(x_hat, alpha=alpha_then - alpha * ratio), x_hat


def ancestor(z, x_hat, move, noise, gamma):
    """Draw z' from q(z' | z, x̂), or return the mean if σ' = 0. gamma: number or tensor that sets the variance as in `ddpm`."""
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
    """Draw from q(z' | z, x̂) with a variance between c σ'² (small, gamma 0) and c σ² (large, gamma 1), c = 1 − e^{λ−λ'}.

    gamma interpolates the log variance, as in simple diffusion.
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
    """Make a ddpm step with γ = (v + 1)/2, where the network outputs v in addition to its prediction."""
    x_hat, gamma = denoise(z, move.now)
    return ancestor(z, x_hat, move, noise, gamma), x_hat


def advance(z, x_hat, last, move, eta=0.0):
    """Return the mean of z' under dy = (1 + η)(x̂ − y) dℓ + √(2η) e^{−ℓ} dW, with y = z/α and ℓ = log(α/σ) = λ/2.

    For constant x̂, y' is exactly e^{−(1+η)h} y + (1 − e^{−(1+η)h}) x̂ with h = Δℓ. The method replaces x̂ by its value at the
    midpoint of the step, extrapolated linearly from the last x̂ and this x̂. The first step, and the step to clean data, use
    x̂ itself. η = 0 is the probability-flow ODE.
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
    """Make a second-order step of DPM-Solver++ with one network evaluation, using x̂ of the previous step."""
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
    """Make a step of dpmpp-2m with added noise. eta: amount of noise; 1: the reverse SDE; the limit 0: dpmpp-2m.

    With y, ℓ and h as in `advance`, the variance of y' is ∫ 2η e^{−2ℓ} e^{−2(1+η)(ℓ'−ℓ)} dℓ over the step,
    which is e^{−2ℓ'} (1 − e^{−2ηh}).
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
    """Make a step of Heun's method, second order: an Euler step in y = z/α with d = (y − x̂)/σ_edm, then the mean of both d.

    The correction of the Euler step is (σ' − σ)(d₂ − d₁)/2, with d₂ − d₁ = (x̂₁ − x̂₂)/σ'.
    s_churn: amount of noise added before steps with s_min ≤ σ_edm ≤ s_max, in total over all steps of the walk.
    s_noise: factor on the standard deviation of this noise.
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
    # Subtract first: for large steps the correction factor is large, and float32 would lose the difference to cancellation.
    return euler.add_(denoise(euler, then) - x_hat, alpha=correction), x_hat


Sampler = Declaration
"""Sampler: a declared step with its parameters; its traits have the default grid and number of steps."""


def parse_sampler(text: str) -> Sampler:
    """Return the sampler of a SPEC: `ddim`, `heun:s_churn=40`, `heun:edm-imagenet64,s_churn=20`.

    A preset comes first in the SPEC; parameters after it override the preset's. Raises UsageError.
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
    """Return the noise levels of a walk: the λ at which `steps` steps start, rising, then inf for clean data.

    spacing: one of SPACINGS; None for the default. Raises UsageError if the schedule has too few timesteps.
    """
    return [*(spacing or usual_spacing(schedule))(schedule, steps), math.inf]


def no_noise() -> NoReturn:
    """Raise UsageError. Pass this function as the noise function where a sampler must not draw noise."""
    raise UsageError("this sampler adds noise; give one without noise (dpmpp-2m, or heun without churn), or for 'elbo grid' ddpm")


def walk(
    sampler: Sampler,
    z: Tensor,
    grid: list[float],
    denoise: Denoise | DenoiseWithVariance,
    noise: DrawNoise,
    every_step: bool = False,
) -> Tensor:
    """Walk from noise z [B, …] at grid[0] to data at grid[-1], and return the data.

    grid: rising λ; inf is clean data. denoise: a DenoiseWithVariance for samplers whose traits have `learned`.
    noise: function that draws noise shaped like z.
    every_step: draw noise once in every step, even in steps that add none, as EDM does.
    """
    last = None
    for before, now, then in zip([-math.inf, *grid], grid, grid[1:]):
        move = Move(now, then, before, len(grid) - 1)
        drawn = itertools.repeat(noise()).__next__ if every_step else noise
        z, last = sampler(z, last, move, denoise, drawn)
    return z
