"""The probability-flow equation by Heun's method, with EDM's churn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from elbocli.core.logsnr import alpha_sigma
from elbocli.core.samplers import Denoise, DrawNoise, Move, SamplerPreset, sampler

if TYPE_CHECKING:
    from torch import Tensor


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
def heun(
    z: Tensor,
    last: Tensor | None,
    move: Move,
    denoise: Denoise,
    noise: DrawNoise,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = 1e5,
    s_noise: float = 1.0,
) -> tuple[Tensor, Tensor]:
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
