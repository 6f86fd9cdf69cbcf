"""Samplers walked with exact denoisers: of a normal, where every step is affine, and of a mixture of two."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from denoisers import wanted_by
from hypothesis import given, settings
from hypothesis import strategies as st

import elbocli.core.samplers as home
from elbocli.core.prediction import alpha_sigma
from elbocli.core.samplers import SAMPLERS, Move, parse_sampler, time_grid
from elbocli.core.samplers import walk as walk_itself
from elbocli.core.schedule import parse_schedule
from elbocli.errors import UsageError

MEAN, VAR = 0.23, 0.8806
COSINE = parse_schedule("cosine", -15, 15)
KARRAS = parse_schedule("edm-sample")


def walk(sampler, z, grid, denoise, noise):
    """A walk with any denoiser of x̂."""
    return walk_itself(sampler, z, grid, wanted_by(sampler, denoise), noise)


def start_noise(n=2000):
    """Quantiles of a standard normal, of variance 1 to rounding: averages over them have no sampling error."""
    z = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    return z / z.std(correction=0)


def no_noise():
    raise AssertionError("a deterministic sampler asked for noise")


def fresh(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(n, generator=generator, dtype=torch.float64)


def denoise_normal(z, logsnr):
    alpha, sigma = alpha_sigma(logsnr)
    return MEAN + alpha * VAR / (alpha**2 * VAR + sigma**2) * (z - alpha * MEAN)


def step(spec, z, now, then, denoise, noise=no_noise, steps=1):
    """z after one step that knows of none before."""
    sampler = parse_sampler(spec)
    return sampler(z, None, Move(now, then, steps=steps), wanted_by(sampler, denoise), noise)[0]


def probe(spec, now, then, steps=1):
    """(offset, gain, noise) of one step on normal data: z' = offset + gain·z + noise·ξ, exactly."""
    z = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    xi = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    offset, one, noisy = step(spec, z, now, then, denoise_normal, lambda: xi, steps).tolist()
    return offset, one - offset, noisy - offset


def moments(spec, grid):
    """Mean and variance of what a single-step sampler makes of N(0, 1), with no sampling error at all."""
    mean, var = 0.0, 1.0
    for now, then in pairwise(grid):
        offset, gain, noise = probe(spec, now, then, len(grid) - 1)
        mean, var = offset + gain * mean, gain**2 * var + noise**2
    return mean, var


def test_the_mixture_is_the_one_of_the_notes(mixture):
    x, _, chance = mixture.quadrature(20)
    assert float(chance @ x) == pytest.approx(MEAN, abs=1e-12)
    assert float(chance @ (x - MEAN) ** 2) == pytest.approx(VAR, abs=1e-12)


# Moments


