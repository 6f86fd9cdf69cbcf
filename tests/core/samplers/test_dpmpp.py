"""DPM-Solver++(2M) against its authors' formulas, against diffusers, and against the samplers it turns into."""

import math

import numpy as np
import pytest
import torch
from denoisers import wanted_by
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.prediction import alpha_sigma
from elbocli.core.samplers import SAMPLERS, Move, parse_sampler, time_grid, walk
from elbocli.core.schedule import parse_schedule

GRID = time_grid(parse_schedule("edm-sample"), 12)
Z, X, LAST, XI = torch.tensor([[0.4, -1.3], [0.7, 0.2], [0.9, 0.1], [-0.6, 1.1]], dtype=torch.float64)


def step(spec, last, move):
    sampler = parse_sampler(spec)
    return sampler(Z, last, move, wanted_by(sampler, lambda z, lam: X), lambda: XI)


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
    np.testing.assert_allclose(
        step("dpmpp-2m-sde:eta=1e-14", LAST, move)[0], step("dpmpp-2m", LAST, move)[0], atol=1e-6
    )


@given(st.floats(-12, 12), st.floats(0.01, 4))
def test_a_first_step_is_ddims_and_with_noise_ddpms_small_one(now, up):
    move = Move(now, now + up)
    for mine, known in (("dpmpp-2m", "ddim"), ("dpmpp-2m-sde", "ddpm:gamma=0")):
        np.testing.assert_allclose(step(mine, None, move)[0], step(known, None, move)[0], rtol=1e-9, atol=1e-12)


@given(st.floats(-12, 12), st.floats(0.01, 4), st.floats(0.1, 3))
def test_the_true_data_keeps_the_marginal_whatever_the_noise(now, up, eta):
    """With x̂ = x, z = αx + σε becomes a mean α'x and, with what ε leaves, a variance of σ'²."""
    sampler, move = parse_sampler(f"dpmpp-2m-sde:eta={eta}"), Move(now, now + up, now - 1)
    (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(now + up)
    x = torch.full((3,), 0.7, dtype=torch.float64)
    z = alpha * x + sigma * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    xi = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    out = sampler(z, x, move, lambda z, lam: x, lambda: xi)[0]
    assert float(out[0]) == pytest.approx(alpha_then * 0.7, abs=1e-12)
    assert float((out[1] - out[0]) ** 2 + (out[2] - out[0]) ** 2) == pytest.approx(sigma_then**2, rel=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_gives_back_its_x_hat_and_leaves_the_last_one_alone(name):
    last = LAST.clone()
    assert torch.equal(step(name, last, Move(0.0, 1.0, -1.0))[1], X)
    assert torch.equal(last, LAST)


@pytest.mark.parametrize(("name", "algorithm"), [("dpmpp-2m", "dpmsolver++"), ("dpmpp-2m-sde", "sde-dpmsolver++")])
def test_a_walk_is_that_of_diffusers(mixture, name, algorithm):
    """On the grid that its scheduler makes, which ends with clean data too."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type=algorithm, prediction_type="sample")
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas.double()
    grid = [-2 * math.log(s) if s > 0 else math.inf for s in sigmas.tolist()]
    start, noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = start
    for t, lam in zip(scheduler.timesteps, grid):
        z = scheduler.step(mixture.denoise(z, lam), t, z, variance_noise=noise).prev_sample
    np.testing.assert_allclose(walk(parse_sampler(name), start, grid, mixture.denoise, lambda: noise), z, atol=2e-6)
