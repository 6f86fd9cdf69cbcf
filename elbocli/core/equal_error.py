"""The grid of levels on which every step errs alike.

Of all grids of so many steps it has the least sum of local errors: with h the width of steps and C h^{p+1} their error,
∫ C h^p dλ is least at a given ∫ dλ/h where C h^{p+1} is the same everywhere, whatever the order p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median

from elbocli.core.local_error import StepErrors

SHARE = 0.35
"""Exponent of a step's error in what the next round thinks of its width. 1/(p+1) would be right at once, were C constant;
this is below 2/(p+1) for every order up to 4, so that the rounds converge without it being known."""
ROUNDS = 40
ALIKE = 1.05
"""Ratio of the largest error to the least at which rounds end."""
LEAST = 1e-30


@dataclass(frozen=True)
class EqualErrors:
    """grid: λ, rising. errors: of each step, the last one's to clean data. spread: the largest over the least of those
    that can be changed.
    """

    grid: list[float]
    errors: list[float]
    spread: float
    rounds: int


def equal_errors(step_errors: StepErrors, start: list[float], high: float, rounds: int = ROUNDS) -> EqualErrors:
    """Move the levels of a grid until its steps err alike. start: rising λ; its first level stays.

    The last level, from which a step leads to clean data, moves too, up to `high`. Returns the best grid seen.
    """
    grid, best = start, None
    for count in range(1, rounds + 1):
        errors = [max(error, LEAST) for error in step_errors(grid)]
        # At `high` a last step that errs more than others is as good as it can be.
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
