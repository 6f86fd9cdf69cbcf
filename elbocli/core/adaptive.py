"""Fit adaptive schedules and learned weightings to errors in bins of λ.

Source: arXiv:2303.00848, sec. 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from elbocli.core.monotone import Function
from elbocli.core.objective import Objective
from elbocli.core.schedule import Schedule, schedule_of_shares
from elbocli.core.weighting import Weighting
from elbocli.errors import DataError, UsageError

# Smoothing of the bins' means: a generalised additive model over λ with gamma likelihood, log link, and a roughness penalty
# whose scale maximises the marginal likelihood by Laplace's approximation (Wood 2011).
# Prior variance, per unit of λ, of changes in f′ (BENDS) and in f (TILT). The BENDS to choose from allow anything between an
# almost log-linear curve and jumps between bins.
BENDS = tuple(0.005 * 8**k for k in range(5))
TILT = 1.0
ROUNDS = 50
CLOSE = 1e-6


def roughness(at: Tensor, bend: float) -> Tensor:
    """Return the matrix K of a roughness penalty fᵀKf, [B, B].

    fᵀKf ≈ ∫ (f″²/bend + f′²/TILT) dλ for values f of a curve at `at`.
    at: rising λ, [B], float64. bend: prior variance of changes in f′ per unit of λ.
    """
    # The term in f′² keeps the curve flat far from any observation.
    step = at.diff()
    slope = torch.eye(len(at), dtype=torch.float64).diff(dim=0) / step[:, None]
    turn = slope.diff(dim=0)
    between = 0.5 * (step[1:] + step[:-1])
    return turn.T @ (turn / between[:, None]) / bend + slope.T @ (slope * step[:, None]) / TILT


def smooth(at: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """Return the bins' means, smoothed over λ and positive, [B], float64.

    at: λ of the bins, rising, [B], float64.
    mean: noisy means, at least 0, [B], float64; at least one bin needs mean > 0 and precision > 0.
    precision: 1/(relative variance of the mean), [B], float64; 0: bin without observations.
    """
    # The result is e^f for the f that maximises Σ precision·(−mean e^{−f} − f) − ½ fᵀKf.
    found = []
    for bend in BENDS:
        penalty = roughness(at, bend)
        f = _maximum(mean, precision, penalty)
        found.append((_evidence(f, mean, precision, penalty), f))
    return max(found, key=lambda pair: pair[0])[1].exp()


def _maximum(mean: Tensor, precision: Tensor, penalty: Tensor) -> Tensor:
    # Newton's method for f, with at least the expected curvature, so that steps don't overshoot.
    told = precision * (mean > 0)
    f = torch.linalg.solve(penalty + told.diag(), told * mean.where(mean > 0, 1).log())
    for _ in range(ROUNDS):
        ratio = mean * (-f).exp()
        slope = precision * (ratio - 1) - penalty @ f
        factor = torch.linalg.cholesky(penalty + (precision * ratio.clamp(min=1)).diag())
        step = torch.cholesky_solve(slope[:, None], factor)[:, 0]
        f = f + step
        if float(step.abs().max()) < CLOSE:
            break
    return f


def _evidence(f: Tensor, mean: Tensor, precision: Tensor, penalty: Tensor) -> float:
    # Log marginal likelihood of `mean`, up to a constant. f: log of the smoothed mean.
    fitted = (precision * (-mean * (-f).exp() - f)).sum() - 0.5 * f @ penalty @ f
    # A constant in f costs no penalty, so the matrix is singular; 1/B in all entries mends all penalties equally.
    volume = torch.logdet(penalty + 1 / len(f)) - torch.logdet(penalty + precision.diag())
    return float(fitted + 0.5 * volume)


BINS = 100
POINTS = 16  # number of λ inside a bin at which w and p are evaluated
SHARE = 1 / 8  # fraction of a run's images in the window of errors: short windows adapt faster, long windows are less noisy
LONGEST = 100_000  # longest window in images: about the memory of a 0.999 average at batch 128
LEAST_SPREAD = 1e-9  # least relative variance of an error, so that its logarithm is finite even for equal errors
TIMES = 2**16  # number of times t in the integral for the error of a comb, a batch of equally spaced times
LARGEST_COMB = 2**12
TINY = 1e-300
LEAST_FLOOR = 1e-9  # with a lower floor, float64 could not separate the times of neighbouring bins


def bin_edges(low: float, high: float, bins: int = BINS) -> Tensor:
    """Return the edges of equal bins of λ, [bins + 1], float64."""
    return torch.linspace(low, high, bins + 1, dtype=torch.float64)


def bin_middles(edges: Tensor) -> Tensor:
    """Return the centre λ of each bin, [bins]."""
    return 0.5 * (edges[1:] + edges[:-1])


class BinSums:
    """Sums of errors in equal bins of λ.

    values: number, sum and sum of squares of each bin's errors, [3, bins], float64.
    """

    def __init__(self, low: float, high: float, bins: int = BINS, device: torch.device | str = "cpu"):
        self.low = low
        self.width = (high - low) / bins
        self.bins = bins
        self.values = torch.zeros(3, bins, dtype=torch.float64, device=device)

    def add(self, logsnr: Tensor, error: Tensor) -> None:
        """Add a batch's errors [B] at logsnr [B]."""
        index = ((logsnr - self.low) / self.width).floor().long().clamp(0, self.bins - 1)
        error = error.double()
        self.values.index_add_(1, index, torch.stack([torch.ones_like(error), error, error.square()]))

    def take(self) -> Tensor:
        """Return the sums on the CPU, and reset them to zero."""
        values = self.values.cpu().clone()
        self.values.zero_()
        return values


