"""Ancestral sampling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from elbocli.core.samplers import Denoise, DrawNoise, Move, sampler

if TYPE_CHECKING:
    from torch import Tensor


def ancestor(z: Tensor, x_hat: Tensor, move: Move, noise: DrawNoise, gamma: float | Tensor) -> Tensor:
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
def ddpm(
    z: Tensor, last: Tensor | None, move: Move, denoise: Denoise, noise: DrawNoise, gamma: float = 0.2
) -> tuple[Tensor, Tensor]:
    """A draw from q(z' | z, x̂), whose variance is c σ'² (small), or from one with c σ² (large), c = 1 − e^{λ−λ'}.

    gamma interpolates their logarithms, as in simple diffusion.
    """
    x_hat = denoise(z, move.now)
    return ancestor(z, x_hat, move, noise, gamma), x_hat
