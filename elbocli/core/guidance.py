"""Guidance by a weaker estimate, on an interval of λ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """out = weak + scale · (strong − weak), where low ≤ λ ≤ high; strong elsewhere.

    Weak is the same network without the class (classifier-free), or a worse network (autoguidance). Scale 1 is no
    guidance, 0 the weak one alone. channels: so many from the first are guided, 0 is all. Every prediction is linear in ε̂ at fixed z, so this is the same for all of them.
    Source: Ho & Salimans 2022; Karras et al. 2024 for autoguidance; Kynkäänniemi et al. 2024 for the interval.
    Raises UsageError when the interval is empty.
    """

    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    channels: int = 0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(
                f"the guidance interval {self.low:g} to {self.high:g} is empty; give the lower logsnr first"
            )

    def active(self, logsnr: float) -> bool:
        """Tell whether the weak output is needed at this λ."""
        return self.scale != 1.0 and self.low <= logsnr <= self.high

    def combine(self, strong: Tensor, weak: Tensor) -> Tensor:
        """Both outputs [B, C, …] at the same z and λ → the guided one."""
        if not self.channels:
            return weak.lerp(strong, self.scale)
        guided = strong.clone()
        some = slice(None), slice(self.channels)
        guided[some] = weak[some].lerp(strong[some], self.scale)
        return guided
