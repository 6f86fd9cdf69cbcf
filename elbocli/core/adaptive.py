"""Fitting a schedule to per-λ errors, so that it samples them well. Training and `adapt` use the same code.

The statistics are of the unweighted per-dimension error ‖ε−ε̂‖²/D in equal bins of λ, so that one log
serves every weighting. Source: arXiv:2303.00848 sec. 4 for the `loss` criterion; the others minimise the
variance of the loss estimate under independent t (`second-moment`) and low-discrepancy t (`std`).

`smooth` draws a positive curve through noisy means, some of which rest on few observations or on none.

The error of a denoiser is smooth in λ, so neighbouring bins inform each other. The fewer observations a bin has, the
more its neighbours count. The data determine how smooth the curve is. The model is a generalised additive one: gamma
likelihood, log link, a penalty on the curve's roughness whose scale has the largest marginal likelihood (Wood 2011, by
Laplace).

The weighting `uncertainty`, learned while a run trains: EDM2's u(σ) in effect, from the statistics of its errors.

Under its loss every t counts alike. So the density that samples it best, ∝ w e, is the schedule itself: each schedule is the
adaptive one of this weighting, and the two can't be learned at once. It rises wherever p rises faster than e, hence left
of the peak of p in general, and is no ELBO then.

`uncertainty:monotone` is one: the least non-increasing w that is nowhere smaller, as the modifier makes of any weighting
(core/monotone.py). A running minimum from the noisy end would be next to zero everywhere, because p is there; least
squares, by pooling neighbours, would depend on the measure of λ in which squares are added, and would lower the peak.
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

# f″ may wander by BEND in a unit of λ (variance; from nearly straight in log to a jump between bins), f by TILT.
BENDS = tuple(0.005 * 8**k for k in range(5))
TILT = 1.0
ROUNDS = 50
CLOSE = 1e-6


def through(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """A curve through the values at rising knots: cubics, whose slope at a knot is that between its neighbours.

    Any shape of `at` gives the same; beyond the knots the outer cubics go on. Straight lines would bend at every knot, and
    a product with a smooth function could rise and fall again within each cell.
    """
    (slope,) = torch.gradient(values, spacing=(knots,))
    right = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
    left = right - 1
    width, rise = knots[right] - knots[left], values[right] - values[left]
    part, first, last = (at - knots[left]) / width, width * slope[left], width * slope[right]
    return values[left] + part * (first + part * (3 * rise - 2 * first - last + part * (first + last - 2 * rise)))


def roughness(at: Tensor, bend: float) -> Tensor:
    """[B, B] K with fᵀKf ≈ ∫ f″²/bend + f′²/TILT dλ for f given at these λ, however dense they are. at: [B] float64.

    The second term keeps what no observation tells level, far from any that does.
    """
    step = at.diff()
    slope = torch.eye(len(at), dtype=torch.float64).diff(dim=0) / step[:, None]
    turn = slope.diff(dim=0)
    between = 0.5 * (step[1:] + step[:-1])
    return turn.T @ (turn / between[:, None]) / bend + slope.T @ (slope * step[:, None]) / TILT


def smooth(at: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """e^f for the f that maximises Σ precision·(−mean e^{−f} − f) − ½ fᵀKf, with the likeliest bend: [B], positive.

    at: [B] rising. mean: [B], not negative. precision: [B], 1 over the relative variance of that mean, 0 where there
    is none; a positive mean with a positive precision somewhere. All float64. The gamma likelihood weighs relative
    errors, and is free of the bias that logarithms of noisy means have.
    """
    found = []
    for bend in BENDS:
        penalty = roughness(at, bend)
        f = _maximum(mean, precision, penalty)
        found.append((_evidence(f, mean, precision, penalty), f))
    return max(found, key=lambda pair: pair[0])[1].exp()


def _maximum(mean: Tensor, precision: Tensor, penalty: Tensor) -> Tensor:
    """The f of `smooth` for one penalty: from the normal approximation by Newton's method, with a curvature never
    below the expected one, so that no step goes too far."""
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
    """Log marginal likelihood of the penalty, up to a constant. f: where the penalised likelihood is largest.

    The penalty ignores the curve's level: 1/B fills that one direction, alike for every penalty.
    """
    fitted = (precision * (-mean * (-f).exp() - f)).sum() - 0.5 * f @ penalty @ f
    volume = torch.logdet(penalty + 1 / len(f)) - torch.logdet(penalty + precision.diag())
    return float(fitted + 0.5 * volume)


BINS = 100
POINTS = 16  # λ inside a bin at which w and p are looked at
SHARE = 1 / 8  # of a run that Online remembers: shorter follows better, longer scatters less
LONGEST = 100_000  # images: about the memory of a .999 average at batch 128
LEAST_SPREAD = 1e-9  # relative variance of an error: even equal errors leave the logarithm finite
TIMES = 2**16  # at which a comb's error is integrated
LARGEST_COMB = 2**12
TINY = 1e-300
LEAST_FLOOR = 1e-9  # with less, no double tells the times of neighbouring bins apart


def bin_edges(low: float, high: float, bins: int = BINS) -> Tensor:
    """[bins + 1] float64 edges of equal bins of λ."""
    return torch.linspace(low, high, bins + 1, dtype=torch.float64)


def bin_middles(edges: Tensor) -> Tensor:
    """[bins] λ in the middle of each bin."""
    return 0.5 * (edges[1:] + edges[:-1])


class BinSums:
    """Count, sum and sum of squares of the error in each bin. values: [3, bins] float64 on the device of the step."""

    def __init__(self, low: float, high: float, bins: int = BINS, device: torch.device | str = "cpu"):
        self.low, self.width, self.bins = low, (high - low) / bins, bins
        self.values = torch.zeros(3, bins, dtype=torch.float64, device=device)

    def add(self, logsnr: Tensor, error: Tensor) -> None:
        """logsnr, error: [B]."""
        index = ((logsnr - self.low) / self.width).floor().long().clamp(0, self.bins - 1)
        error = error.double()
        self.values.index_add_(1, index, torch.stack([torch.ones_like(error), error, error.square()]))

    def take(self) -> Tensor:
        """The sums so far, on the CPU; starts again from zero."""
        values = self.values.cpu().clone()
        self.values.zero_()
        return values


@dataclass
class ErrorMoments:
    """First and second moment of the error per bin, and how many errors each bin has seen: [bins] each."""

    edges: Tensor
    count: Tensor
    mean: Tensor
    second: Tensor

    @classmethod
    def of_sums(cls, edges: Tensor, sums: Tensor) -> ErrorMoments:
        """Moments from count, sum, sum of squares [3, bins]. Counts may be fractions: errors that fade from memory."""
        count = sums[0].where(sums[0] > 0, 1)
        return cls(edges, sums[0], sums[1] / count, sums[2] / count)

    @property
    def middle(self) -> Tensor:
        """λ in the middle of each bin."""
        return bin_middles(self.edges)

    @property
    def seen(self) -> Tensor:
        """Bins that can be trusted, those with two errors or more: [bins] bool."""
        return (self.count >= 2) & (self.mean > 0)

    @property
    def mean_se(self) -> Tensor:
        """Standard error of each mean; NaN where fewer than two errors were seen."""
        spread = (self.second - self.mean.square()).clamp(min=0) / (self.count - 1)
        return spread.sqrt().where(self.count > 1, torch.nan)

    @cached_property
    def smoothed(self) -> ErrorMoments:
        """Both moments, smoothed in λ: a bin that was rarely or never seen takes its value from its neighbours.

        First the relative variance of an error, then the mean, whose precision in each bin follows from that.
        Raises DataError when no bin was seen twice.
        """
        if not bool(self.seen.any()):
            raise DataError("the log has no noise level with two errors yet; train longer before fitting a schedule")
        beyond = (self.count - 1).clamp(min=0)
        ratio = self.second / self.mean.square().where(self.mean > 0, 1)
        spread = ((ratio - 1) * self.count / beyond.where(beyond > 0, 1)).clamp(min=LEAST_SPREAD)
        # The relative variance of a variance is (2 + excess kurtosis) / n, and a gamma's excess is 6 × its relative variance.
        typical = (beyond * spread).sum() / beyond.sum()
        spread = smooth(self.middle, spread, beyond / (2 + 6 * typical))
        mean = smooth(self.middle, self.mean, self.count / spread)
        return ErrorMoments(self.edges, self.count, mean, mean.square() * (1 + spread))

    def filled(self) -> ErrorMoments:
        """Moments as measured, which have no bias, but smoothed where a bin was seen less than twice.

        Raises DataError when no bin was seen twice.
        """
        known, seen = self.smoothed, self.seen
        return ErrorMoments(
            self.edges, self.count, self.mean.where(seen, known.mean), self.second.where(seen, known.second)
        )


def fine_levels(edges: Tensor) -> Tensor:
    """[bins, POINTS] midpoints inside each bin."""
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
    """The schedule whose density is proportional to weighting × criterion in each bin, nowhere below `floor` of uniform.

    least: the least error in each bin, [bins], for a criterion that needs it. Raises UsageError for an unknown criterion,
    one without the least error that it needs, or a floor outside [LEAST_FLOOR, 1]; DataError for an empty log.
    """
    known = moments.smoothed
    score = CRITERIA.find(criterion)(known.mean, known.second, least)
    return schedule_of_scores(moments.edges, score, weighting, floor, base)


def schedule_of_scores(
    edges: Tensor, score: Tensor, weighting: Weighting, floor: float = 0.01, base: str = "fitted"
) -> Schedule:
    """The schedule whose density is proportional to weighting × score in each bin, nowhere below `floor` of uniform.

    score: [bins]. Raises UsageError for a floor outside [LEAST_FLOOR, 1],
    DataError where no mass is left.
    """
    check_floor(floor)
    width = edges.diff()
    mass = weighting(fine_levels(edges)).mean(1) * score * width
    if not bool(mass.isfinite().all()) or float(mass.sum()) <= 0:
        raise DataError(
            "weighting times error is zero or not finite at every noise level of the log: no schedule fits it"
        )
    return schedule_of_shares(edges, floored(mass / mass.sum(), width, floor), base)


def floored(shares: Tensor, width: Tensor, floor: float) -> Tensor:
    """Shares of all draws, [bins], of which none is below `floor` of uniform. shares: they add up to 1. width: of the bins.

    The bins above the floor give up the mass that it adds, in proportion to their mass above it. If no bin is below
    the floor, the floor changes nothing.
    """
    least = floor * width / width.sum()
    above = (shares - least).clamp(min=0)
    return least + (1 - floor) * above / above.sum().clamp(min=TINY)


def loss_variance(
    moments: ErrorMoments, weighting: Weighting, density: Callable[[Tensor], Tensor], batch: int | None = None
) -> tuple[float, float]:
    """Var/L² of the loss estimate per example under p(λ), for independent and for low-discrepancy t.

    With e = ‖ε−ε̂‖²: independent ∫ w² E[e²]/p / (∫ w E[e])² − 1. Low-discrepancy t leaves ∫ w² Var[e]/p / (∫ w E[e])²
    and what a comb of `batch` times misses of the conditional mean; None: nothing, the limit of large batches.
    Infinite where p is zero and w is not.
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
    """batch × Var/L² of the mean of (w/p) E[e] over t = (offset + 0, 1, 2, …) / batch, the offset uniform in [0, 1)."""
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
    """Linear between knots, constant beyond them."""
    right = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
    part = (at - knots[right - 1]) / (knots[right] - knots[right - 1]).clamp(min=TINY)
    return values[right - 1].lerp(values[right], part.clamp(0, 1))


