"""Samplers walked with exact denoisers: their steps on paper, the moments that they reach, and the order of their error.

Starts are quantiles of a normal, or with noise Sobol's points at every step: means over 2^16 walks are within about .001.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.prediction import alpha_sigma
from elbocli.core.samplers import SAMPLERS, Move, check_sampler, logsnr_grid, parse_sampler, walk
from elbocli.core.schedule import parse_schedule
from elbocli.errors import UsageError

MEAN, VAR = 0.23, 0.8806


LOW, HIGH = -15, 15


EQUATION = {"ddim": 1, "heun": 2, "dpmpp-2m": 2}
"""Order of the error of each walk itself, to the same walk in many steps."""


NOISE = {"ddpm": 1, "ddpm:gamma=0": 1, "ddpm-learned": 1, "dpmpp-2m-sde": 2, "heun:s_churn=10": 2}
"""Order of the error of the variance over all walks."""


TOLERANCE = {
    "ddim": (0.003, 0.03),
    "heun": (0.003, 0.005),
    "dpmpp-2m": (0.003, 0.005),
    "ddpm": (0.007, 0.04),
    "ddpm-learned": (0.007, 0.04),
    "dpmpp-2m-sde": (0.003, 0.016),
    "heun:s_churn=10": (0.003, 0.014),
    "heun:s_churn=40": (0.004, 0.022),
}
"""Sampler → bounds on the errors of mean and variance, at 64 steps on the usual grid."""


def quantiles(n):
    """Return n quantiles of a standard normal, scaled to variance 1."""
    z = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    return z / z.std(correction=0)


def no_noise():
    raise AssertionError("a deterministic sampler asked for noise")


def wanted_by(sampler, denoise):
    """D(z, λ) → x̂ itself, or with a variance where the sampler walks with a learned one: that of ddpm everywhere."""
    if not sampler.traits.learned:
        return denoise
    return lambda z, logsnr: (denoise(z, logsnr), torch.full_like(z, 0.2))


# Walks


def walked(mixture, spec, steps):
    """Data at the end of 2^16 walks with noise, or of 2000 without, on the sampler's usual grid."""
    sampler = parse_sampler(spec)
    schedule = parse_schedule(sampler.traits.grid, LOW, HIGH, clip=True)
    if spec in EQUATION:
        return walk(sampler, quantiles(2000), logsnr_grid(schedule, steps), mixture.denoise, no_noise)
    sobol = torch.quasirandom.SobolEngine(steps + 1, scramble=True, seed=0)
    draws = iter(torch.special.ndtri(sobol.draw(2**16, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)).T.contiguous())
    return walk(sampler, next(draws), logsnr_grid(schedule, steps), wanted_by(sampler, mixture.denoise), lambda: next(draws))


def test_every_sampler_is_here():
    for table in ([*EQUATION, *NOISE], TOLERANCE):
        assert {spec.partition(":")[0] for spec in table} == set(SAMPLERS)


@pytest.mark.parametrize("spec", TOLERANCE)
def test_moments_at_64_steps(mixture, spec):
    x = walked(mixture, spec, 64)
    mean, var = TOLERANCE[spec]
    assert float(x.mean()) == pytest.approx(MEAN, abs=mean)
    assert float(x.var(correction=0)) == pytest.approx(VAR, abs=var)
    data, _, chance = mixture.quadrature(20)
    third = float(chance @ (data - MEAN) ** 3)
    assert float((x - x.mean()).pow(3).mean()) == pytest.approx(third, abs=0.05)


@pytest.mark.parametrize(("spec", "order"), EQUATION.items())
def test_a_walk_along_the_equation_converges_with_its_order(mixture, spec, order):
    z, schedule = quantiles(500), parse_schedule(parse_sampler(spec).traits.grid, LOW, HIGH, clip=True)
    truth, *ends = (
        walk(parse_sampler(spec), z, logsnr_grid(schedule, steps + 1), mixture.denoise, no_noise) for steps in (2048, 32, 64)
    )
    errors = np.array([float((end - truth).square().mean().sqrt()) for end in ends])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.15)


