"""Errors of single steps in closed form on normals, their orders on a mixture, and grids whose steps err alike."""

import math
from functools import partial
from itertools import pairwise
from statistics import median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.core.prediction import alpha_sigma
from elbocli.core.schedule import parse_schedule
from elbocli.errors import DataError, UsageError
from elbocli.sampling.local_error import ALIKE, FineSolution, equal_errors, rms
from elbocli.sampling.samplers import no_noise, parse_sampler, walk
from elbocli.sampling.spacing import logsnr_grid

LOW = -10.0
HIGH = 10.0


SPREAD = 0.3


ORDERS = {"ddim": 1, "heun": 2, "heun:space=path": 2, "dpmpp-2m": 2}


def normal(z, logsnr):
    """The exact denoiser of N(0, SPREAD²)."""
    alpha, sigma = alpha_sigma(logsnr)
    return z * (alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2))


def scale(logsnr):
    """The standard deviation of z under N(0, SPREAD²), by which every trajectory moves."""
    alpha, sigma = alpha_sigma(logsnr)
    return math.sqrt((alpha * SPREAD) ** 2 + sigma**2)


def noise(n=64):
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def levels(name, steps):
    return logsnr_grid(parse_schedule(name, LOW, HIGH, clip=True), steps)[:-1]


def final_error(solution, sampler, grid):
    """The root-mean-square error of a walk from the solution's start, at λ = inf."""
    return rms(walk(sampler, solution.points[0], [*grid, math.inf], solution.denoise, no_noise) - solution.end)


def order_of(step_errors, grid):
    """The order p of local errors ∝ h^{p+1}, by halves of a grid's steps."""
    halved = [at for a, b in pairwise(grid) for at in (a, 0.5 * (a + b))] + grid[-1:]
    return median(math.log2(a / b) - 1 for a, b in zip(step_errors(grid)[:-1], step_errors(halved)[:-1:2]))


def test_the_fine_solution_is_the_normals_own():
    solution = FineSolution(normal, noise(), LOW, HIGH, 128)
    for at in (LOW, -3.21, 0.0, 0.077, 4.4, HIGH):
        expected = noise() * (scale(at) / scale(LOW))
        torch.testing.assert_close(solution.at(at), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(solution.at(math.inf), normal(solution.at(HIGH), HIGH), rtol=0, atol=0)


def test_a_step_of_ddim_deviates_as_on_paper():
    solution = FineSolution(normal, noise(), LOW, HIGH, 256)
    grid = levels("cosine", 9)
    found = solution.deviations(parse_sampler("ddim"), grid)
    for (now, then), deviation in zip(pairwise(grid), found):
        alpha, sigma = alpha_sigma(now)
        alpha_then, sigma_then = alpha_sigma(then)
        x_hat = alpha * SPREAD**2 / scale(now) ** 2
        made = alpha_then * x_hat + sigma_then * (1 - alpha * x_hat) / sigma
        expected = noise() * (made * scale(now) - scale(then)) / scale(LOW)
        torch.testing.assert_close(deviation, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("spec", "order"), ORDERS.items())
def test_local_errors_have_the_order_of_the_sampler(mixture, spec, order):
    solution = FineSolution(mixture.denoise, noise(), LOW, HIGH, 400)
    errors = partial(solution.errors, parse_sampler(spec))
    assert order_of(errors, levels("uniform", 48)) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("spec", ORDERS)
def test_equal_errors_beat_cosine_on_a_mixture(mixture, spec):
    sampler = parse_sampler(spec)
    solution = FineSolution(mixture.denoise, noise(100), LOW, HIGH, 160)
    cosine = levels("cosine", 8)
    found = equal_errors(partial(solution.errors, sampler), cosine, HIGH)
    errors = solution.errors(sampler, found)[:-1]
    assert max(errors) / min(errors) < 1.5
    assert final_error(solution, sampler, found) < final_error(solution, sampler, cosine)


def test_noise_and_estimates_that_are_not_finite_are_refused():
    solution = FineSolution(normal, noise(), LOW, HIGH, 16)
    for spec in ("dpmpp-2m-sde", "heun:s_churn=10"):
        with pytest.raises(UsageError):
            solution.deviations(parse_sampler(spec), levels("cosine", 4))
    with pytest.raises(DataError):
        FineSolution(lambda z, _: z / 0, noise(), LOW, HIGH, 4)


# Grids for errors whose every constant is known


def errors_of(order, peak, last=1.0):
    """C(λ) h^{p+1}, C a bump at `peak`; the last step's is last · e^{−λ/2}."""

    def step_errors(grid):
        steps = [math.exp(-((0.5 * (a + b) - peak) ** 2) / 18) * (b - a) ** (order + 1) for a, b in pairwise(grid)]
        return [*steps, last * math.exp(-grid[-1] / 2)]

    return step_errors


def even(steps, high=HIGH):
    return [LOW + (high - LOW) * k / (steps - 1) for k in range(steps)]


@settings(max_examples=20)
@given(st.sampled_from([1, 2, 3, 4]), st.floats(-4, 6), st.integers(6, 40))  # fewer are wider than the bump
def test_all_steps_err_alike_whatever_the_order(order, peak, steps):
    step_errors = errors_of(order, peak, last=1e9)
    grid = equal_errors(step_errors, even(steps), HIGH)
    errors = step_errors(grid)[:-1]
    assert max(errors) / min(errors) <= ALIKE * 1.02
    assert (grid[0], grid[-1]) == (LOW, HIGH) and all(b > a for a, b in pairwise(grid))


def test_the_last_level_moves_to_where_the_step_to_clean_data_errs_as_much():
    step_errors = errors_of(1, 0.0, last=0.5)
    grid = equal_errors(step_errors, even(12, high=3.0), HIGH)
    errors = step_errors(grid)
    assert LOW < grid[-1] < HIGH
    assert errors[-1] == pytest.approx(errors[0], rel=0.06)
    assert max(errors) / min(errors) <= ALIKE
