"""Changes of a denoiser's estimate while sampling: guidance by a weaker output, and clipping of x̂."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from elbocli.core.registry import Bounds, Declaration, Registry
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Guidance: weak + scale · (strong − weak) for low ≤ λ ≤ high; strong for other λ. Raises UsageError: low ≥ high.

    strong: network output with the class. weak: output without the class, or of a worse network (autoguidance).
    channels: number of leading channels to guide; 0: all.
    Source: Ho & Salimans 2022; Karras et al. 2024 for autoguidance; Kynkäänniemi et al. 2024 for the interval.
    """

    # Every prediction is linear in ε̂ at fixed z, so guidance is the same for all predictions.
    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    channels: int = 0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"the guidance interval {self.low:g} to {self.high:g} is empty; give the lower logsnr first")

    def active(self, logsnr: float) -> bool:
        return self.scale != 1.0 and self.low <= logsnr <= self.high

    def combine(self, strong: Tensor, weak: Tensor) -> Tensor:
        """Return the guided output. strong, weak: outputs [B, C, …] at the same z and λ."""
        if not self.channels:
            return weak.lerp(strong, self.scale)
        guided = strong.clone()
        some = slice(None), slice(self.channels)
        guided[some] = weak[some].lerp(strong[some], self.scale)
        return guided


NO_GUIDANCE = Guidance()


@dataclass(frozen=True, repr=False)
class Threshold(Declaration[["Tensor"], "Tensor"]):
    """Function x̂ [B, …] → clipped x̂."""


THRESHOLDS = Registry("threshold", Threshold)


@THRESHOLDS.declare("none", formula="x_hat")
def none(x_hat: Tensor) -> Tensor:
    return x_hat


@THRESHOLDS.declare("static", formula="x_hat cut to [-1, 1]", source="Ho et al. 2020")
def static(x_hat: Tensor) -> Tensor:
    return x_hat.clamp(-1, 1)


@THRESHOLDS.declare(
    "dynamic",
    formula="x_hat cut to [-s, s] and divided by s = max(1, percentile of |x_hat| in the image)",
    source="Saharia et al. 2022: Imagen",
)
def dynamic(x_hat: Tensor, percentile: Annotated[float, Bounds(0, 100, above=0)] = 99.5) -> Tensor:
    size = x_hat.abs().flatten(1)
    rank = math.ceil(percentile * size.shape[1] / 100)
    limit = size.kthvalue(rank, 1).values.clamp(min=1).view(-1, *[1] * (x_hat.dim() - 1))
    return x_hat.maximum(-limit).minimum(limit).div_(limit)