@pytest.mark.parametrize(("spec", "order"), NOISE.items())
def test_the_variance_of_walks_with_noise_converges_with_its_order(mixture, spec, order):
    errors = np.array([abs(float(walked(mixture, spec, steps + 1).var(correction=0)) - VAR) for steps in (16, 32)])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.25)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_walk_asks_once_a_step_at_the_grids_levels_and_ends_with_the_denoiser(name):
    """And heun a second time in each step but the last. The start is left as it was."""
    sampler, grid, calls = parse_sampler(name), logsnr_grid(parse_schedule("cosine", -15, 15), 6), []
    start, before = quantiles(4), quantiles(4)

    def denoise(z, logsnr):
        calls.append((logsnr, 0.3 * z))
        return 0.3 * z

    found = walk(sampler, start, grid, wanted_by(sampler, denoise), lambda: quantiles(4))
    levels = grid[:-1] if name != "heun" else [at for pair in pairwise(grid) for at in pair][:-1]
    assert [logsnr for logsnr, _ in calls] == pytest.approx(levels, rel=1e-12)
    np.testing.assert_allclose(found, calls[-1][1], rtol=1e-14)
    assert torch.equal(start, before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_passes_the_check_of_plug_ins(name):
    check_sampler(SAMPLERS[name])


@pytest.mark.parametrize("steps", [1, 2, 64])
def test_the_grid_has_both_ends_and_then_clean_data(steps):
    grid = logsnr_grid(parse_schedule("cosine", -15, 15), steps)
    assert len(grid) == steps + 1 and grid == sorted(grid)
    assert (grid[0], grid[-1]) == (pytest.approx(-15), math.inf)
    assert grid[-2] == pytest.approx(15 if steps > 1 else -15)


def test_heuns_correction_keeps_its_digits_over_the_widest_range():
    """Data of variance 1: x̂ = αz. The last steps are so wide that the correction is a difference of x̂ times e¹⁰ and more."""
    grid, sampler = logsnr_grid(parse_schedule("cosine", -20, 50), 64), parse_sampler("heun")
    single, double = (
        walk(sampler, quantiles(200).to(kind), grid, lambda z, logsnr: alpha_sigma(logsnr)[0] * z, no_noise)
        for kind in (torch.float32, torch.float64)
    )
    assert float((single - double).abs().max()) < 0.01


# Single steps

LEVELS, UP = st.floats(-12, 12), st.floats(0.01, 4)
Z, X, LAST, XI = torch.tensor([[0.4, -1.3], [0.7, 0.2], [0.9, 0.1], [-0.6, 1.1]], dtype=torch.float64)
FAITHFUL = ["ddim", "heun", "dpmpp-2m", "ddpm:gamma=0", "dpmpp-2m-sde", "dpmpp-2m-sde:eta=0.1", "dpmpp-2m-sde:eta=3"]


def step(spec, last, move, z=Z, x=X, xi=XI):
    sampler = parse_sampler(spec)
    return sampler(z, last, move, wanted_by(sampler, lambda z, lam: x), lambda: xi)


@pytest.mark.parametrize("spec", FAITHFUL)
@given(LEVELS, UP)
def test_the_true_data_keeps_the_marginal_whatever_the_noise(spec, now, up):
    """With x̂ = x, z = αx + σε becomes a mean α'x and, with what ε leaves, a variance of σ'²."""
    (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(now + up)
    x = torch.full((3,), 0.7, dtype=torch.float64)
    z = alpha * x + sigma * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    out, kept = step(spec, x, Move(now, now + up, now - 1), z, x, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    assert float(out[0]) == pytest.approx(alpha_then * 0.7, abs=1e-11)
    assert float((out[1] - out[0]) ** 2 + (out[2] - out[0]) ** 2) == pytest.approx(sigma_then**2, rel=1e-7)
    assert torch.equal(kept, x)


@given(LEVELS, UP, st.floats(0, 1))
def test_ddpms_noise_interpolates_between_small_and_large(now, up, gamma):
    fresh = 1 - math.exp(-up)
    small, large = (fresh * alpha_sigma(at)[1] ** 2 for at in (now + up, now))
    with_noise, without = (step(f"ddpm:gamma={gamma}", None, Move(now, now + up), xi=xi)[0] for xi in (XI * 0 + 1, XI * 0))
    np.testing.assert_allclose((with_noise - without) ** 2, small ** (1 - gamma) * large**gamma, rtol=1e-7)


@given(st.floats(-12, 12), st.floats(0.01, 4), st.floats(0.01, 4))
def test_a_step_is_that_of_the_papers_algorithm_2(now, back, up):
    move = Move(now, now + up, now - back)
    (_, sigma), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(now + up)
    h, r = up / 2, back / up
    d = (1 + 1 / (2 * r)) * X - 1 / (2 * r) * LAST
    wanted = sigma_then / sigma * Z - alpha_then * (math.exp(-h) - 1) * d
    found, kept = step("dpmpp-2m", LAST, move)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    assert torch.equal(kept, X)


@given(st.floats(-12, 12), st.floats(0.01, 4), st.floats(0.01, 4))
def test_with_little_noise_it_is_the_deterministic_one(now, back, up):
    move = Move(now, now + up, now - back)
    np.testing.assert_allclose(step("dpmpp-2m-sde:eta=1e-14", LAST, move)[0], step("dpmpp-2m", LAST, move)[0], atol=1e-6)


@given(st.floats(-12, 12), st.floats(0.01, 4))
def test_a_first_step_is_ddims_and_with_noise_ddpms_small_one(now, up):
    move = Move(now, now + up)
    for mine, known in (("dpmpp-2m", "ddim"), ("dpmpp-2m-sde", "ddpm:gamma=0")):
        np.testing.assert_allclose(step(mine, None, move)[0], step(known, None, move)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_gives_back_its_x_hat_and_leaves_the_last_one_alone(name):
    last = LAST.clone()
    assert torch.equal(step(name, last, Move(0.0, 1.0, -1.0))[1], X)
    assert torch.equal(last, LAST)


# Specs


def test_edms_preset_is_that_of_imagenet_64_and_what_is_said_besides_counts_more():
    sampler = parse_sampler("heun:edm-imagenet64")
    assert parse_sampler("ddpm").spec == "ddpm:gamma=0.2"
    assert sampler.params == {"s_churn": 40, "s_min": 0.05, "s_max": 50, "s_noise": 1.003}
    assert (sampler.traits.steps, parse_sampler("heun").traits.steps) == (256, 128)
    assert sampler.traits.grid == "edm-sample:rho=7,sigma_min=0.002,sigma_max=80"
    sampler = parse_sampler("heun:edm-imagenet64,s-churn=20")
    assert sampler.params == {"s_churn": 20, "s_min": 0.05, "s_max": 50, "s_noise": 1.003}
    assert parse_sampler(sampler.spec).params == sampler.params


@pytest.mark.parametrize(
    "spec",
    [
        "plms",
        "ddim:gamma=.5",
        "ddpm:gamma=1.5",
        "heun:s_noise=-1",
        "dpmpp-2m-sde:eta=0",
        "heun:edm-imagenet",
        "ddim:edm-imagenet64",
        "heun:s_churn=1,edm-imagenet64",
    ],
)
def test_an_unknown_sampler_parameter_or_preset_is_refused(spec):
    with pytest.raises(UsageError):
        parse_sampler(spec)
