"""Adaptive schedules, fitted to the errors at each λ, and the learned weighting. Training and `elbo adapt` share this code.

The statistics are of the unweighted error per dimension ‖ε−ε̂‖²/D in equal bins of λ, so that one log serves every
weighting. Source: arXiv:2303.00848 sec. 4 for the criterion `loss`. The criterion `second-moment` minimises the variance
of the loss estimate for independent t, and the criterion `std` for low-discrepancy t.

`smooth` fits a positive curve to noisy means of bins, some with few or no observations. The error of a denoiser is smooth
in λ, so the estimate for a bin also uses neighbouring bins, most of all if the bin has few observations. The model is a
generalised additive model: gamma likelihood, log link, and a roughness penalty whose scale maximises the marginal
likelihood (Wood 2011, by Laplace's approximation).

The weighting `uncertainty` is learned while a run trains, from the statistics of its errors; the result is equivalent to
EDM2's u(σ). This weighting is w = p/e, with the density p of the schedule and the error e, so every t contributes equally
to the loss. The best density, ∝ w e, is then p itself: every schedule is the adaptive schedule of this weighting, and
schedule and weighting can't both be learned. The weighting rises wherever p rises faster than e, usually left of the peak
of p; the loss is then not an ELBO.

The loss of `uncertainty:monotone` is an ELBO: w is replaced by its least non-increasing upper bound, as for any
weighting (core/monotone.py). Alternatives are worse: a running minimum from the noisy end is almost zero everywhere,
because p is almost zero there; isotonic least squares depends on the measure on λ, and lowers the peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from elbocli.core.prediction import Prediction
from elbocli.core.registry import LEARNED
from elbocli.core.schedule import Schedule, schedule_of_shares
from elbocli.core.training import CRITERIA
from elbocli.core.weighting import Weighting
from elbocli.errors import DataError, UsageError

# Prior variance, per unit of λ, of changes in f′ (BENDS) and in f (TILT). The BENDS to choose from allow anything between an
# almost log-linear curve and jumps between bins.
BENDS = tuple(0.005 * 8**k for k in range(5))
TILT = 1.0
ROUNDS = 50
CLOSE = 1e-6


def through(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Interpolate values [K] at rising knots [K] by cubics whose slopes are central differences; return the values at `at`.

    at: any shape. Beyond the knots the outer cubics continue. A linear interpolation would have a kink at every knot, so that
    its product with a smooth function could rise and fall between two knots.
    """
    (slope,) = torch.gradient(values, spacing=(knots,))
    right = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
    left = right - 1
    width, rise = knots[right] - knots[left], values[right] - values[left]
    part, first, last = (at - knots[left]) / width, width * slope[left], width * slope[right]
    return values[left] + part * (first + part * (3 * rise - 2 * first - last + part * (first + last - 2 * rise)))


def roughness(at: Tensor, bend: float) -> Tensor:
    """Return the penalty matrix K [B, B] with fᵀKf ≈ ∫ f″²/bend + f′²/TILT dλ, for any spacing of λ.

    at: [B], float64, rising λ. bend: prior variance of changes in f′ per unit of λ, one of BENDS. The term in f′² keeps the
    curve flat far from any observation.
    """
    step = at.diff()
    slope = torch.eye(len(at), dtype=torch.float64).diff(dim=0) / step[:, None]
    turn = slope.diff(dim=0)
    between = 0.5 * (step[1:] + step[:-1])
    return turn.T @ (turn / between[:, None]) / bend + slope.T @ (slope * step[:, None]) / TILT


