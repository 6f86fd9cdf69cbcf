"""Errors of single steps: what each step of a walk does wrong, and how much of that counts for the data.

A sampler without noise follows the probability-flow equation, dz/dλ = ½ α (x̂ − α z). Its local error is its step
from a point of the exact trajectory, less the trajectory's own point at the end of that step. The trajectory is solved
once, much more finely. An ancestral step has an exact mean; its error is the variance that it leaves out.

The grid of levels on which every step errs alike.

This grid has the least sum of local errors of all grids with as many steps: with h the width of steps and C h^{p+1} their error,
∫ C h^p dλ is least at a given ∫ dλ/h where C h^{p+1} is the same everywhere, whatever the order p.
"""

import math
from collections.abc import Callable
from itertools import accumulate, pairwise
from statistics import median
from typing import NamedTuple

from torch import Tensor

from elbocli.core.adaptive import ErrorMoments
from elbocli.core.prediction import alpha_sigma
from elbocli.core.samplers import Denoise, Move, Sampler, no_noise, walk
from elbocli.errors import DataError

StepErrors = Callable[[list[float]], list[float]]
"""Levels of λ, rising and all finite → the error of each step as it arrives in the data, the last one's to clean data."""


def slope(z: Tensor, x_hat: Tensor, logsnr: float) -> Tensor:
    """dz/dλ of the probability-flow equation."""
    alpha = alpha_sigma(logsnr)[0]
    return (x_hat - alpha * z).mul_(0.5 * alpha)


class FineSolution:
    """Trajectories from noise z [B, …] at λ = low to λ = high, and the data they end in: `end`, x̂ at high.

    cells: equal steps in λ by the classical method of fourth order; between their ends z is a cubic with the exact slopes.
    Kept on the device: 2 (cells + 1) tensors like z.
    """

    def __init__(self, denoise: Denoise, z: Tensor, low: float, high: float, cells: int):
        self.denoise, self.low, self.width = denoise, low, (high - low) / cells
        self.points: list[Tensor] = []
        self.slopes: list[Tensor] = []
        levels = [low + self.width * cell for cell in range(cells)] + [high]
        for now, then in pairwise([*levels, math.inf]):
            x_hat = denoise(z, now)
            k1 = slope(z, x_hat, now)
            self.points.append(z)
            self.slopes.append(k1)
            if then < math.inf:
                h, middle = then - now, 0.5 * (now + then)
                at = z + 0.5 * h * k1
                k2 = slope(at, denoise(at, middle), middle)
                at = z + 0.5 * h * k2
                k3 = slope(at, denoise(at, middle), middle)
                at = z + h * k3
                k4 = slope(at, denoise(at, then), then)
                z = z + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)
        self.end = x_hat
        if not bool(self.end.isfinite().all()):
            raise DataError("the network's estimates are not finite along its own trajectories; no grid fits them")

    def at(self, logsnr: float) -> Tensor:
        """z at any λ from low to high; the data at inf."""
        if logsnr == math.inf:
            return self.end
        place = (logsnr - self.low) / self.width
        cell = min(max(int(place), 0), len(self.points) - 2)
        s, rest = place - cell, 1 - (place - cell)
        found = self.points[cell] * ((1 + 2 * s) * rest**2) + self.points[cell + 1] * ((3 - 2 * s) * s**2)
        found += self.slopes[cell] * (self.width * s * rest**2)
        return found.sub_(self.slopes[cell + 1] * (self.width * s**2 * rest))

    def deviations(self, sampler: Sampler, grid: list[float]) -> list[Tensor]:
        """The local error of each step of a sampler without noise: of z at its end, of the data for the last.

        grid: rising, then clean data is added. A multistep method gets the x̂ of the trajectory's own point at the level before.
        """
        found, last = [], None
        for before, now, then in zip([-math.inf, *grid], grid, [*grid[1:], math.inf]):
            move = Move(now, then, before, len(grid))
            z, last = sampler(self.at(now), last, move, self.denoise, no_noise)
            found.append(z - self.at(then))
        return found

    def errors(self, sampler: Sampler, grid: list[float]) -> list[float]:
        """Root-mean-square local errors, times α^−½ at the end of each step.

        An error of z = αx + σε stays about as large on its way to the data, where the spread of z is about 1 throughout; one of
        y = z/α would count for 1/α. Their geometric mean gave the smallest errors at the end of walks, on mixtures with their
        exact denoisers: docs/measurements.md has the comparison, with the growth as measured too.
        """
        found = zip(self.deviations(sampler, grid), [*grid[1:], math.inf], strict=True)
        return [rms(each) / math.sqrt(alpha_sigma(then)[0]) for each, then in found]

    def final_error(self, sampler: Sampler, grid: list[float]) -> float:
        """The error of the data at the end of a whole walk: root mean square over all values."""
        return rms(walk(sampler, self.points[0], [*grid, math.inf], self.denoise, no_noise) - self.end)


