"""Roundings: what becomes of a pixel between two of the 256 levels, declared once each.

A range of pixels is (divisor, offset): level p lies at p / divisor + offset. Each rounding is written as its authors
write it, because another order of the same operations moves numbers that lie within rounding error of a boundary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elbocli.core.registry import Declaration, Registry

if TYPE_CHECKING:
    from torch import Tensor

ROUNDINGS: Registry[None] = Registry("rounding")
"""(x, divisor, offset) → numbers that become levels when they are cut to 0 to 255 and what follows the point is dropped."""
rounding = ROUNDINGS.declare
SIGNED = (127.5, -1.0)
"""The range [−1, 1]."""


@rounding("nearest", formula="level nearest to 127.5 (x+1); of a half, the even one", source="diffusers, this program")
def nearest(x: Tensor, divisor: float, offset: float) -> Tensor:
    return (x - offset).mul_(divisor).round_()


@rounding(
    "half-up",
    formula="127.5 x + 128, cut to a whole number",
    source="EDM, DiT and SiT",
    known_as=["edm", "dit", "sit"],
)
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


NEAREST: Declaration[None] = ROUNDINGS["nearest"]


def to_levels(x: Tensor, rounded: Declaration[None] = NEAREST, span: tuple[float, float] = SIGNED) -> Tensor:
    """Pixels [B,C,H,W] of a range → uint8 [B,H,W,C]. span: (divisor, offset) of the range."""
    import torch

    levels = rounded(x.float(), *span).clamp_(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()