@dataclass
class ErrorMoments:
    """Moments of the error ‖ε−ε̂‖²/D in each bin of λ.

    edges: edges of the bins, rising, [bins + 1].
    count, mean, second: number, mean and mean square of the errors, [bins] each.
    """

    edges: Tensor
    count: Tensor
    mean: Tensor
    second: Tensor

    @classmethod
    def of_sums(cls, edges: Tensor, sums: Tensor) -> ErrorMoments:
        """Make moments from sums [3, bins]: number, sum and sum of squares of errors."""
        count = sums[0].where(sums[0] > 0, 1)
        return cls(edges, sums[0], sums[1] / count, sums[2] / count)

    @property
    def middle(self) -> Tensor:
        return bin_middles(self.edges)

    @property
    def seen(self) -> Tensor:
        """Whether a bin has at least two errors and a positive mean, [bins]."""
        return (self.count >= 2) & (self.mean > 0)

    @property
    def mean_se(self) -> Tensor:
        """Standard error of each bin's mean, [bins]; NaN for a count up to 1."""
        spread = (self.second - self.mean.square()).clamp(min=0) / (self.count - 1)
        return spread.sqrt().where(self.count > 1, torch.nan)

    @cached_property
    def smoothed(self) -> ErrorMoments:
        """Copy smoothed over λ, positive in every bin. Raises DataError if no bin is `seen`, or the equations can't be solved."""
        if not self.seen.any():
            raise DataError(
                "every bin of logsnr has fewer than two errors; take the loss log of a longer training, or measure more images"
            )
        beyond = (self.count - 1).clamp(min=0)
        ratio = self.second / self.mean.square().where(self.mean > 0, 1)
        spread = ((ratio - 1) * self.count / beyond.where(beyond > 0, 1)).clamp(min=LEAST_SPREAD)
        # The relative variance is smoothed first, because the precision of the means depends on it.
        # A variance has relative variance (2 + excess kurtosis)/n; the excess of a gamma variable is 6 × its relative variance.
        typical = (beyond * spread).sum() / beyond.sum()
        try:
            spread = smooth(self.middle, spread, beyond / (2 + 6 * typical))
            mean = smooth(self.middle, self.mean, self.count / spread)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise DataError(
                "the errors can't be smoothed over logsnr: bins are too narrow, or sums of squares don't fit the sums; "
                "use wider bins, or another log"
            ) from error
        return ErrorMoments(self.edges, self.count, mean, mean.square() * (1 + spread))

    def filled(self) -> ErrorMoments:
        """Return a copy with smoothed values in bins that are not `seen`. Raises DataError."""
        known = self.smoothed
        seen = self.seen
        return ErrorMoments(self.edges, self.count, self.mean.where(seen, known.mean), self.second.where(seen, known.second))


def fine_levels(edges: Tensor) -> Tensor:
    """Return POINTS equally spaced λ inside each bin, [bins, POINTS]."""
    part = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    return edges[:-1, None] + edges.diff()[:, None] * part


