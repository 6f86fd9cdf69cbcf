"""One pure step per sampler, from λ to λ' > λ, and the grid of λ they walk.

A step sees z, which is variance preserving, and a denoiser D(z, λ) → x̂. λ' = inf is clean data.
Coefficients are Python floats in double precision; only z is a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from elbocli.core.logsnr import alpha_sigma
from elbocli.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from elbocli.core.schedule import Schedule

SAMPLERS = Registry("sampler")
Denoise = Callable[["Tensor", float], "Tensor"]
Noise = Callable[[], "Tensor"]


def sampler(name: str, *, formula: str, source: str, grid: str, **params: float) -> Callable[..., Any]:
    """Declare a step (z, now, then, steps, denoise, noise, **params) → z at `then`. grid: its usual schedule."""
    return SAMPLERS.declare(name, params, formula=formula, source=source, facts={"grid": grid})


@sampler(
    "ddpm",
    formula="ancestral; variance small^(1-gamma) large^gamma",
    source="Ho et al. 2020; Kingma et al. 2021",
    grid="cosine",
    gamma=0.2,
)
def ddpm(z: Tensor, now: float, then: float, steps: int, denoise: Denoise, noise: Noise, gamma: float) -> Tensor:
    (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(then)
    kept = math.exp(now - then)
    fresh = -math.expm1(now - then)
    x_hat = denoise(z, now)
    mean = (z * (kept * alpha_then / alpha)).add_(x_hat, alpha=fresh * alpha_then)
    if math.isinf(then):
        return mean
    small, large = math.log(fresh * sigma_then**2), math.log(fresh * sigma**2)
    return mean.add_(noise(), alpha=math.exp(0.5 * ((1 - gamma) * small + gamma * large)))


@sampler("ddim", formula="alpha' x_hat + sigma' eps_hat", source="Song et al. 2021", grid="cosine")
def ddim(z: Tensor, now: float, then: float, steps: int, denoise: Denoise, noise: Noise) -> Tensor:
    (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(then)
    ratio = sigma_then / sigma
    return (z * ratio).add_(denoise(z, now), alpha=alpha_then - alpha * ratio)


@sampler(
    "heun",
    formula="Heun in y = z/alpha, with churn",
    source="Karras et al. 2022, algorithm 2",
    grid="edm-sample",
    s_churn=0.0,
    s_min=0.0,
    s_max=1e5,
    s_noise=1.0,
)
def heun(
    z: Tensor,
    now: float,
    then: float,
    steps: int,
    denoise: Denoise,
    noise: Noise,
    s_churn: float,
    s_min: float,
    s_max: float,
    s_noise: float,
) -> Tensor:
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
        return euler
    half = 0.5 * (sigma_then - sigma)
    return (
        (z * (alpha_then / alpha * (1 + half / sigma)))
        .add_(x_hat, alpha=-alpha_then * half / sigma)
        .add_(euler, alpha=half / sigma_then)
        .add_(denoise(euler, then), alpha=-alpha_then * half / sigma_then)
    )


def time_grid(schedule: Schedule, steps: int) -> list[float]:
    """`steps` + 1 levels: λ(t) for t from 1 to 0 in equal steps, both ends included, then inf (clean)."""
    import torch

    t = torch.linspace(1, 0, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
    return [*schedule.logsnr(t).tolist(), math.inf]


def walk(name: str, params: dict[str, float], z: Tensor, grid: list[float], denoise: Denoise, noise: Noise) -> Tensor:
    """From noise z at grid[0] to data at grid[-1], by the declared sampler. Raises UsageError for an unknown one."""
    declared = SAMPLERS.find(name)
    bound = declared.bind(params)
    for now, then in pairwise(grid):
        z = declared.make(z, now, then, len(grid) - 1, denoise, noise, **bound)
    return z
