"""Samplers, which step from λ to a higher λ, and `walk`, which steps from noise to data.

A sampler is a function (z [B, …], last, move, denoise, noise, parameters) → (z', x̂). move: the step's λ, α and σ.
z is variance preserving; λ = inf is clean data. z', α', σ': values at the end of the step. denoise: function (z, λ) → x̂.
last: x̂ of the previous step; None in the first step. noise: function () → standard normal noise, shaped like z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from elbocli.core.prediction import alpha_sigma
from elbocli.core.registry import Declaration, NotNegative, Positive, Registry, UnitInterval
from elbocli.errors import Parameter, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from elbocli.core.prediction import Prediction
    from elbocli.core.schedule import Schedule


Denoise = Callable[["Tensor", float], "Tensor"]
DenoiseWithVariance = Callable[["Tensor", float], tuple["Tensor", "Tensor"]]  # (z, λ) → (x̂, gamma of `ddpm`)
DrawNoise = Callable[[], "Tensor"]
Stepped = tuple["Tensor", "Tensor"]  # (next z, x̂)
USUAL = "dpmpp-2m"  # of all commands and of training, unless chosen: docs/samplers.md#which-sampler


class Move(NamedTuple):
    """Step of a sampler from λ = now to λ = then, which is higher.

    before: λ at the start of the previous step; −inf in the first step.
    steps: number of steps from noise to data.
    """

    now: float
    then: float
    before: float = -math.inf
    steps: int = 1

    @property
    def width(self) -> float:
        """Step size h = Δλ/2, the change of log(α/σ)."""
        return 0.5 * (self.then - self.now)

    @property
    def scales(self) -> tuple[float, float, float, float]:
        """α and σ at `now`, then α and σ at `then`."""
        return (*alpha_sigma(self.now), *alpha_sigma(self.then))


@dataclass(frozen=True, repr=False)
class Sampler(Declaration[["Tensor", "Tensor | None", Move, Denoise | DenoiseWithVariance, DrawNoise], Stepped]):
    """Declared sampler, with values of its parameters.

    grid: default schedule of the noise levels. steps: default number of them.
    spacing: name of the default spacing of the noise levels; "": that of the schedule.
    learned: whether the denoiser must be a DenoiseWithVariance.
    """

    grid: str = field(kw_only=True)
    steps: int = field(default=25, kw_only=True)
    spacing: str = field(default="", kw_only=True)
    learned: bool = field(default=False, kw_only=True)


def check_sampler(declared: Sampler) -> None:
    """Raise PluginError unless a sampler makes two steps and returns a next z and an x̂ from each."""
    import torch

    z = torch.zeros(2, 1, 4, 4)
    denoise = (lambda z, logsnr: (z / 2, z / 2)) if declared.learned else (lambda z, logsnr: z / 2)
    walk(declared, z, [-1.0, 1.0, math.inf], denoise, lambda: torch.zeros_like(z))


SAMPLERS = Registry("sampler", Sampler, check_sampler)
sampler = SAMPLERS.declare


@sampler("ddim", formula="alpha' x_hat + sigma' eps_hat", source="Song et al. 2021", grid="cosine", known_as=["euler"])
def ddim(z: Tensor, last: Tensor | None, move: Move, denoise: Denoise, noise: DrawNoise) -> Stepped:
    alpha, sigma, alpha_then, sigma_then = move.scales
    x_hat = denoise(z, move.now)
    ratio = sigma_then / sigma
    return (z * ratio).add_(x_hat, alpha=alpha_then - alpha * ratio), x_hat


def ancestor(z: Tensor, x_hat: Tensor, move: Move, noise: DrawNoise, gamma: float | Tensor) -> Tensor:
    """Draw z' from q(z' | z, x̂); if σ' = 0, return the mean.

    move: a Move. gamma: number or tensor that sets the variance, as in `ddpm`.
    """
    alpha, sigma, alpha_then, sigma_then = move.scales
    kept = math.exp(-2 * move.width)
    fresh = -math.expm1(-2 * move.width)
    mean = (z * (kept * alpha_then / alpha)).add_(x_hat, alpha=fresh * alpha_then)
    if sigma_then == 0:
        return mean
    small = math.log(fresh * sigma_then**2)
    large = math.log(fresh * sigma**2)
    log_variance = (1 - gamma) * small + gamma * large
    if isinstance(log_variance, float):
        return mean.add_(noise(), alpha=math.exp(0.5 * log_variance))
    return mean.addcmul_(noise(), log_variance.mul_(0.5).exp_())


@sampler(
    "ddpm",
    formula="ancestral; variance small^(1-gamma) large^gamma",
    source="Ho et al. 2020; Kingma et al. 2021",
    grid="cosine",
    steps=128,
    known_as=["euler-ancestral:gamma=0", "euler-a:gamma=0"],
)
def ddpm(z: Tensor, last: Tensor | None, move: Move, denoise: Denoise, noise: DrawNoise, gamma: UnitInterval = 0.2) -> Stepped:
    """Make an ancestral step: draw z' from q(z' | z, x̂).

    gamma: the variance is small^(1−gamma) large^gamma, with small = c σ'², large = c σ² and c = 1 − e^{λ−λ'}.
    """
    x_hat = denoise(z, move.now)
    return ancestor(z, x_hat, move, noise, gamma), x_hat


@sampler(
    "ddpm-learned",
    formula="as ddpm, with the gamma that the network gives for each value",
    source="Nichol & Dhariwal 2021, eq. 15",
    grid="cosine",
    steps=128,
    learned=True,
)
def ddpm_learned(z: Tensor, last: Tensor | None, move: Move, denoise: DenoiseWithVariance, noise: DrawNoise) -> Stepped:
    x_hat, gamma = denoise(z, move.now)
    return ancestor(z, x_hat, move, noise, gamma), x_hat


def advance(z: Tensor, x_hat: Tensor, last: Tensor | None, move: Move, eta: float = 0.0) -> Tensor:
    """Return the mean of the next z by a step of DPM-Solver++(2M), or of its SDE version.

    Solves dy = (1 + η)(x̂ − y) dℓ + √(2η) e^{−ℓ} dW, with y = z/α and ℓ = log(α/σ) = λ/2.
    move: the step, a Move. x_hat: x̂ at its start. last: x̂ of the previous step; None: there is none.
    eta: amount of noise η; 0: the probability-flow ODE.
    """
    # For constant x̂ the mean is exact: e^{−(1+η)h} y + (1 − e^{−(1+η)h}) x̂. x̂ is extrapolated to the middle of the step.
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
def dpmpp_2m(z: Tensor, last: Tensor | None, move: Move, denoise: Denoise, noise: DrawNoise) -> Stepped:
    """Make a second-order step of DPM-Solver++ with one network evaluation."""
    x_hat = denoise(z, move.now)
    return advance(z, x_hat, last, move), x_hat


@sampler(
    "dpmpp-2m-sde",
    formula="as dpmpp-2m, with sigma' sqrt(1 - e^(-2 eta h)) of fresh noise",
    source="Lu et al. 2022: SDE-DPM-Solver++(2M), midpoint",
    grid="edm-sample",
    known_as=["dpm++-2m-sde", "sde-dpm-solver++(2m)"],
)
def dpmpp_2m_sde(z: Tensor, last: Tensor | None, move: Move, denoise: Denoise, noise: DrawNoise, eta: Positive = 1.0) -> Stepped:
    """Make a step of dpmpp-2m with added noise.

    eta: amount of noise, above 0; 1: the reverse SDE.
    """
    x_hat = denoise(z, move.now)
    mean = advance(z, x_hat, last, move, eta)
    # Var(y') = ∫ 2η e^{−2ℓ} e^{−2(1+η)(ℓ'−ℓ)} dℓ over the step = e^{−2ℓ'} (1 − e^{−2ηh}), with y and ℓ as in `advance`.
    spread = move.scales[3] * math.sqrt(-math.expm1(-2 * eta * move.width))
    return (mean.add_(noise(), alpha=spread) if spread else mean), x_hat


@sampler(
    "heun",
    formula="Heun in y = z/alpha, or in y = z/(alpha + sigma/noise_scale) with space=path; with churn",
    source="Karras et al. 2022, algorithm 2; Ma et al. 2024 (SiT) for path; Li & He 2025 (JiT) for least",
    grid="edm-sample",
    known_as=[
        "edm:space=edm",
        "edm-imagenet64:s_churn=40,s_min=0.05,s_max=50,s_noise=1.003,space=edm",  # table 5
        "jit:space=path,least=0.05",
    ],
)
def heun(
    z: Tensor,
    last: Tensor | None,
    move: Move,
    denoise: Denoise,
    noise: DrawNoise,
    s_churn: NotNegative = 0.0,
    s_min: NotNegative = 0.0,
    s_max: NotNegative = 1e5,
    s_noise: NotNegative = 1.0,
    space: Literal["auto", "edm", "path"] = "auto",
    least: NotNegative = 0.0,
    noise_scale: Positive = 1.0,
) -> Stepped:
    """Make a second-order step of Heun's method, after adding noise if s_churn > 0.

    s_churn: total relative growth of σ_edm by added noise; each step adds s_churn/steps, or √2 − 1 if that is smaller.
    s_min, s_max: noise is added only if s_min ≤ σ_edm ≤ s_max.
    s_noise: factor on the added noise's standard deviation.
    space: variable of the equation: `edm` is z/α, `path` is (1−τ)x + τε; `auto` is the choice of `choose_space`, else `edm`.
    least: JiT's bound: slopes are divided by max(τ, least), not by τ. noise_scale: factor of ε on the path.
    """
    now, then, _, steps = move
    z = z.double() if space == "path" else z  # (x̂₁ − x̂₂)/τ' keeps the digits of the network's output as τ' → 0
    sigma = math.exp(-now / 2)
    sigma_then = math.exp(-then / 2)
    growth = min(s_churn / steps, math.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
    if growth > 0:
        noisier = sigma * (1 + growth)
        alpha_from = alpha_sigma(now)[0]
        now = -2 * math.log(noisier)
        alpha = alpha_sigma(now)[0]
        z = (z * (alpha / alpha_from)).add_(noise(), alpha=alpha * s_noise * math.sqrt(noisier**2 - sigma**2))
        sigma = noisier
    # Both spaces have dy/dτ = (y − x̂)/τ. With odds = σ/α/noise_scale, the path has τ = odds/(1 + odds) and y = z/α/(1 + odds),
    # and EDM has τ = odds and y = z/α.
    odds = sigma / noise_scale
    odds_then = sigma_then / noise_scale
    stretch, stretch_then = (1 + odds, 1 + odds_then) if space == "path" else (1.0, 1.0)
    scale = alpha_sigma(now)[0] * stretch
    scale_then = alpha_sigma(then)[0] * stretch_then
    tau = odds / stretch
    tau_then = odds_then / stretch_then

    def estimate(z: Tensor, logsnr: float, scale: float, tau: float) -> Tensor:
        x_hat = denoise(z, logsnr)
        return x_hat if tau >= least else (z / scale).lerp(x_hat, tau / least)  # the slope of this x̂ is (y − x̂)/least

    x_hat = estimate(z, now, scale, tau)
    ratio = tau_then / tau
    euler = (z * (scale_then / scale * ratio)).add_(x_hat, alpha=scale_then * (1 - ratio))
    if sigma_then == 0:
        return euler, x_hat
    # With d = (y − x̂)/τ, the correction is (τ' − τ)(d₂ − d₁)/2, where d₂ − d₁ = (x̂₁ − x̂₂)/τ'.
    correction = 0.5 * scale_then * (1 / ratio - 1)
    # Subtract first: for large steps the correction factor is large, and float32 would lose the difference to cancellation.
    return euler.add_(estimate(euler, then, scale_then, tau_then) - x_hat, alpha=correction), x_hat


DIFFUSIONS: dict[
    str, Callable[[float, float], float]
] = {  # form → function (τ, norm) → diffusion coefficient g; Ma et al. 2024 (SiT), at their time t = 1 − τ
    "constant": lambda tau, norm: norm,
    "sbdm": lambda tau, norm: norm * tau / (1 - tau),
    "sigma": lambda tau, norm: norm * tau,
    "linear": lambda tau, norm: norm * tau,  # differs from sigma on other paths only
    "decreasing": lambda tau, norm: (1 - norm * math.cos(math.pi * tau)) ** 2 / 4,
    "increasing-decreasing": lambda tau, norm: norm * math.sin(math.pi * tau) ** 2,
}


@sampler(
    "euler-maruyama",
    formula="Euler-Maruyama for dy = (v + g s) dt + sqrt(2 g) dW in y = z/(alpha + sigma), v velocity, s score",
    source="Ma et al. 2024 (SiT), arXiv:2401.08740, sec. 2; Yu et al. 2025 (REPA)",
    grid="fm-ot",
    steps=250,
    spacing="sit",
    known_as=["sit-sde", "repa-sde"],
)
def euler_maruyama(
    z: Tensor,
    last: Tensor | None,
    move: Move,
    denoise: Denoise,
    noise: DrawNoise,
    diffusion: Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"] = "sigma",
    norm: NotNegative = 1.0,
    last_step: Literal["mean", "tweedie"] = "mean",
) -> Stepped:
    """Make an Euler-Maruyama step of dy = (v + g s) dt + √(2g) dW on the flow path y = (1−τ)x + τε, with t = 1 − τ.

    v = x̂ − ε̂ is the velocity towards data, s = −ε̂/τ the score. With exact x̂, the distribution of y at each time is the same
    for every g ≥ 0; g = 0 is the probability-flow ODE. g depends on time alone, so the strong order is 1.
    diffusion: form of g, a key of DIFFUSIONS. `sbdm` is σ/α, which is infinite at τ = 1; SiT begins at .999 with it.
    norm: size of g.
    last_step: step to clean data, without noise. `mean`: x̂ − g ε̂, which takes away too much noise where g is large, as with
        `constant`. `tweedie`: x̂, which is also Euler's step with g = 0.
    """
    mean, x_hat = ddim(z, last, move, denoise, noise)  # y + h v
    alpha, sigma, alpha_then, sigma_then = move.scales
    if sigma_then == 0 and last_step == "tweedie":
        return mean, x_hat
    tau = sigma / (alpha + sigma)
    stretch = alpha_then + sigma_then
    h = tau - sigma_then / stretch
    g = DIFFUSIONS[diffusion](tau, norm)
    eps_hat = (z - alpha * x_hat).div_(sigma)
    mean.sub_(eps_hat, alpha=stretch * h * g / tau)
    return (mean.add_(noise(), alpha=stretch * math.sqrt(2 * g * h)) if sigma_then else mean), x_hat


parse_sampler = SAMPLERS.parse


def choose_space(sampler: Sampler, prediction: Prediction, schedule: Schedule | None = None) -> Sampler:
    """Return a sampler with `space=auto` replaced by `path` or `edm`.

    `path`: the network takes (1−τ)x + τε, or the schedule of the noise levels draws τ.
    prediction: of the network. schedule: of the noise levels; None: levels without a named schedule.
    """
    if sampler.params.get("space") != "auto":
        return sampler
    path = prediction.path or (schedule is not None and schedule.path)
    return sampler.bind({"space": "path" if path else "edm"})


def no_noise() -> NoReturn:
    """Raise UsageError; use as `noise` of samplers that must not draw noise."""
    raise UsageError(Parameter("sampler"), ": adds noise; for 'elbo grid' choose dpmpp-2m, or heun with s_churn=0")


def walk(
    sampler: Sampler,
    z: Tensor,
    grid: list[float],
    denoise: Denoise | DenoiseWithVariance,
    noise: DrawNoise,
) -> Tensor:
    """Make all steps of a sampler, from noise to data, and return the data.

    z: noise [B, …], at λ = grid[0]. grid: rising λ; inf is clean data.
    Raises PluginError if the sampler returns something else than the next z and x̂.
    """
    last = None
    for before, now, then in zip([-math.inf, *grid], grid, grid[1:]):
        move = Move(now, then, before, len(grid) - 1)
        made = sampler(z, last, move, denoise, noise)
        if not isinstance(made, tuple) or [getattr(part, "shape", None) for part in made] != [z.shape, z.shape]:
            raise sampler.fault(
                f"doesn't return a pair (next z, x_hat) of tensors of z's shape, {[*z.shape]}; return such a pair"
            )
        z, last = made
    return z


def purpose_of(sampler: Sampler, steps: int, guidance: float) -> str:
    """Say what a grid of noise levels is for, such as 'heun, 18 steps, guidance 2'."""
    return f"{sampler.spec}, {steps} steps" + (f", guidance {guidance:g}" if guidance != 1 else "")