class AdaptiveSchedule:
    """Statistics that follow a network in training: an error counts for less the more images were seen after it.

    The window grows with the run: after n images, an error that is k images old has weight (1 − k/n)^(1/SHARE). So the
    window is about the last SHARE of the run from the start, and there is no initial value to forget. It grows up to
    LONGEST images; from then on the weights decay exponentially. All bins forget equally, by images and not by their
    own errors, because an old error of a rarely visited bin is as outdated as any. Smoothing fills such a bin from its
    neighbours.

    state: [4, bins] float64, all that a checkpoint needs: weighted count, sum, sum of squares; errors ever seen.
    """

    def __init__(self, edges: Tensor):
        self.edges, self.state = edges, torch.zeros(4, len(edges) - 1, dtype=torch.float64)

    def update(self, sums: Tensor) -> None:
        """Take in [3, bins] of count, sum and sum of squares since the last update."""
        before, fresh = float(self.state[3].sum()), float(sums[0].sum())
        if not fresh:
            return
        kept = min((before / (before + fresh)) ** (1 / SHARE), math.exp(-fresh / LONGEST))
        self.state[:3] = kept * self.state[:3] + sums
        self.state[3] += sums[0]

    def moments(self) -> ErrorMoments:
        """Moments of what is remembered now."""
        return ErrorMoments.of_sums(self.edges, self.state[:3])

    def schedule(self, weighting: Weighting, floor: float) -> Schedule:
        """The schedule to sample from now: uniform in λ until two errors have been seen somewhere."""
        known = self.moments()
        if not bool(known.seen.any()):
            return schedule_of_shares(self.edges, self.edges.diff(), "adaptive")
        return fit_schedule(known, weighting, "loss", floor, "adaptive")


