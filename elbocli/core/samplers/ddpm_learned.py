"""Ancestral sampling with a variance that the network learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elbocli.core.samplers import DenoiseWithVariance, DrawNoise, Move, sampler
from elbocli.core.samplers.ddpm import ancestor

if TYPE_CHECKING:
    from torch import Tensor


@sampler(
    "ddpm-learned",
    formula="as ddpm, with the gamma that the network gives for each value",
    source="Nichol & Dhariwal 2021, eq. 15",
    grid="cosine",
    learned=True,
    ancestral=True,
)
def ddpm_learned(
    z: Tensor, last: Tensor | None, move: Move, denoise: DenoiseWithVariance, noise: DrawNoise
) -> tuple[Tensor, Tensor]:
    """ddpm with γ = (v + 1)/2 of a network that gives v beside its prediction."""
    x_hat, gamma = denoise(z, move.now)
    return ancestor(z, x_hat, move, noise, gamma), x_hat
