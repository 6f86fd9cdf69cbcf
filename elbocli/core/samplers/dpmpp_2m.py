"""DPM-Solver++(2M): the probability-flow equation with x̂ extrapolated from its last two values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from elbocli.core.samplers import Denoise, DrawNoise, Move, sampler

if TYPE_CHECKING:
    from torch import Tensor


def advance(z: Tensor, x_hat: Tensor, last: Tensor | None, move: Move, eta: float = 0.0) -> Tensor:
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
    least=3,
    known_as=["dpm++-2m", "dpmpp", "dpm++", "dpm-solver++", "dpm-solver++(2m)"],
)
def dpmpp_2m(z: Tensor, last: Tensor | None, move: Move, denoise: Denoise, noise: DrawNoise) -> tuple[Tensor, Tensor]:
    """Second order at one evaluation a step."""
    x_hat = denoise(z, move.now)
    return advance(z, x_hat, last, move), x_hat
