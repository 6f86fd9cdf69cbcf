"""Local errors of sampling steps, and grids of λ with equal local errors."""
# A sampler without noise solves the probability-flow ODE, dz/dλ = ½ α (x̂ − α z). Its local error is the result of one step
# from a point of the exact trajectory, minus the exact trajectory at the end of the step. Equal local errors give the least
# sum of local errors for a number of steps: for steps of width h and error C h^{p+1}, ∫ C h^p dλ at fixed ∫ dλ/h is least
# where C h^{p+1} is constant.

import math
from collections.abc import Callable
from itertools import accumulate, pairwise

import numpy as np
from torch import Tensor

from elbocli.core.prediction import alpha_sigma
from elbocli.errors import DataError, Parameter
from elbocli.sampling.samplers import Denoise, Move, Sampler, no_noise

# Function: rising λ at which steps start → error of each step; the last step ends at λ = inf
StepErrors = Callable[[list[float]], list[float]]


def slope(z: Tensor, x_hat: Tensor, logsnr: float) -> Tensor:
    """Return dz/dλ of the probability-flow ODE at z."""
    alpha = alpha_sigma(logsnr)[0]
    return (x_hat - alpha * z).mul_(0.5 * alpha)


class FineSolution:
    """Accurate trajectories of the probability-flow ODE from λ = low to λ = high.

    z: noise at λ = low, [B, …].
    cells: number of equal Runge-Kutta steps in λ.
    Raises DataError: when x̂ is not finite.
    """

    def __init__(self, denoise: Denoise, z: Tensor, low: float, high: float, cells: int):
        self.denoise = denoise
        self.low = low
        self.width = (high - low) / cells
        self.points: list[Tensor] = []
        self.slopes: list[Tensor] = []
        levels = [low + self.width * cell for cell in range(cells)] + [high]
        for now, then in pairwise([*levels, math.inf]):
            x_hat = denoise(z, now)
            k1 = slope(z, x_hat, now)
            self.points.append(z)
            self.slopes.append(k1)
            if then < math.inf:
                h = then - now
                middle = 0.5 * (now + then)
                at = z + 0.5 * h * k1
                k2 = slope(at, denoise(at, middle), middle)
                at = z + 0.5 * h * k2
                k3 = slope(at, denoise(at, middle), middle)
                at = z + h * k3
                k4 = slope(at, denoise(at, then), then)
                z = z + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)
        self.end = x_hat
        if not self.end.isfinite().all():
            raise DataError(
                "the network's data estimate is not finite; use another checkpoint, or ", Parameter("precision"), " fp32"
            )

    def at(self, logsnr: float) -> Tensor:
        """Return z at this λ; λ = inf: the last x̂."""
        if logsnr == math.inf:
            return self.end
        place = (logsnr - self.low) / self.width
        cell = min(max(int(place), 0), len(self.points) - 2)
        s = place - cell
        rest = 1 - (place - cell)
        found = self.points[cell] * ((1 + 2 * s) * rest**2) + self.points[cell + 1] * ((3 - 2 * s) * s**2)
        found += self.slopes[cell] * (self.width * s * rest**2)
        return found.sub_(self.slopes[cell + 1] * (self.width * s**2 * rest))

    def deviations(self, sampler: Sampler, grid: list[float]) -> list[Tensor]:
        """Return each step's local error, a tensor like z. grid: rising λ at which the steps start."""
        # multistep methods get the previous x̂ on the exact trajectory
        found = []
        last = None
        for before, now, then in zip([-math.inf, *grid], grid, [*grid[1:], math.inf]):
            move = Move(now, then, before, len(grid))
            z, last = sampler(self.at(now), last, move, self.denoise, no_noise)
            found.append(z - self.at(then))
        return found

    def errors(self, sampler: Sampler, grid: list[float]) -> list[float]:
        """Return each step's root-mean-square local error times α^−½ at the step's end."""
        # α^−½ estimates how much an error grows until the data: it is the geometric mean of 1, which fits z = αx + σε, and 1/α,
        # which fits y = z/α. On mixtures with exact denoisers, α^−½ gave smaller final errors than 1, 1/α or measured growth.
        found = zip(self.deviations(sampler, grid), [*grid[1:], math.inf], strict=True)
        return [rms(each) / math.sqrt(alpha_sigma(then)[0]) for each, then in found]


def rms(difference: Tensor) -> float:
    """Return the root mean square of a tensor."""
    return float(difference.double().square().mean().sqrt())


SHARE = 0.35  # each round multiplies the width of a step by (error of the step)^−SHARE
# For errors C h^{p+1}, 1/(p+1) would be exact in one round; below 2/(p+1), for orders p up to 4, rounds converge for unknown p.
ROUNDS = 40
ALIKE = 1.05  # ratio of the largest error to the smallest at which the iteration stops
LEAST = 1e-30


def equal_errors(step_errors: StepErrors, start: list[float], high: float) -> list[float]:
    """Return a grid of noise levels, rising λ at which the steps start, whose steps have about equal errors.

    step_errors: function, grid → error of each step.
    start: initial grid, rising λ at which steps start; the first λ stays fixed. high: upper limit of the last λ.
    """
    grid = start
    tried = list[tuple[float, list[float]]]()
    for _ in range(ROUNDS):
        errors = [max(error, LEAST) for error in step_errors(grid)]
        # At `high` the last level can't move on, so a larger error of the last step is ignored.
        free = errors[:-1] if grid[-1] >= high and errors[-1] > max(errors[:-1]) else errors
        spread = max(free) / min(free)
        tried.append((spread, grid))
        if spread <= ALIKE:
            break
        grid = _moved(grid, errors, high)
    return min(tried)[1]


def _moved(grid: list[float], errors: list[float], high: float) -> list[float]:
    # Each new step gets an equal part of Σ errors^SHARE, uniform within a step. The last error falls about as e^{−λ/2}.
    typical = math.exp(sum(map(math.log, errors[:-1])) / (len(errors) - 1))
    by = 2 * SHARE * math.log(errors[-1] / typical)
    last = min(grid[-1] + max(by, 0.5 * (grid[-2] - grid[-1])), high)
    masses = [error**SHARE for error in errors[:-1]]
    masses[-1] *= (last - grid[-2]) / (grid[-1] - grid[-2])
    knots = [*grid[:-1], last]
    sums = [0.0, *accumulate(masses)]
    return np.interp(np.linspace(0, sums[-1], len(grid)), sums, knots).tolist()
