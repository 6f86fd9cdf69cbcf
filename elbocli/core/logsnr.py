"""The log signal-to-noise ratio λ = log(α²/σ²), variance preserving: α² = sigmoid(λ), σ² = sigmoid(−λ)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 50.0
"""No run goes further than |λ| = 50: every formula of ours stays within float64 there."""


def alpha(logsnr: Tensor) -> Tensor:
    """Scale of the data in z = αx + σε."""
    return logsnr.sigmoid().sqrt()


def sigma(logsnr: Tensor) -> Tensor:
    """Scale of the noise. From sigmoid(−λ): 1 − sigmoid(λ) loses all digits at λ ≈ 17 in float32."""
    return (-logsnr).sigmoid().sqrt()


def logsnr_of(sigma_edm: float) -> float:
    """λ = −2 ln σ_edm; σ_edm = σ/α is the noise level of EDM (Karras et al. 2022)."""
    return -2.0 * math.log(sigma_edm)


def alpha_sigma(logsnr: float) -> tuple[float, float]:
    """(α, σ) of one λ as Python floats; λ = inf is clean data."""
    if logsnr >= 0:
        odds = math.exp(-logsnr)
        return math.sqrt(1 / (1 + odds)), math.sqrt(odds / (1 + odds))
    odds = math.exp(logsnr)
    return math.sqrt(odds / (1 + odds)), math.sqrt(1 / (1 + odds))


def resolution_shift(image_size: int) -> float:
    """2 log(64/d): the shift of λ that keeps coarse detail as noisy at d pixels as at 64.

    Source: Hoogeboom et al. 2023 (simple diffusion), eq. 4, in natural log of SNR.
    """
    return 2.0 * math.log(64.0 / image_size)