def test_with_one_gamma_everywhere_the_learned_variance_is_ddpms(mixture):
    one, other = (
        walk(parse_sampler(name), start_noise(50), time_grid(COSINE, 16), mixture.denoise, fresh(50))
        for name in ("ddpm:gamma=0.2", "ddpm-learned")
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_ddpms_variance_grows_with_gamma():
    variances = [moments(f"ddpm:gamma={gamma}", time_grid(COSINE, 64))[1] for gamma in (0, 0.2, 0.6, 1)]
    assert variances == sorted(variances)
    assert variances[0] < VAR


@pytest.mark.parametrize("churn", [5.0, 20.0, 40.0])
def test_churn_keeps_the_moments(churn):
    mean, var = moments(f"heun:s_churn={churn}", time_grid(KARRAS, 128))
    assert mean == pytest.approx(MEAN, abs=0.005)
    assert var == pytest.approx(VAR, abs=0.015)
    assert moments(f"heun:s_churn={churn}", time_grid(KARRAS, 512))[1] == pytest.approx(VAR, abs=0.001)


def test_heun_and_ddim_solve_the_same_equation(mixture):
    z, grid = start_noise(500), time_grid(COSINE, 2049)
    one, other = (walk(parse_sampler(name), z, grid, mixture.denoise, no_noise) for name in ("ddim", "heun"))
    np.testing.assert_allclose(one, other, atol=5e-3)


# Single steps

LEVELS = st.floats(-12, 12)


@given(LEVELS, st.floats(0.01, 5))
def test_ddim_with_the_true_data_lands_on_the_same_noise(now, up):
    x = torch.tensor([0.7, -1.2], dtype=torch.float64)
    eps = torch.tensor([-0.3, 2.1], dtype=torch.float64)
    (a, s), (b, r) = alpha_sigma(now), alpha_sigma(now + up)
    found = step("ddim", a * x + s * eps, now, now + up, lambda z, lam: x)
    np.testing.assert_allclose(found, b * x + r * eps, atol=1e-12)


@given(LEVELS, st.floats(0.01, 5), st.floats(0, 1))
def test_ddpms_noise_interpolates_between_small_and_large(now, up, gamma):
    then = now + up
    fresh_part = 1 - math.exp(-up)
    small, large = fresh_part * alpha_sigma(then)[1] ** 2, fresh_part * alpha_sigma(now)[1] ** 2
    _, _, noise = probe(f"ddpm:gamma={gamma}", now, then)
    assert noise**2 == pytest.approx(small ** (1 - gamma) * large**gamma, rel=1e-9)


@given(LEVELS, st.floats(0.01, 5))
def test_ddpm_with_the_true_data_keeps_the_marginal(now, up):
    """From z_t of x, the posterior q(z_s | z_t, x) (γ = 0) gives mean α_s x and variance σ_s²."""
    then = now + up
    (a, s), (b, r) = alpha_sigma(now), alpha_sigma(then)
    x = torch.full((3,), 0.7, dtype=torch.float64)
    z = a * x + s * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    xi = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    out = step("ddpm:gamma=0", z, now, then, lambda z, lam: x, lambda: xi)
    centre, gain, noise = float(out[0]), float(out[1] - out[0]), float(out[2] - out[0])
    assert centre == pytest.approx(b * 0.7, abs=1e-12)
    assert gain**2 + noise**2 == pytest.approx(r**2, rel=1e-9)


@given(LEVELS, st.floats(0.01, 5))
def test_heun_is_karras_second_order_step_in_y(now, up):
    then = now + up
    sigma, sigma_then = math.exp(-now / 2), math.exp(-then / 2)
    z = torch.tensor([0.4, -1.3], dtype=torch.float64)
    y = z / alpha_sigma(now)[0]

    def slope(y, sigma):
        lam = -2 * math.log(sigma)
        return (y - denoise_normal(y * alpha_sigma(lam)[0], lam)) / sigma

    d = slope(y, sigma)
    euler = y + (sigma_then - sigma) * d
    wanted = y + (sigma_then - sigma) * 0.5 * (d + slope(euler, sigma_then))
    found = step("heun", z, now, then, denoise_normal)
    np.testing.assert_allclose(found / alpha_sigma(then)[0], wanted, rtol=1e-9, atol=1e-9 * sigma)


@settings(max_examples=25)
@given(LEVELS, st.floats(1, 100), st.integers(1, 300), st.floats(0.9, 1.1))
def test_churn_raises_the_noise_to_karras_level(now, s_churn, steps, s_noise):
    seen = []

    def denoise(z, lam):
        seen.append((z.clone(), lam))
        return z * 0

    sigma = math.exp(-now / 2)
    raised = sigma * (1 + min(s_churn / steps, math.sqrt(2) - 1))
    z = torch.tensor([0.5], dtype=torch.float64)
    xi = torch.tensor([1.7], dtype=torch.float64)
    step(f"heun:s_churn={s_churn},s_noise={s_noise}", z, now, now + 1, denoise, lambda: xi, steps)
    (at, lam), _ = seen
    assert math.exp(-lam / 2) == pytest.approx(raised, rel=1e-12)
    y = 0.5 / alpha_sigma(now)[0] + s_noise * math.sqrt(raised**2 - sigma**2) * 1.7
    assert float(at) / alpha_sigma(lam)[0] == pytest.approx(y, rel=1e-10)


def test_churn_keeps_to_its_interval():
    z = torch.ones(1, dtype=torch.float64)
    for sigma in (0.04, 51.0):
        now = -2 * math.log(sigma)
        step("heun:edm-imagenet64", z, now, now + 1, denoise_normal, steps=64)
    with pytest.raises(AssertionError, match="asked for noise"):
        step("heun:edm-imagenet64", z, 0.0, 1.0, denoise_normal, steps=64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_leaves_its_input_alone(name):
    z = torch.tensor([0.4, -1.3], dtype=torch.float64)
    before = z.clone()
    walk(parse_sampler(name), z, time_grid(COSINE, 4), denoise_normal, fresh(2))
    assert torch.equal(z, before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_is_the_denoiser_itself(name):
    z = torch.tensor([0.4, -1.3], dtype=torch.float64)
    found = walk(parse_sampler(name), z, [6.0, math.inf], denoise_normal, no_noise)
    np.testing.assert_allclose(found, denoise_normal(z, 6.0), rtol=1e-14)


# Walks


def evaluations(name, steps):
    calls = []

    def denoise(z, lam):
        calls.append(lam)
        return denoise_normal(z, lam)

    walk(parse_sampler(name), start_noise(4), time_grid(COSINE, steps), denoise, fresh(4))
    return calls


@pytest.mark.parametrize("steps", [1, 2, 18, 256])
def test_heun_evaluates_the_network_twice_a_step_but_once_at_the_end(steps):
    assert len(evaluations("heun", steps)) == 2 * steps - 1


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"heun"}))
def test_the_other_samplers_evaluate_once_a_step_at_the_grids_levels(name):
    assert evaluations(name, 18) == time_grid(COSINE, 18)[:-1]