def smooth(at: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """Return the smoothed means [B], positive: e^f for the f that maximises Σ precision·(−mean e^{−f} − f) − ½ fᵀKf.

    at: [B], rising. mean: [B], non-negative. precision: [B], 1/(relative variance of the mean), 0 without observations.
    At least one bin needs a positive mean and precision. All are float64. K is the penalty matrix that `roughness` returns for
    the value of BENDS with the highest marginal likelihood.
    The gamma likelihood weights relative errors, and avoids the bias of logarithms of noisy means.
    """
    found = []
    for bend in BENDS:
        penalty = roughness(at, bend)
        f = _maximum(mean, precision, penalty)
        found.append((_evidence(f, mean, precision, penalty), f))
    return max(found, key=lambda pair: pair[0])[1].exp()


def _maximum(mean: Tensor, precision: Tensor, penalty: Tensor) -> Tensor:
    """Return the f of `smooth` for a given penalty matrix K, by Newton's method from a least-squares fit to the log means. The
    curvature used is at least the expected curvature, so that steps don't overshoot."""
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
    """Return the log marginal likelihood of a penalty matrix, up to a constant. f: maximiser of the penalised likelihood.

    The penalty doesn't change if a constant is added to f, so its matrix is singular; adding 1/B to all entries mends that
    equally for every penalty.
    """
    fitted = (precision * (-mean * (-f).exp() - f)).sum() - 0.5 * f @ penalty @ f
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
    """Return the edges of equal bins of λ from low to high, [bins + 1], float64."""
    return torch.linspace(low, high, bins + 1, dtype=torch.float64)


def bin_middles(edges: Tensor) -> Tensor:
    """Return the centre λ of each bin, [bins]."""
    return 0.5 * (edges[1:] + edges[:-1])


class BinSums:
    """Accumulator of errors in equal bins of λ. values: [3, bins], float64 on `device`: count, sum, and sum of squares."""

    def __init__(self, low: float, high: float, bins: int = BINS, device: torch.device | str = "cpu"):
        self.low, self.width, self.bins = low, (high - low) / bins, bins
        self.values = torch.zeros(3, bins, dtype=torch.float64, device=device)

    def add(self, logsnr: Tensor, error: Tensor) -> None:
        """Add the errors [B] of a batch at their logsnr [B]."""
        index = ((logsnr - self.low) / self.width).floor().long().clamp(0, self.bins - 1)
        error = error.double()
        self.values.index_add_(1, index, torch.stack([torch.ones_like(error), error, error.square()]))

    def take(self) -> Tensor:
        """Return the sums so far on the CPU, and reset them to zero."""
        values = self.values.cpu().clone()
        self.values.zero_()
        return values


@dataclass
class ErrorMoments:
    """Moments of the error ‖ε−ε̂‖²/D in bins of λ.

    edges: [bins + 1], rising λ. count, mean, second: [bins] each, the number of errors, their mean and their mean square.
    """

    edges: Tensor
    count: Tensor
    mean: Tensor
    second: Tensor

    @classmethod
    def of_sums(cls, edges: Tensor, sums: Tensor) -> ErrorMoments:
        """Return the moments. sums: [3, bins], count, sum and sum of squares; counts are fractional if weights decay."""
        count = sums[0].where(sums[0] > 0, 1)
        return cls(edges, sums[0], sums[1] / count, sums[2] / count)

    @property
    def middle(self) -> Tensor:
        """Centre λ of each bin, [bins]."""
        return bin_middles(self.edges)

    @property
    def seen(self) -> Tensor:
        """Whether each bin has at least two errors and a positive mean, [bins], bool."""
        return (self.count >= 2) & (self.mean > 0)

    @property
    def mean_se(self) -> Tensor:
        """Standard error of each mean, [bins]; NaN unless a bin has a count above 1."""
        spread = (self.second - self.mean.square()).clamp(min=0) / (self.count - 1)
        return spread.sqrt().where(self.count > 1, torch.nan)

    @cached_property
    def smoothed(self) -> ErrorMoments:
        """Moments smoothed in λ: bins with few or no errors take their values from their neighbours.

        The relative variance of an error is smoothed first, because it determines the precision of the means.
        Raises DataError if no bin has two errors.
        """
        if not bool(self.seen.any()):
            raise DataError("the loss log has no bin of noise levels with two errors yet; train longer before fitting a schedule")
        beyond = (self.count - 1).clamp(min=0)
        ratio = self.second / self.mean.square().where(self.mean > 0, 1)
        spread = ((ratio - 1) * self.count / beyond.where(beyond > 0, 1)).clamp(min=LEAST_SPREAD)
        # A variance has relative variance (2 + excess kurtosis)/n; the excess of a gamma variable is 6 × its relative variance.
        typical = (beyond * spread).sum() / beyond.sum()
        spread = smooth(self.middle, spread, beyond / (2 + 6 * typical))
        mean = smooth(self.middle, self.mean, self.count / spread)
        return ErrorMoments(self.edges, self.count, mean, mean.square() * (1 + spread))

    def filled(self) -> ErrorMoments:
        """Return the measured moments, which are unbiased, with smoothed values in bins with fewer than two errors.

        Raises DataError if no bin has two errors.
        """
        known, seen = self.smoothed, self.seen
        return ErrorMoments(self.edges, self.count, self.mean.where(seen, known.mean), self.second.where(seen, known.second))


def fine_levels(edges: Tensor) -> Tensor:
    """Return POINTS equally spaced λ inside each bin, [bins, POINTS]."""
    part = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    return edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * part


def check_floor(floor: float) -> None:
    """Raise UsageError unless LEAST_FLOOR ≤ floor ≤ 1."""
    if not LEAST_FLOOR <= floor <= 1:
        raise UsageError(f"floor is {floor:g}; it must be from {LEAST_FLOOR:g} to 1")


def fit_schedule(
    moments: ErrorMoments,
    weighting: Weighting,
    criterion: str = "loss",
    floor: float = 0.01,
    base: str = "fitted",
    least: Tensor | None = None,
) -> Schedule:
    """Return the schedule with density proportional to weighting × criterion in each bin.

    criterion: a name of CRITERIA, a function of the moments. floor: least density, as a fraction of the uniform density.
    base: name of the schedule. least: [bins], least possible error of a denoiser, needed for the criterion `excess`.
    Raises UsageError for an unknown criterion, a missing `least`, or a floor outside [LEAST_FLOOR, 1]; DataError if no bin
    has two errors, or if weighting × criterion is zero or not finite.
    """
    known = moments.smoothed
    score = CRITERIA.find(criterion)(known.mean, known.second, least)
    return schedule_of_scores(moments.edges, score, weighting, floor, base)


def schedule_of_scores(edges: Tensor, score: Tensor, weighting: Weighting, floor: float = 0.01, base: str = "fitted") -> Schedule:
    """Return the schedule with density proportional to weighting × score [bins] in each bin.

    floor: least density, as a fraction of the uniform density. base: name of the schedule.
    Raises UsageError for a floor outside [LEAST_FLOOR, 1], DataError if weighting × score is zero or not finite.
    """
    check_floor(floor)
    width = edges.diff()
    mass = weighting(fine_levels(edges)).mean(1) * score * width
    if not bool(mass.isfinite().all()) or float(mass.sum()) <= 0:
        raise DataError("weighting times error is zero or not finite on the noise levels of the log; choose another weighting")
    return schedule_of_shares(edges, floored(mass / mass.sum(), width, floor), base)


def floored(shares: Tensor, width: Tensor, floor: float) -> Tensor:
    """Return the probabilities of bins, [bins], raised to at least `floor` × those of a density that is uniform in λ.

    shares: [bins], the given probabilities, of sum 1. width: [bins], widths of the bins in λ. Bins above the floor lose
    probability in proportion to their excess over the floor. If no bin is below the floor, no probability changes.
    """
    least = floor * width / width.sum()
    above = (shares - least).clamp(min=0)
    return least + (1 - floor) * above / above.sum().clamp(min=TINY)


def loss_variance(
    moments: ErrorMoments, weighting: Weighting, density: Callable[[Tensor], Tensor], batch: int | None = None
) -> tuple[float, float]:
    """Return the relative variance Var/L² per example of the loss estimate, for (independent, low-discrepancy) t.

    density: the density p(λ) from which λ is drawn. batch: number of examples in a batch; None: the limit of large batches.
    With e = ‖ε−ε̂‖², independent t give ∫ w² E[e²]/p / (∫ w E[e])² − 1. Low-discrepancy t give ∫ w² Var[e]/p / (∫ w E[e])²
    plus the integration error of `batch` equally spaced times, which is zero in the limit of large batches.
    Both variances are infinite if p is zero where w is not.
    """
    known = moments.filled()
    at = fine_levels(moments.edges)
    cell = moments.edges.diff()[:, None] / POINTS
    w, p = weighting(at), density(at)
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


def _comb_variance(known: ErrorMoments, weighting: Weighting, density: Callable[[Tensor], Tensor], batch: int) -> float:
    """Return the integration error of equally spaced times, batch × Var/L². Var is the variance of the mean of (w/p) E[e] over
    the times t = (offset + k) / batch, k = 0 … batch − 1, for an offset uniform in [0, 1). known: smoothed moments of e.
    """
    batch = min(batch, LARGEST_COMB)
    offsets = TIMES // batch
    at = fine_levels(known.edges).flatten().flip(0)
    width = (known.edges.diff() / POINTS).repeat_interleave(POINTS).flip(0)
    share = density(at) * width
    times = torch.cat([torch.zeros(1, dtype=torch.float64), share.cumsum(0)]) / share.sum()
    ends = torch.cat([known.edges[-1:], known.edges[-1] - width.cumsum(0)])
    t = (torch.arange(batch * offsets, dtype=torch.float64) + 0.5) / (batch * offsets)
    logsnr = _interpolate(t, times, ends)
    mean = _interpolate(logsnr, known.middle, known.mean.log()).exp()
    value = (weighting(logsnr) / density(logsnr) * mean).reshape(batch, offsets).mean(0)
    return batch * float(value.var(correction=0) / value.mean().square())


def _interpolate(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Interpolate values at rising knots linearly at `at`, and continue them as constants outside the knots."""
    right = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
    part = (at - knots[right - 1]) / (knots[right] - knots[right - 1]).clamp(min=TINY)
    return values[right - 1].lerp(values[right], part.clamp(0, 1))


class AdaptiveSchedule:
    """Schedule fitted to the recent errors of a network in training; older errors have lower weight.

    After n images, an error that is k images old has weight (1 − k/n)^(1/SHARE). So the window is about the last SHARE of the
    run, and no initial value has to be forgotten. The window grows up to LONGEST images; from then on the weights decay
    exponentially. The weights depend on the number of images, not on the errors per bin, because an old error in a rarely
    visited bin is as outdated as in any other. Smoothing fills such bins from their neighbours.

    edges: [bins + 1], edges of the bins of λ.
    state: [4, bins], float64, for checkpoints: weighted count, sum and sum of squares; count of all errors, unweighted.
    """

    def __init__(self, edges: Tensor):
        self.edges, self.state = edges, torch.zeros(4, len(edges) - 1, dtype=torch.float64)

    def update(self, sums: Tensor) -> None:
        """Add count, sum and sum of squares [3, bins] of the errors since the last update."""
        before, fresh = float(self.state[3].sum()), float(sums[0].sum())
        if not fresh:
            return
        kept = min((before / (before + fresh)) ** (1 / SHARE), math.exp(-fresh / LONGEST))
        self.state[:3] = kept * self.state[:3] + sums
        self.state[3] += sums[0]

    def moments(self) -> ErrorMoments:
        """Return the weighted moments of the recent errors."""
        return ErrorMoments.of_sums(self.edges, self.state[:3])

    def schedule(self, weighting: Weighting, floor: float) -> Schedule:
        """Return the current schedule, uniform in λ until a bin has two errors. floor: least density / uniform density."""
        known = self.moments()
        if not bool(known.seen.any()):
            return schedule_of_shares(self.edges, self.edges.diff(), "adaptive")
        return fit_schedule(known, weighting, "loss", floor, "adaptive")


def refuse_adaptive(weighting: Weighting) -> None:
    """Raise UsageError for the learned weighting, which needs a fixed schedule."""
    if weighting.learned:
        raise UsageError(f"{LEARNED} needs a schedule that stays fixed, not adaptive; choose one such as edm:mean=-0.4,std=1")


def learned_weighting(weighting: Weighting, schedule: Schedule, prediction: Prediction, online: AdaptiveSchedule) -> Weighting:
    """Return the current learned weighting: the schedule's density divided by the recent errors, smoothed in λ.

    online: the recent errors. Until a bin has two errors, the weighting uses the errors that a network with output zero would
    have for a target of variance 1. The loss is then half the unweighted squared error of the output, as at EDM2's start.
    """
    known = online.moments()
    seen = bool(known.seen.any())
    error = known.smoothed.mean if seen else prediction.coefficients(known.middle).eps_factor
    return weighting.knowing(schedule, known.middle, error)


def followed(
    online: AdaptiveSchedule | None, weighting: Weighting, schedule: Schedule, prediction: Prediction, floor: float
) -> tuple[Weighting, Schedule]:
    """Return the weighting and schedule for the next step: a learned weighting or an adaptive schedule is refitted.

    online: the recent errors; None if weighting and schedule are fixed. schedule: the current schedule. floor: least density
    of an adaptive schedule, as a fraction of the uniform density.
    """
    if online is None:
        return weighting, schedule
    if weighting.learned:
        return learned_weighting(weighting, schedule, prediction, online), schedule
    return weighting, online.schedule(weighting, floor)