def check_floor(floor: float) -> None:
    """Raise UsageError unless LEAST_FLOOR ≤ floor ≤ 1."""
    if not LEAST_FLOOR <= floor <= 1:
        raise UsageError(f"floor is {floor:g}; choose a floor from {LEAST_FLOOR:g} to 1")


def fit_schedule(moments: ErrorMoments, weighting: Weighting, floor: float = 0.01, error: Tensor | None = None) -> Schedule:
    """Return the schedule with density ∝ weighting × error in each bin, named "adaptive".

    By the paper's criterion, every t then contributes equally to the loss.
    floor: smallest density, as a fraction of the uniform density.
    error: [bins]; None: the smoothed mean errors.
    Raises UsageError: floor outside [LEAST_FLOOR, 1].
    Raises DataError: no bin has two errors, or weighting × error is zero or not finite.
    Source: Kingma & Gao 2023, sec. 4.
    """
    check_floor(floor)
    edges = moments.edges
    width = edges.diff()
    mass = weighting(fine_levels(edges)).mean(1) * (moments.smoothed.mean if error is None else error) * width
    if not mass.isfinite().all() or float(mass.sum()) <= 0:
        raise DataError(f"weighting {weighting.spec} × error is all zero, or not finite; choose another weighting")
    return schedule_of_shares(edges, floored(mass / mass.sum(), width, floor), "adaptive")


def floored(shares: Tensor, width: Tensor, floor: float) -> Tensor:
    """Raise the probabilities of bins to a floor; return new probabilities of sum 1.

    shares: probabilities, [bins], of sum 1. width: widths of the bins, [bins].
    floor: smallest density, as a fraction of the uniform density.
    """
    least = floor * width / width.sum()
    above = (shares - least).clamp(min=0)
    return least + (1 - floor) * above / above.sum().clamp(min=TINY)


def loss_variance(
    moments: ErrorMoments, weighting: Weighting, density: Function, batch: int | None = None
) -> tuple[float, float]:
    """Predict B · Var(L) / E[L]² for the mean loss L of a batch of size B.

    density: p(λ) of the noise levels drawn. batch: B; None: the limit of large batches.
    Returns (value for independent t, value for low-discrepancy t); infinite if p is zero where the weighting is not.
    """
    # With e = ‖ε−ε̂‖², independent t give ∫ w² E[e²]/p / (∫ w E[e])² − 1, and low-discrepancy t ∫ w² Var[e]/p / (∫ w E[e])²
    # plus the integration error of `batch` equally spaced times.
    known = moments.filled()
    at = fine_levels(moments.edges)
    cell = moments.edges.diff()[:, None] / POINTS
    w = weighting(at)
    p = density(at)
    ratio = (w.square() / p).where(w.square() > 0, 0)
    loss = float((w * known.mean[:, None] * cell).sum())
    second = float((ratio * known.second[:, None] * cell).sum())
    unbiased = (known.count / (known.count - 1)).where(known.count >= 2, 1)
    within = (known.second - known.mean.square()).clamp(min=0) * unbiased
    spread = float((ratio * within.clamp(min=TINY)[:, None] * cell).sum())
    missed = 0.0
    if batch is not None and math.isfinite(spread):
        missed = _comb_variance(moments.smoothed, weighting, density, batch)
    return second / loss**2 - 1, spread / loss**2 + missed


def _comb_variance(known: ErrorMoments, weighting: Weighting, density: Function, batch: int) -> float:
    # The integration error of `batch` equally spaced times, batch × Var/L². Var is the variance of the mean of (w/p) E[e] over
    # t = (offset + k) / batch, k = 0 … batch − 1, for an offset uniform in [0, 1).
    batch = min(batch, LARGEST_COMB)
    offsets = TIMES // batch
    at = fine_levels(known.edges).flatten().flip(0)
    width = (known.edges.diff() / POINTS).repeat_interleave(POINTS).flip(0)
    share = density(at) * width
    times = pad(share.cumsum(0), (1, 0)) / share.sum()  # with a leading 0
    ends = known.edges[-1] - pad(width.cumsum(0), (1, 0))
    t = (torch.arange(batch * offsets, dtype=torch.float64) + 0.5) / (batch * offsets)
    logsnr = torch.from_numpy(np.interp(t, times, ends))
    mean = torch.from_numpy(np.interp(logsnr, known.middle, known.mean.log())).exp()
    value = (weighting(logsnr) / density(logsnr) * mean).reshape(batch, offsets).mean(0)
    return batch * float(value.var(correction=0) / value.mean().square())


