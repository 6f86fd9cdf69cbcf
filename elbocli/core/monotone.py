"""The shape of a function of λ: its slope, where it rises, and whether it is another one up to a constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from elbocli.core.logsnr import LIMIT

if TYPE_CHECKING:
    from torch import Tensor

Function = Callable[["Tensor"], "Tensor"]
POINTS = 20001


def float64(values: list[float]) -> Tensor:
    """A tensor of double precision."""
    import torch

    return torch.tensor(values, dtype=torch.float64)


def slope(function: Function, logsnr: Tensor) -> Tensor:
    """df/dλ at each λ by automatic differentiation, float64."""
    import torch

    at = logsnr.detach().double().requires_grad_()
    with torch.enable_grad():
        value = function(at)
        if not value.requires_grad:
            return torch.zeros_like(at)
        return torch.autograd.grad(value.sum(), at)[0]


def rising(function: Function, low: float, high: float) -> list[tuple[float, float]]:
    """Runs of a fine grid on which the function increases, each inner end bisected on the sign of its slope."""
    import torch

    grid = torch.linspace(low, high, POINTS, dtype=torch.float64)
    value = function(grid)
    up = (value[1:] - value[:-1] > 1e-12 * value[1:].abs()).tolist()
    starts = [i for i, now in enumerate(up) if now and (i == 0 or not up[i - 1])]
    ends = [i + 1 for i, now in enumerate(up) if now and (i + 1 == len(up) or not up[i + 1])]

    def turn(i: int, sign: float) -> float:
        if i in (0, POINTS - 1):
            return float(grid[i])
        left, right = float(grid[i - 1]), float(grid[i + 1])
        before, after = (sign * slope(function, float64([left, right]))).tolist()
        if not before > 0 > after:  # a jump: the grid point is on its upper side
            return float(grid[i])
        for _ in range(60):
            middle = 0.5 * (left + right)
            if sign * float(slope(function, float64([middle]))) > 0:
                left = middle
            else:
                right = middle
        return 0.5 * (left + right)

    return [(turn(i, -1.0), turn(j, 1.0)) for i, j in zip(starts, ends, strict=True)]


class NonIncreasing:
    """The least non-increasing function that is nowhere smaller: one with a single peak is held constant left of it.

    Peaks are searched for within ±LIMIT at the first call, which takes a thousand times as long as the next ones.
    """

    def __init__(self, function: Function):
        self.function = function

    def __call__(self, logsnr: Tensor) -> Tensor:
        """Its value at each λ, float64."""
        value = self.function(logsnr)
        for peak, height in self._peaks:
            value = value.maximum((logsnr <= peak).to(value.dtype) * height)
        return value

    @cached_property
    def _peaks(self) -> list[tuple[float, float]]:
        """(λ, value) of each."""
        ends = [end for _, end in rising(self.function, -LIMIT, LIMIT)]
        return [(end, float(self.function(float64([end])))) for end in ends]


class Likeness(NamedTuple):
    """Comparison of f with scale · g: the largest relative deviation under the best scale, and the λ where it is."""

    scale: float
    deviation: float
    logsnr: float


def likeness(f: Function, g: Function, low: float, high: float, points: int = POINTS) -> Likeness:
    """Compare two non-negative functions on a fine grid of [low, high], up to a constant.

    The best scale puts the extremes of log f/g at equal distance. Where only one of them is zero, nothing helps:
    the deviation is infinite.
    """
    import torch

    at = torch.linspace(low, high, points, dtype=torch.float64)
    ratio = f(at).log() - g(at).log()
    at, ratio = at[~ratio.isnan()], ratio[~ratio.isnan()]  # both are zero there
    if not len(ratio):
        return Likeness(1.0, 0.0, low)
    middle = 0.5 * float(ratio.max() + ratio.min())
    if not math.isfinite(middle):
        return Likeness(1.0, math.inf, float(at[int(ratio.abs().argmax())]))
    off = (ratio - middle).abs()
    return Likeness(math.exp(middle), float(off.max().expm1()), float(at[int(off.argmax())]))
