"""The probability-flow equation by Euler's method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elbocli.core.samplers import Denoise, DrawNoise, Move, sampler

if TYPE_CHECKING:
    from torch import Tensor


@sampler("ddim", formula="alpha' x_hat + sigma' eps_hat", source="Song et al. 2021", grid="cosine", known_as=["euler"])
def ddim(z: Tensor, last: Tensor | None, move: Move, denoise: Denoise, noise: DrawNoise) -> tuple[Tensor, Tensor]:
    """α' x̂ + σ' ε̂ with ε̂ = (z − α x̂)/σ: first order."""
    alpha, sigma, alpha_then, sigma_then = move.scales
    x_hat = denoise(z, move.now)
    ratio = sigma_then / sigma
    return (z * ratio).add_(x_hat, alpha=alpha_then - alpha * ratio), x_hat
