"""Log-SNR λ = log(α²/σ²), and the quantities that a network may predict from z = αx + σε.

Variance preserving: α² = sigmoid(λ), σ² = sigmoid(−λ).

Every target is a·x + b·ε. With d = αb − σa, and the network's output out:
  x̂ = (b·z − σ·out)/d,   ε̂ = (α·out − a·z)/d,   ‖ε−ε̂‖² = (α/d)² ‖target−out‖².
Source: Kingma & Gao 2023, appendix on parameterizations; Karras et al. 2022, table 1, for `edm`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from elbocli.core.registry import Declaration, Positive, Registry

if TYPE_CHECKING:
    from torch import Tensor


LIMIT = 50.0  # largest |λ| of any run. Up to LIMIT, all formulas stay within float64 range.


def alpha(logsnr: Tensor) -> Tensor:
    """Return α, the scale of the data in z = αx + σε."""
    return logsnr.sigmoid().sqrt()


def sigma(logsnr: Tensor) -> Tensor:
    """Return σ, the scale of the noise in z = αx + σε."""
    return (-logsnr).sigmoid().sqrt()  # 1 − sigmoid(λ) would be 0 in float32 if λ > 17


def logsnr_of(sigma_edm: float) -> float:
    """Return λ = −2 ln σ_edm for the noise level σ_edm = σ/α."""
    return -2.0 * math.log(sigma_edm)


def alpha_sigma(logsnr: float) -> tuple[float, float]:
    """Return (α, σ) at one λ; λ = inf is clean data."""
    odds = math.exp(-abs(logsnr))
    large = math.sqrt(1 / (1 + odds))
    small = math.sqrt(odds / (1 + odds))
    return (large, small) if logsnr >= 0 else (small, large)


def resolution_shift(image_size: int) -> float:
    """Return the shift of λ for an image size: 2 log(64 / image_size).

    Source: Hoogeboom et al. 2023 (simple diffusion), eq. 4.
    """
    return 2.0 * math.log(64.0 / image_size)


Scales = tuple["Tensor", "Tensor", "Tensor"]


@dataclass(frozen=True, repr=False)
class NamedPrediction(Declaration[["Tensor", "Tensor"], Scales]):
    """Declared prediction, a function (α, σ) → (a, b, c_in): target = a·x + b·ε, network's input = c_in·z.

    path: whether the network's input is (1−τ)x + τε.
    """

    path: bool = field(default=False, kw_only=True)


PREDICTIONS = Registry("prediction", NamedPrediction)


@PREDICTIONS.declare("eps", formula="eps", source="Ho et al. 2020", known_as=["epsilon", "noise", "eps-prediction", "pred-noise"])
def eps(alpha: Tensor, sigma: Tensor) -> Scales:
    return alpha * 0, alpha * 0 + 1, alpha * 0 + 1


@PREDICTIONS.declare(
    "eps-path",
    formula="eps, of a network that sees (1-t) x + t eps",
    source="Li & He 2025 (JiT), table 2: eps whose input is not scaled to constant variance",
    path=True,
)
def eps_path(alpha: Tensor, sigma: Tensor) -> Scales:
    return alpha * 0, alpha * 0 + 1, 1 / (alpha + sigma)


@PREDICTIONS.declare(
    "x",
    formula="x",
    source="Salimans & Ho 2022",
    known_as=["x0", "x-0", "x-start", "sample", "x-prediction", "pred-x0"],
)
def x(alpha: Tensor, sigma: Tensor) -> Scales:
    return alpha * 0 + 1, alpha * 0, alpha * 0 + 1


@PREDICTIONS.declare(
    "x-path",
    formula="x, of a network that sees (1-t) x + t noise_scale eps",
    source="Li & He 2025 (JiT), arXiv:2511.13720: x whose input is not scaled to constant variance",
    path=True,
)
def x_path(alpha: Tensor, sigma: Tensor, noise_scale: Positive = 1.0) -> Scales:
    return alpha * 0 + 1, alpha * 0, 1 / (alpha + sigma / noise_scale)


@PREDICTIONS.declare("v", formula="alpha eps - sigma x", source="Salimans & Ho 2022", known_as=["v-prediction", "pred-v"])
def v(alpha: Tensor, sigma: Tensor) -> Scales:
    return -sigma, alpha, alpha * 0 + 1


@PREDICTIONS.declare(
    "u",
    formula="eps - x",
    source="Lipman et al. 2022: velocity of the optimal-transport path",
    known_as=["flow", "flow-prediction", "flow-matching", "rf", "rectified-flow"],
)
def u(alpha: Tensor, sigma: Tensor) -> Scales:
    return alpha * 0 - 1, alpha * 0 + 1, alpha * 0 + 1


@PREDICTIONS.declare(
    "u-path",
    formula="eps - x, of a network that sees (1-t) x + t eps",
    source="Lipman et al. 2022; Ma et al. 2024 (SiT): u whose input is not scaled to constant variance",
    path=True,
)
def u_path(alpha: Tensor, sigma: Tensor) -> Scales:
    return alpha * 0 - 1, alpha * 0 + 1, 1 / (alpha + sigma)


@PREDICTIONS.declare(
    "edm",
    formula="F of EDM's preconditioning",
    source="Karras et al. 2022, table 1",
    known_as=["karras"],
)
def edm(alpha: Tensor, sigma: Tensor, sigma_data: Positive = 0.5) -> Scales:
    scale = (sigma.square() + (sigma_data * alpha).square()).sqrt()
    return sigma / sigma_data / scale, -sigma_data * alpha / scale, 1 / scale


class Coefficients(NamedTuple):
    """Coefficients at given λ; every field has the shape of λ.

    alpha, sigma: z = alpha·x + sigma·ε.
    a, b: target = a·x + b·ε.
    c_in: input of the network = c_in·z.
    x_from_z, x_from_out: x̂ = x_from_z·z + x_from_out·output.
    eps_factor: squared error of ε / squared error of the target.
    """

    alpha: Tensor
    sigma: Tensor
    a: Tensor
    b: Tensor
    c_in: Tensor
    x_from_z: Tensor
    x_from_out: Tensor
    eps_factor: Tensor


class Prediction:
    """Quantity that a network predicts. text: such as `v` or `edm:sigma_data=0.5`. Raises UsageError for an unknown name."""

    def __init__(self, text: str):
        self.declared = PREDICTIONS.parse(text)
        self.spec = self.declared.spec

    def __repr__(self) -> str:
        return f"Prediction({self.spec!r})"

    @property
    def path(self) -> bool:
        """Whether the network's input is (1−τ)x + τε."""
        return self.declared.path

    def coefficients(self, logsnr: Tensor) -> Coefficients:
        """Return the coefficients at each λ. logsnr: any shape, float64."""
        signal = alpha(logsnr)
        noise = sigma(logsnr)
        a, b, c_in = self.declared(signal, noise)
        d = signal * b - noise * a
        return Coefficients(signal, noise, a, b, c_in, b / d, -noise / d, (signal / d).square())

    @lru_cache(maxsize=4096)  # noqa: B019 - a run has one prediction
    def scalars(self, logsnr: float) -> tuple[float, float, float]:
        """Return c_in, and the factors of z and of the network's output in x̂, at one λ."""
        import torch

        c = self.coefficients(torch.tensor([logsnr], dtype=torch.float64))
        return float(c.c_in), float(c.x_from_z), float(c.x_from_out)
