"""Discrete timesteps as a smooth schedule: the i-th of T has λ_i and an equal share of the time.

t(λ) is the cubic through (λ_i, (i + ½)/T), so that the integral of p(λ) = −dt/dλ between two timesteps is exactly
the share of timesteps between them. Beyond the first and the last there is nothing.
"""

from __future__ import annotations

import math
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING

from elbocli.core.logsnr import LIMIT
from elbocli.core.registry import Registry
from elbocli.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from elbocli.core.schedule_curves import ScheduleCurve

MOST_TIMESTEPS = 100_000
BETAS: Registry[None] = Registry("beta schedule")
"""β_i: functions of the first and last β and the number of timesteps, float64 [T]."""


def _evenly(start: float, end: float, count: int) -> Tensor:
    import torch

    return torch.linspace(start, end, count, dtype=torch.float64)


@BETAS.declare("linear", formula="even from beta_start to beta_end", source="Ho et al. 2020")
def linear(start: float, end: float, count: int) -> Tensor:
    return _evenly(start, end, count)


@BETAS.declare(
    "scaled_linear", formula="square of even from sqrt(beta_start) to sqrt(beta_end)", source="Rombach et al. 2022"
)
def scaled_linear(start: float, end: float, count: int) -> Tensor:
    return _evenly(math.sqrt(start), math.sqrt(end), count).square()


@BETAS.declare(
    "sigmoid", formula="beta_start + (beta_end-beta_start) sigmoid(even from -6 to 6)", source="Xu et al. 2022: GeoDiff"
)
def sigmoid(start: float, end: float, count: int) -> Tensor:
    return start + (end - start) * _evenly(-6, 6, count).sigmoid()


@BETAS.declare(
    "squaredcos_cap_v2",
    formula="min(0.999, 1 - abar((i+1)/T)/abar(i/T)), abar = cos((t+0.008)/1.008 pi/2)^2",
    source="Nichol & Dhariwal 2021",
)
def squaredcos(start: float, end: float, count: int) -> Tensor:
    abar = (((_evenly(0, 1, count + 1) + 0.008) / 1.008) * (math.pi / 2)).cos().square()
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)


def logsnr_of_betas(beta: Tensor, *, snr_scale: float = 1.0, zero_terminal: bool = False) -> Tensor:
    """λ after each timestep, ᾱ_i = Π(1 − β_j). beta: [T] float64 within (0, 1).

    snr_scale divides the signal-to-noise ratio. zero_terminal then moves and stretches √ᾱ so that the last is 0
    and the first stays (Lin et al. 2023, algorithm 1): the last λ is −∞.
    """
    total = (-beta).log1p().cumsum(0)
    logsnr = total - (-total.expm1()).log() - math.log(snr_scale)
    if not zero_terminal:
        return logsnr
    root = logsnr.sigmoid().sqrt()
    abar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()
    return abar.log() - (-abar).log1p()


class Steps:
    """The curve of given timesteps. logsnr: [T] float64, falling. Those beyond ±LIMIT keep their share of the time
    but are no part of the curve. Raises UsageError when fewer than two are left or λ doesn't fall.

    The slopes are a cubic spline's, held within [0, 3 × the chords beside them] in size, so that t never rises
    (Hyman 1983): on the smooth schedules in use that changes nothing but the ends, and p is continuous.
    """

    def __init__(self, logsnr: Tensor):
        import torch
        from scipy.interpolate import CubicSpline

        time = (torch.arange(len(logsnr), dtype=torch.float64) + 0.5) / len(logsnr)
        kept = logsnr.abs() <= LIMIT
        self.level, self.time = logsnr[kept].flip(0), time[kept].flip(0)  # λ rising, t falling
        if len(self.level) < 2 or not bool((self.level.diff() > 0).all()):
            raise UsageError(f"logsnr must fall from timestep to timestep, at least two of them within ±{LIMIT:g}")
        self.support = (float(self.level[0]), float(self.level[-1]))
        self.chord = self.time.diff() / self.level.diff()
        slopes = torch.from_numpy(CubicSpline(self.level.numpy(), self.time.numpy())(self.level.numpy(), 1))
        steepest = 3 * torch.cat([self.chord[:1], self.chord[:-1].maximum(self.chord[1:]), self.chord[-1:]])
        self.slope = slopes.clamp(max=0).maximum(steepest)

    def on(self, device: torch.device) -> Steps:
        """The same curve for tensors on a device."""
        moved = copy(self)
        for name in ("level", "time", "chord", "slope"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def _at(self, cell: Tensor, s: Tensor) -> Tensor:
        rest = 1 - s
        bend = rest * self.slope[cell] - s * self.slope[cell + 1]
        width = self.level[cell + 1] - self.level[cell]
        return self.time[cell] + width * s * (s * (3 - 2 * s) * self.chord[cell] + rest * bend)

    def _place(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        cell = (torch.searchsorted(self.level, logsnr.detach().contiguous()) - 1).clamp(0, len(self.chord) - 1)
        return cell, (logsnr - self.level[cell]) / (self.level[cell + 1] - self.level[cell])

    def t(self, logsnr: Tensor) -> Tensor:
        """t(λ)."""
        return self._at(*self._place(logsnr))

    def density(self, logsnr: Tensor) -> Tensor:
        """p(λ) = −dt/dλ, a parabola between timesteps."""
        cell, s = self._place(logsnr)
        ends = (1 - s) * (1 - 3 * s) * self.slope[cell] + s * (3 * s - 2) * self.slope[cell + 1]
        return -(6 * s * (1 - s) * self.chord[cell] + ends)

    def logsnr(self, t: Tensor) -> Tensor:
        """λ(t), by bisection within a timestep: the cubic only falls."""
        import torch

        cell = (torch.searchsorted(-self.time, -t.contiguous()) - 1).clamp(0, len(self.chord) - 1)
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(53):
            middle = 0.5 * (low + high)
            late = self._at(cell, middle) > t  # too noisy: go right
            low, high = low.where(~late, middle), high.where(late, middle)
        return self.level[cell] + 0.5 * (low + high) * (self.level[cell + 1] - self.level[cell])


@lru_cache
def steps_of(betas: str, start: float, end: float, count: float) -> Steps:
    """The curve of `count` timesteps with betas by that name of BETAS. Raises UsageError for what can't be."""
    if count != int(count):
        raise UsageError(f"count is {count:g}; it must be a whole number of timesteps")
    beta = BETAS.find(betas).make(start, end, int(count))
    wrong = [value for value in beta.tolist() if not 0 < value < 1]
    if wrong:
        raise UsageError(f"a beta is {wrong[0]:g}; each must lie between 0 and 1")
    return Steps(logsnr_of_betas(beta))


class Moved:
    """A curve moved by `by` in λ, as part of what it is."""

    def __init__(self, curve: ScheduleCurve, by: float):
        self.curve, self.by = curve, by

    def logsnr(self, t: Tensor) -> Tensor:
        """λ(t)."""
        return self.curve.logsnr(t) + self.by

    def t(self, logsnr: Tensor) -> Tensor:
        """t(λ)."""
        return self.curve.t(logsnr - self.by)

    def density(self, logsnr: Tensor) -> Tensor:
        """p(λ)."""
        return self.curve.density(logsnr - self.by)