class AdaptiveSchedule:
    """Schedule fitted to a network's recent errors in training.

    edges: edges of the bins of λ, [bins + 1].
    state: count, sum and sum of squares of errors (older ones weigh less), and unweighted count; [4, bins], float64.
    """

    # After n images, an error that is k images old has weight (1 − k/n)^(1/SHARE), so the window is about the last SHARE of the
    # run. Beyond a window of LONGEST images, the weights decay exponentially. Weights depend on images, not on errors per bin:
    # an old error in a rarely visited bin is as outdated as in any other bin.

    def __init__(self, edges: Tensor):
        self.edges = edges
        self.state = torch.zeros(4, len(edges) - 1, dtype=torch.float64)

    def update(self, sums: Tensor) -> None:
        """Add errors to the state. sums: count, sum and sum of squares of new errors, [3, bins]."""
        before = float(self.state[3].sum())
        fresh = float(sums[0].sum())
        if not fresh:
            return
        kept = min((before / (before + fresh)) ** (1 / SHARE), math.exp(-fresh / LONGEST))
        self.state[:3] = kept * self.state[:3] + sums
        self.state[3] += sums[0]

    def moments(self) -> ErrorMoments:
        """Return the errors' moments, in which older errors have less weight."""
        return ErrorMoments.of_sums(self.edges, self.state[:3])

    def schedule(self, weighting: Weighting, floor: float) -> Schedule:
        """Return the current schedule; uniform in λ until a bin has two errors.

        floor: smallest density, as a fraction of the uniform density.
        """
        known = self.moments()
        if not known.seen.any():
            return schedule_of_shares(self.edges, self.edges.diff(), "adaptive")
        return fit_schedule(known, weighting, floor)


def refuse_adaptive(weighting: Weighting) -> None:
    """Raise UsageError for a learned weighting that depends on the schedule's density."""
    if weighting.of_density:
        raise UsageError(
            f"weighting '{weighting.spec}' needs a fixed schedule, not 'adaptive'; choose for example edm:mean=-0.4,std=1"
        )


class OnlineObjective:
    """Objective whose adaptive schedule, or learned weighting, follows a network's recent errors in training.

    objective: the Objective now. edges: edges of the bins of λ, [bins + 1]. errors: None for a fixed objective.
    """

    # Until a bin has two errors, a learned weighting assumes the errors of a network with output zero.
    # A learned weighting that rises is made monotone by its least non-increasing upper bound. A running minimum from the noisy
    # side would be almost zero everywhere, and isotonic least squares would lower the peak.

    def __init__(self, objective: Objective, adaptive: bool = False, floor: float = 0.01, state: Tensor | None = None):
        """Begin with the errors of a state.

        adaptive: whether an adaptive schedule replaces that of `objective`.
        floor: smallest density of an adaptive schedule, as a fraction of the uniform density.
        state: `state` of an AdaptiveSchedule; None: no errors.
        """
        self.objective = objective
        self.adaptive = adaptive
        self.floor = floor
        self.edges = bin_edges(objective.schedule.logsnr_min, objective.schedule.logsnr_max)
        self.errors = AdaptiveSchedule(self.edges) if adaptive or objective.weighting.learned else None
        self.restore(state)

    @property
    def state(self) -> Tensor | None:
        """Copy of the state of `errors`, for a checkpoint."""
        return None if self.errors is None else self.errors.state.clone()

    def restore(self, state: Tensor | None) -> None:
        """Continue with the errors of a state; None: with those at hand."""
        if self.errors is not None:
            if state is not None:
                self.errors.state.copy_(state)
            self._follow(self.errors)

    def refit(self, sums: Tensor) -> None:
        """Fit the learned weighting or adaptive schedule to new errors, too.

        sums: count, sum and sum of squares of the errors, [3, bins].
        """
        if self.errors is not None:
            self.errors.update(sums)
            self._follow(self.errors)

    def _follow(self, errors: AdaptiveSchedule) -> None:
        now = self.objective
        moments = errors.moments()
        if now.weighting.learned:
            seen = bool(moments.seen.any())
            middle = moments.middle
            error = moments.smoothed.mean if seen else now.prediction.coefficients(middle).eps_factor
            now = replace(now, weighting=now.weighting.with_errors(now.schedule, middle, error))
        if self.adaptive:
            now = replace(now, schedule=errors.schedule(now.weighting, self.floor))
        self.objective = now