def refuse_adaptive(weighting: Weighting) -> None:
    """Raise UsageError for the learned weighting, which needs a schedule that stays."""
    if weighting.learned:
        raise UsageError(f"{LEARNED} needs a schedule that stays, such as edm:mean=-0.4,std=1")


def learned_weighting(
    weighting: Weighting, schedule: Schedule, prediction: Prediction, online: AdaptiveSchedule
) -> Weighting:
    """The weighting to train with now: the density of the schedule over the errors that are remembered, smoothed in λ.

    Until two errors have been seen somewhere, the error is that of a network which says nothing but zeros where its target
    has variance 1. The loss is then half the plain squared error of its output, with which EDM2 begins, too.
    """
    known = online.moments()
    seen = bool(known.seen.any())
    error = known.smoothed.mean if seen else prediction.coefficients(known.middle).eps_factor
    return weighting.knowing(schedule, known.middle, error)


def followed(
    online: AdaptiveSchedule | None, weighting: Weighting, schedule: Schedule, prediction: Prediction, floor: float
) -> tuple[Weighting, Schedule]:
    """Weighting and schedule to train with now: the one follows the errors where it is learned, else the other does.

    online: the errors; None where both stay. schedule: the one until now. floor: of one that adapts.
    """
    if online is None:
        return weighting, schedule
    if weighting.learned:
        return learned_weighting(weighting, schedule, prediction, online), schedule
    return weighting, online.schedule(weighting, floor)
