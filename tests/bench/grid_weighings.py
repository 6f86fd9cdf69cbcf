"""Weighings of the errors of steps, and the grid of equal errors that each gives: `python tests/bench/grid_weighings.py`

On three mixtures with exact denoisers, at 8, 16 and 32 evaluations: the error at the end of walks on grids whose steps err
alike under several weighings, relative to the best of them, as geometric means.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import torch
from grids import DIMENSIONS, SAMPLERS, Bench, Mixture, steps_of

from elbocli.core.equal_error import equal_errors
from elbocli.core.local_error import FineSolution, deviations, no_noise, rms, runge_kutta
from elbocli.core.logsnr import alpha_sigma
from elbocli.core.samplers.walk import Sampler, parse_sampler, walk
from elbocli.core.streams import Stream


def growth(sampler: Sampler, bench: Bench) -> Callable[[float], float]:
    """λ → the factor from a small error of z to that of the data, measured: the errors of 12 steps are carried to the end."""
    grid = bench.even("cosine", 13)
    levels, errors = grid[1:], deviations(sampler, grid, bench.denoise, bench.solution)[:-1]
    carried = [bench.solution.at(levels[0])]
    for index, (now, then) in enumerate(pairwise([*levels, bench.high])):
        carried.append(carried[0] + errors[index])
        parts = math.ceil((then - now) / 0.5)
        for part in range(parts):
            a, b = (now + (then - now) * k / parts for k in (part, part + 1))
            carried = [runge_kutta(bench.denoise, z, a, b) for z in carried]
    ends = [bench.denoise(z, bench.high) for z in carried]
    logs = [math.log(rms(end - ends[0]) / rms(error)) for end, error in zip(ends[1:], errors)]
    return lambda at: math.exp(float(np.interp(at, levels, logs)))


def weighed_grid(sampler: Sampler, steps: int, bench: Bench, factor: Callable[[float], float]) -> list[float]:
    """The grid on which all steps err alike when an error of z counts for a factor of λ."""

    def weighed(grid: list[float]) -> list[float]:
        found = [rms(each) for each in deviations(sampler, grid, bench.denoise, bench.solution)]
        return [error * factor(then) for error, then in zip(found, grid[1:])] + found[-1:]

    return equal_errors(weighed, bench.even("cosine", steps), bench.high).grid


def weighings() -> None:
    """Geometric means, over mixtures, counts and samplers, of the final error relative to the best weighing's."""
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    low, high = -10.0, 10.0
    for within, count in ((0.1, 5), (0.3, 8), (0.6, 12)):
        mixture = Mixture(within, count)
        pilot, z = (Stream(k, "noise").normal(range(n), (DIMENSIONS,)).double() for k, n in ((1, 96), (0, 1500)))
        bench = Bench(low, high, mixture.errors(low, high, 500), pilot, mixture.denoise)
        truth = FineSolution(mixture.denoise, z, low, high, 128).end
        for spec, evaluations in product(SAMPLERS[:3], (8, 16, 32)):
            sampler, steps, errors = parse_sampler(spec), steps_of(spec, evaluations), {}
            grown = growth(sampler, bench)
            factors: dict[str, Callable[[float], float]] = {
                "1, as in z": lambda at: 1.0,
                "α^-1/2": lambda at: alpha_sigma(at)[0] ** -0.5,
                "1/α, as in z/α": lambda at: 1 / alpha_sigma(at)[0],
                "growth": grown,
                "growth α^-1/2": lambda at, grown=grown: grown(at) * alpha_sigma(at)[0] ** -0.5,
            }
            grids = {name: bench.even(name, steps) for name in ("cosine", "edm-sample")}
            for name, factor in factors.items():
                grids[name] = weighed_grid(sampler, steps, bench, factor)
            for name, grid in grids.items():
                errors[name] = rms(walk(sampler, z, [*grid, math.inf], mixture.denoise, no_noise) - truth)
            least = min(errors[name] for name in factors)
            for name, error in errors.items():
                ratios[spec, name].append(error / least)
    names = list(dict.fromkeys(name for _, name in ratios))
    print("| sampler | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
    for spec in SAMPLERS[:3]:
        print(
            f"| `{spec}` | "
            + " | ".join(f"{math.exp(float(np.mean(np.log(ratios[spec, name])))):.2f}" for name in names)
            + " |"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.inference_mode():
        weighings()
