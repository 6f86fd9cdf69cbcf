"""Analyse functions of λ: slope, intervals of increase, upper bound, and equality up to a factor."""

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
# Rises below these thresholds are rounding: relative rise per grid step, relative rise per interval, value after the rise.
ROUNDING = 1e-12
LEAST_RISE = 1e-9
TINIEST = 1e-300
SHOWN = 4  # number of intervals in a message: a weighting by a fitted schedule jumps at every knot


def float64(values: list[float]) -> Tensor:
    """Return a float64 tensor of the values."""
    import torch

    return torch.tensor(values, dtype=torch.float64)


def slope(function: Function, logsnr: Tensor) -> Tensor:
    """Return df/dλ at each λ, float64."""
    import torch

    at = logsnr.detach().double().requires_grad_()
    with torch.enable_grad():
        value = function(at)
        if not value.requires_grad:
            return torch.zeros_like(at)
        return torch.autograd.grad(value.sum(), at)[0]


def in_words(intervals: list[tuple[float, float]]) -> str:
    """Describe intervals of λ for messages."""
    shown = [" to ".join(dict.fromkeys(f"{round(end, 9) + 0.0:.7g}" for end in interval)) for interval in intervals[:SHOWN]]
    more = f" and {len(intervals) - SHOWN} more" if len(intervals) > SHOWN else ""
    return ", ".join(shown) + more


def _stretches(flags: Tensor) -> list[tuple[int, int]]:
    # (first, last + 1) of each stretch of true flags.
    import torch

    flat = torch.zeros(1, dtype=torch.bool)
    changes = flags.diff(prepend=flat, append=flat).nonzero()[:, 0].tolist()
    return [*zip(changes[::2], changes[1::2], strict=True)]


def weighting_faults(function: Function, low: float, high: float) -> str:
    """Say where in [low, high] a weighting is negative or not finite, by POINTS equally spaced λ; '' if w is valid there."""
    import torch

    with torch.device("cpu"):  # also inside `torch.device("meta")`, where tensors have no values
        grid = torch.linspace(low, high, POINTS, dtype=torch.float64)
        w = function(grid)
        kinds = {"negative": (w < 0) & w.isfinite(), "infinite or not a number": ~w.isfinite()}
        found = {kind: [(float(grid[i]), float(grid[j - 1])) for i, j in _stretches(flags)] for kind, flags in kinds.items()}
    return " and ".join(f"{kind} for logsnr {in_words(at)}" for kind, at in found.items() if at)


def rising(function: Function, low: float, high: float) -> list[tuple[float, float]]:
    """Return the intervals in [low, high] where the function increases."""
    import torch

    grid = torch.linspace(low, high, POINTS, dtype=torch.float64)
    value = function(grid)
    runs = []
    for i, j in _stretches(value.diff() > ROUNDING * value[1:].abs()):
        first = float(value[i])
        last = float(value[j])
        if abs(last) > TINIEST and last - first > LEAST_RISE * abs(last):
            runs.append((_turn(function, grid, i, -1.0), _turn(function, grid, j, 1.0)))
    return runs


def _turn(function: Function, grid: Tensor, i: int, sign: float) -> float:
    from scipy.optimize import brentq

    # λ near grid[i] where sign · function(λ) is largest: a zero of the slope, or a jump.
    if i in (0, POINTS - 1):
        return float(grid[i])
    left, at, right = grid[i - 1 : i + 2].tolist()
    before, after = (sign * slope(function, float64([left, right]))).tolist()
    if not before > 0 > after:
        points = [at, *_jump(function, left, at), *_jump(function, at, right)]
        values = (sign * function(float64(points))).tolist()
        return max(zip(values, points), key=lambda pair: (pair[0], -sign * pair[1]))[1]
    return float(brentq(lambda at: float(slope(function, float64([at]))), left, right))


def _jump(function: Function, left: float, right: float) -> tuple[float, float]:
    # λ just left and just right of the largest jump in [left, right].
    for _ in range(60):
        middle = 0.5 * (left + right)
        low, inner, high = function(float64([left, middle, right])).tolist()
        if abs(inner - low) > abs(high - inner):
            right = middle
        else:
            left = middle
    return left, right


class NonIncreasing:
    """Least non-increasing upper bound of a function of λ."""

    # The first call searches for peaks within ±LIMIT, and takes a thousand times as long as later calls.

    def __init__(self, function: Function):
        self.function = function

    def __call__(self, logsnr: Tensor) -> Tensor:
        value = self.function(logsnr)
        for peak, height in self._peaks:
            value = value.clamp(min=height).where(logsnr <= peak, value)
        return value

    @cached_property
    def _peaks(self) -> list[tuple[float, float]]:
        # (λ, value) of each peak; the left end −LIMIT counts as a peak.
        ends = [-LIMIT, *(end for _, end in rising(self.function, -LIMIT, LIMIT))]
        return [(end, float(self.function(float64([end])))) for end in ends]


class Likeness(NamedTuple):
    """Comparison of functions f and g up to a factor.

    scale: factor of g that minimises the largest |log(f/(scale · g))|.
    deviation: largest relative deviation; inf if only f or only g is zero at some λ. logsnr: λ of this deviation.
    """

    scale: float
    deviation: float
    logsnr: float


def likeness(f: Function, g: Function, low: float, high: float) -> Likeness:
    """Compare two non-negative functions of λ up to a factor, at POINTS equally spaced λ from low to high."""
    import torch

    at = torch.linspace(low, high, POINTS, dtype=torch.float64)
    ratio = f(at).log() - g(at).log()
    # drop λ where both are zero
    at = at[~ratio.isnan()]
    ratio = ratio[~ratio.isnan()]
    if not len(ratio):
        return Likeness(1.0, 0.0, low)
    middle = 0.5 * float(ratio.max() + ratio.min())
    if not math.isfinite(middle):  # only f or only g is zero at some λ
        middle = 0.0
    off = (ratio - middle).abs()
    return Likeness(math.exp(middle), float(off.max().expm1()), float(at[int(off.argmax())]))