@pytest.mark.parametrize("steps", [2, 3, 64])
def test_the_grid_has_both_ends_and_then_clean_data(steps):
    grid = time_grid(COSINE, steps)
    assert len(grid) == steps + 1
    assert (grid[0], grid[-2]) == pytest.approx((-15, 15))
    assert grid[-1] == math.inf
    assert grid == sorted(grid)


def test_a_grid_of_one_step_goes_from_pure_noise_to_data():
    assert time_grid(COSINE, 1) == [pytest.approx(-15), math.inf]


def test_the_karras_grid_is_karras():
    n, rho, low, high = 18, 7, 0.002, 80
    sigma = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    np.testing.assert_allclose(np.exp(-np.array(time_grid(KARRAS, n)[:-1]) / 2), sigma, rtol=1e-12)


def test_the_same_noise_gives_the_same_data(mixture):
    one, other = (
        walk(parse_sampler("ddpm"), start_noise(50), time_grid(COSINE, 8), mixture.denoise, fresh(50)) for _ in range(2)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "spec",
    [
        "plms",
        "ddim:gamma=.5",
        "ddpm:eta=1",
        "ddpm:gamma=1.5",
        "ddpm:gamma=-.1",
        "heun:s_noise=-1",
        "dpmpp-2m-sde:eta=0",
    ],
)
def test_an_unknown_sampler_or_parameter_is_refused(spec):
    with pytest.raises(UsageError):
        parse_sampler(spec)


def test_heuns_correction_keeps_its_digits_over_the_widest_range():
    """Data of variance 1: x̂ = αz. The last steps are so wide that the correction is a difference of x̂ times e¹⁰ and more."""
    grid = time_grid(parse_schedule("cosine", -20, 50), 64)
    found = [
        walk(
            parse_sampler("heun"),
            start_noise(200).to(kind),
            grid,
            lambda z, logsnr: alpha_sigma(logsnr)[0] * z,
            no_noise,
        )
        for kind in (torch.float32, torch.float64)
    ]
    assert float((found[0] - found[1]).abs().max()) < 0.01


# Specs


def test_a_spec_names_parameters():
    sampler = parse_sampler("heun:s-churn=20,s_min=0.05")
    assert sampler.params == {**SAMPLERS["heun"].params, "s_churn": 20.0, "s_min": 0.05}
    assert parse_sampler(sampler.spec).params == sampler.params


def test_edms_preset_is_that_of_imagenet_64():
    sampler = parse_sampler("heun:edm-imagenet64")
    assert sampler.params == {"s_churn": 40, "s_min": 0.05, "s_max": 50, "s_noise": 1.003}
    assert sampler.traits.steps == 256
    grid = time_grid(parse_schedule(sampler.traits.grid), 256)
    assert np.exp(-np.array([grid[0], grid[-2]]) / 2) == pytest.approx([80, 0.002])


def test_what_is_said_besides_a_preset_counts_more():
    sampler = parse_sampler("heun:edm-imagenet64,s_churn=20,s_noise=1")
    assert sampler.params == {"s_churn": 20, "s_min": 0.05, "s_max": 50, "s_noise": 1}
    assert parse_sampler("heun").traits.steps != 256


@pytest.mark.parametrize(("sampler", "preset"), [(s.name, p) for s in SAMPLERS.values() for p in s.traits.presets])
def test_a_presets_parameters_are_its_samplers(sampler, preset):
    declared = SAMPLERS[sampler]
    chosen = declared.traits.presets[preset]
    assert parse_sampler(f"{sampler}:{preset}").params == {**declared.params, **chosen.params}
    assert set(chosen.params) <= set(declared.params)
    parse_schedule(chosen.grid)


@pytest.mark.parametrize(
    "text", ["heun:edm-imagenet", "ddim:edm-imagenet64", "heun:s_churn=1,edm-imagenet64", "heun:s_churn=x"]
)
def test_a_preset_that_is_not_there_is_refused(text):
    with pytest.raises(UsageError):
        parse_sampler(text)


def test_a_sampler_may_be_declared_by_anyone_later():
    try:

        @home.sampler("straight", formula="x_hat", source="this test", grid="cosine", gain=1.0)
        def straight(z, last, move, denoise, noise, gain):
            x_hat = denoise(z, move.now)
            return gain * x_hat, x_hat

        found = walk(parse_sampler("straight:gain=2"), torch.zeros(1), [0.0, math.inf], lambda z, at: z + 3, no_noise)
        assert found.tolist() == [6]
    finally:
        SAMPLERS.pop("straight", None)


def images_of(spec, steps):
    """A walk of so many steps on normal data."""
    noise = fresh(200)
    return walk(parse_sampler(spec), start_noise(200), time_grid(COSINE, steps), denoise_normal, noise)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ddim"])
def test_in_fewer_steps_than_its_least_a_sampler_draws_what_ddim_draws(name):
    least = 3 if name == "dpmpp-2m" else 2
    for steps in range(1, least):
        assert torch.allclose(images_of(name, steps), images_of("ddim", steps), rtol=1e-12)
    assert not torch.allclose(images_of(name, least), images_of("ddim", least), rtol=1e-3)
