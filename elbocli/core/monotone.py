"""The shape of a function of λ: its slope, where it rises, and whether it is another one up to a constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from elbocli.core.prediction import LIMIT

if TYPE_CHECKING:
    from torch import Tensor

Function = Callable[["Tensor"], "Tensor"]
POINTS = 20001
ROUNDING, LEAST_RISE, TINIEST = 1e-12, 1e-9, 1e-300
"""A step's and a whole run's least rise, relative; and the value below which float64 has too few digits to tell."""
SHOWN = 4
"""Intervals that are named: under a schedule of many knots, w jumps at each of them."""


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


def in_words(intervals: list[tuple[float, float]]) -> str:
    """Name the first SHOWN intervals of λ, and how many more there are; one without a width is a jump."""
    shown = [
        " to ".join(dict.fromkeys(f"{round(end, 9) + 0.0:.7g}" for end in interval)) for interval in intervals[:SHOWN]
    ]
    more = f" and {len(intervals) - SHOWN} more" if len(intervals) > SHOWN else ""
    return ", ".join(shown) + more


def rising(function: Function, low: float, high: float) -> list[tuple[float, float]]:
    """Runs of a fine grid on which the function increases, each end found on the sign of its slope, or at a jump.

    It increases from one of the POINTS to the next when that adds more than ROUNDING of its value, and a run counts
    when all of it adds more than LEAST_RISE of the value at its end, which must be above TINIEST. Anything less is
    what rounding makes of a constant.
    """
    import torch

    grid = torch.linspace(low, high, POINTS, dtype=torch.float64)
    value = function(grid)
    up = (value[1:] - value[:-1] > ROUNDING * value[1:].abs()).tolist()
    starts = [i for i, now in enumerate(up) if now and (i == 0 or not up[i - 1])]
    ends = [i + 1 for i, now in enumerate(up) if now and (i + 1 == len(up) or not up[i + 1])]
    runs = []
    for i, j in zip(starts, ends, strict=True):
        first, last = float(value[i]), float(value[j])
        if abs(last) > TINIEST and last - first > LEAST_RISE * abs(last):
            runs.append((_turn(function, grid, i, -1.0), _turn(function, grid, j, 1.0)))
    return runs


def _turn(function: Function, grid: Tensor, i: int, sign: float) -> float:
    """The λ near grid point i where sign · function is largest: where its slope changes sign, or at a jump."""
    if i in (0, POINTS - 1):
        return float(grid[i])
    left, at, right = grid[i - 1 : i + 2].tolist()
    before, after = (sign * slope(function, float64([left, right]))).tolist()
    if not before > 0 > after:
        points = [at, *_jump(function, left, at), *_jump(function, at, right)]
        values = (sign * function(float64(points))).tolist()
        return max(zip(values, points), key=lambda pair: (pair[0], -sign * pair[1]))[1]
    for _ in range(60):
        middle = 0.5 * (left + right)
        if sign * float(slope(function, float64([middle]))) > 0:
            left = middle
        else:
            right = middle
    return 0.5 * (left + right)


def _jump(function: Function, left: float, right: float) -> tuple[float, float]:
    """Halve to where the function changes most: neighbours on both sides of a jump, if there is one between."""
    for _ in range(60):
        middle = 0.5 * (left + right)
        low, inner, high = function(float64([left, middle, right])).tolist()
        if abs(inner - low) > abs(high - inner):
            right = middle
        else:
            left = middle
    return left, right


class NonIncreasing:
    """The least non-increasing function that is nowhere smaller: one with a single peak is held constant left of it.

    Peaks are searched for within ±LIMIT, the left end being one too, at the first call, which takes a thousand times as long as the next ones.
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
        ends = [-LIMIT, *(end for _, end in rising(self.function, -LIMIT, LIMIT))]
        return [(end, float(self.function(float64([end])))) for end in ends]


class Likeness(NamedTuple):
    """Comparison of f with scale · g: the largest relative deviation under the best scale, and the λ where it is."""

    scale: float
    deviation: float
    logsnr: float


def likeness(f: Function, g: Function, low: float, high: float, points: int = POINTS) -> Likeness:
    """Compare two non-negative functions on a fine grid of [low, high], up to a constant.

    The best scale puts the extremes of log f/g at equal distance. If only one of them is zero at some λ, the deviation
    is infinite.
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
