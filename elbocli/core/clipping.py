"""Keeping x̂ within the range of pixels, which guidance and few steps can leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from elbocli.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

CLIPS: Registry[None] = Registry("clip")
Function = Callable[["Tensor"], "Tensor"]


@CLIPS.declare("none", formula="x_hat")
def none() -> Function:
    """x̂ as it is."""
    return lambda x_hat: x_hat


@CLIPS.declare("static", formula="x_hat cut to [-1, 1]", source="Ho et al. 2020")
def static() -> Function:
    """x̂ cut to [−1, 1]."""
    return lambda x_hat: x_hat.clamp(-1, 1)


@CLIPS.declare(
    "dynamic",
    formula="x_hat cut to [-s, s] and divided by s = max(1, percentile of |x_hat| in the image)",
    source="Saharia et al. 2022: Imagen",
    positive=["percentile"],
    within={"percentile": (0, 100)},
)
def dynamic(percentile: float = 99.5) -> Function:
    """x̂ [B, …] cut to [−s, s] and divided by s, per image. The percentile is the value at rank ⌈percentile/100 · D⌉."""

    def cut(x_hat: Tensor) -> Tensor:
        size = x_hat.abs().flatten(1)
        rank = math.ceil(percentile * size.shape[1] / 100)
        limit = size.kthvalue(rank, 1).values.clamp(min=1).view(-1, *[1] * (x_hat.dim() - 1))
        return x_hat.maximum(-limit).minimum(limit).div_(limit)

    return cut


class Clip(NamedTuple):
    """A function x̂ [B, …] → x̂ within its range. spec: how it is written, with every parameter."""

    spec: str
    function: Function

    @property
    def cuts(self) -> bool:
        """Tell whether it does anything."""
        return self.spec != "none"


def parse_clip(text: str) -> Clip:
    """`none`, `static`, `dynamic:percentile=99`. Raises UsageError."""
    declared = CLIPS.parse(text)
    return Clip(declared.spec, declared())