def rms(difference: Tensor) -> float:
    """Root mean square over all values."""
    return float(difference.double().square().mean().sqrt())


def ancestral_errors(moments: ErrorMoments) -> StepErrors:
    """Variance per dimension that each ancestral step leaves out, as it may arrive in the data, by the loss log alone.

    Given z the step's mean is exact, but x is not x̂: of y = z/α it leaves out c² E Var[x | z], with c = 1 − e^{λ−λ'}
    and E Var[x | z] = e^{−λ} e(λ) per dimension (e: the error of ε per dimension). A deviation of y at λ' then shrinks as
    the mean of x given y does, by factors J between 0 and 1, whose mean over directions is e^λ' E Var[x | z] = e(λ'). Its
    variance shrinks by J²: by e² were all directions alike, by e at most. It is e here: the directions in which most of
    the variance lies shrink least, and on mixtures these grids draw better than those by e². moments: as a log has them.
    """
    known = moments.smoothed
    low, width = float(known.edges[0]), float(known.edges[1] - known.edges[0])
    errors = known.mean.clamp(max=1).tolist()

    def error(logsnr: float) -> float:
        """e(λ) per dimension, linear between the middles of bins."""
        place = (logsnr - low) / width - 0.5
        left = min(max(int(place), 0), len(errors) - 2)
        part = min(max(place - left, 0.0), 1.0)
        return errors[left] * (1 - part) + errors[left + 1] * part

    def step_errors(grid: list[float]) -> list[float]:
        found = []
        for now, then in pairwise([*grid, math.inf]):
            left_out = math.expm1(now - then) ** 2 * math.exp(-now) * error(now)
            found.append(left_out * (error(then) if then < math.inf else 1.0))
        return found

    return step_errors


SHARE = 0.35
"""Each round changes a step's width by its error to the power −SHARE. 1/(p+1) would be exact in one round if C were constant;
this is below 2/(p+1) for every order up to 4, so that the rounds converge without it being known."""
ROUNDS = 40
ALIKE = 1.05
"""Ratio of the largest error to the least at which rounds end."""
LEAST = 1e-30


class EqualErrors(NamedTuple):
    """grid: λ, rising. errors: of each step, the last one's to clean data. spread: the largest over the least of those
    that can be changed.
    """

    grid: list[float]
    errors: list[float]
    spread: float
    rounds: int


def equal_errors(step_errors: StepErrors, start: list[float], high: float) -> EqualErrors:
    """Move the levels of a grid until its steps err alike. start: rising λ; its first level stays.

    The last level, from which a step leads to clean data, moves too, up to `high`. Returns the best grid seen.
    """
    grid, best = start, None
    for count in range(1, ROUNDS + 1):
        errors = [max(error, LEAST) for error in step_errors(grid)]
        # The last level can't go beyond `high`: there, the last step's larger error is left out.
        free = errors[:-1] if grid[-1] >= high and errors[-1] > max(errors[:-1]) else errors
        spread = max(free) / min(free)
        if best is None or spread < best.spread:
            best = EqualErrors(grid, errors, spread, count)
        if spread <= ALIKE:
            break
        grid = _moved(grid, errors, high)
    assert best is not None
    return best


def _moved(grid: list[float], errors: list[float], high: float) -> list[float]:
    """The levels at equal shares of Σ errors^SHARE, which lies evenly within each step; the last level by its own error,
    which falls about as e^{−λ/2}.
    """
    typical = math.exp(sum(map(math.log, errors[:-1])) / (len(errors) - 1))
    by = 2 * SHARE * math.log(errors[-1] / typical)
    last = min(grid[-1] + max(by, 0.5 * (grid[-2] - grid[-1])), high)
    masses = [error**SHARE for error in errors[:-1]]
    masses[-1] *= (last - grid[-2]) / (grid[-1] - grid[-2])
    knots, sums = [*grid[:-1], last], [0.0, *accumulate(masses)]
    found, cell = [grid[0]], 0
    for index in range(1, len(grid) - 1):
        wanted = sums[-1] * index / (len(grid) - 1)
        while sums[cell + 1] < wanted:
            cell += 1
        found.append(knots[cell] + (wanted - sums[cell]) / masses[cell] * (knots[cell + 1] - knots[cell]))
    return [*found, last]


def measured_order(step_errors: StepErrors, grid: list[float]) -> float:
    """The p of a local error that goes like h^{p+1}: the median over steps of log₂ (error of the step / of its first half) − 1.

    The last step, which leads to clean data, has no half.
    """
    halved = [at for a, b in pairwise(grid) for at in (a, 0.5 * (a + b))] + grid[-1:]
    whole, halves = step_errors(grid)[:-1], step_errors(halved)[:-1:2]
    return median(math.log2(max(a, LEAST) / max(b, LEAST)) - 1 for a, b in zip(whole, halves, strict=True))
