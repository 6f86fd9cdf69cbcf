"""Pixel levels 0 to 255 as numbers in [-1, 1] or [0, 1], and back by published ways of rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from elbocli.core.registry import Declaration, Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, repr=False)
class Rounding(Declaration[["Tensor", float, float], "Tensor"]):
    """Function (x, divisor, offset) → values that `to_levels` clamps to 0 to 255 and truncates to whole levels."""


# Each is written as its authors write it: another order of operations changes values within rounding error of a boundary.
ROUNDINGS = Registry("rounding", Rounding)
rounding = ROUNDINGS.declare
SIGNED = (127.5, -1.0)  # (divisor, offset) of pixels in [−1, 1]: level p has the value p / divisor + offset


@rounding("nearest", formula="level nearest to 127.5 (x+1); of a half, the even one", source="diffusers, this program")
def nearest(x: Tensor, divisor: float, offset: float) -> Tensor:
    return (x - offset).mul_(divisor).round_()


@rounding("half-up", formula="127.5 x + 128, cut to a whole number", source="EDM, DiT and SiT", known_as=["edm", "dit", "sit"])
def half_up(x: Tensor, divisor: float, offset: float) -> Tensor:
    return (x * divisor).add_(0.5 - offset * divisor)


@rounding(
    "truncate",
    formula="127.5 (x+1), cut to a whole number: half a level darker on average",
    source="ADM for pixels, EDM2 for latents",
    known_as=["adm", "edm2"],
)
def truncate(x: Tensor, divisor: float, offset: float) -> Tensor:
    return (x - offset).mul_(divisor)


NEAREST = ROUNDINGS["nearest"]


def to_levels(x: Tensor, rounded: Rounding = NEAREST, span: tuple[float, float] = SIGNED) -> Tensor:
    """Convert images [B, C, H, W] to pixel levels, uint8 [B, H, W, C].

    rounded: entry of ROUNDINGS. span: (divisor, offset) of x; level p has the value p / divisor + offset.
    """
    import torch

    levels = rounded(x.float(), *span).clamp_(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def from_levels(levels: Tensor, dtype: torch.dtype, span: tuple[float, float] = SIGNED) -> Tensor:
    """Return a new tensor of pixel levels, uint8, as numbers level / divisor + offset. span: (divisor, offset)."""
    divisor, offset = span
    return levels.to(dtype).div_(divisor).add_(offset)
