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

from elbocli.core.prediction import Prediction, alpha_sigma
from elbocli.core.schedule import parse_schedule
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.errors import UsageError
from elbocli.sampling.denoiser import Denoiser
from elbocli.sampling.samplers import SAMPLERS, Move, check_sampler, choose_space, parse_sampler, walk
from elbocli.sampling.spacing import SPACINGS, logsnr_grid, usual_spacing

MEAN = 0.23
VAR = 0.8806


LOW = -15
HIGH = 15


EQUATION = {"ddim": 1, "heun": 2, "heun:space=path": 2, "dpmpp-2m": 2}
"""Order of the error of each walk itself, to the same walk in many steps."""


GRIDS = {"heun:space=path": "fm-ot"}
"""Grid of a walk, where it isn't the sampler's usual one."""


NOISE = {
    "ddpm": 1,
    "ddpm:gamma=0": 1,
    "ddpm-learned": 1,
    "dpmpp-2m-sde": 2,
    "heun:s_churn=10": 2,
    "euler-maruyama": 1,
    "euler-maruyama:diffusion=increasing-decreasing,last_step=tweedie": 1,
}
"""Order of the error of the variance over all walks."""


TOLERANCE = {
    "ddim": (0.003, 0.03),
    "heun": (0.003, 0.005),
    "heun:space=path": (0.003, 0.005),
    "dpmpp-2m": (0.003, 0.005),
    "ddpm": (0.007, 0.04),
    "ddpm-learned": (0.007, 0.04),
    "dpmpp-2m-sde": (0.003, 0.016),
    "heun:s_churn=10": (0.003, 0.014),
    "heun:s_churn=40": (0.004, 0.022),
    "euler-maruyama": (0.003, 0.019),
    "euler-maruyama:last_step=tweedie": (0.003, 0.016),
    "euler-maruyama:diffusion=decreasing": (0.003, 0.019),
    "euler-maruyama:diffusion=increasing-decreasing": (0.004, 0.017),
    "euler-maruyama:diffusion=sbdm": (0.005, 0.014),
    "euler-maruyama:diffusion=constant,last_step=tweedie": (0.01, 0.02),
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
    if not sampler.learned:
        return denoise
    return lambda z, logsnr: (denoise(z, logsnr), torch.full_like(z, 0.2))


# Walks


def walked(mixture, spec, steps):
    """Data at the end of 2^16 walks with noise, or of 2000 without, on the sampler's usual grid."""
    sampler = parse_sampler(spec)
    schedule = parse_schedule(GRIDS.get(spec, sampler.grid), LOW, HIGH, clip=True)
    if spec in EQUATION:
        return walk(sampler, quantiles(2000), logsnr_grid(schedule, steps), mixture.denoise, no_noise)
    grid = logsnr_grid(schedule, steps, usual_spacing(schedule, sampler))
    sobol = torch.quasirandom.SobolEngine(steps + 1, scramble=True, seed=0)
    draws = iter(torch.special.ndtri(sobol.draw(2**16, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)).T.contiguous())
    return walk(sampler, next(draws), grid, wanted_by(sampler, mixture.denoise), lambda: next(draws))


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
    grid = GRIDS.get(spec, parse_sampler(spec).grid)
    z = quantiles(500)
    schedule = parse_schedule(grid, LOW, HIGH, clip=True)
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
    spec = f"{name}:last_step=tweedie" if name == "euler-maruyama" else name
    sampler = parse_sampler(spec)
    grid = logsnr_grid(parse_schedule("cosine", -15, 15), 6)
    calls = []
    start = quantiles(4)
    before = quantiles(4)

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


def test_heuns_correction_keeps_its_digits_over_the_widest_range():
    """Data of variance 1: x̂ = αz. The last steps are so wide that the correction is a difference of x̂ times e¹⁰ and more."""
    grid = logsnr_grid(parse_schedule("cosine", -20, 50), 64)
    sampler = parse_sampler("heun")
    single, double = (
        walk(sampler, quantiles(200).to(kind), grid, lambda z, logsnr: alpha_sigma(logsnr)[0] * z, no_noise)
        for kind in (torch.float32, torch.float64)
    )
    assert float((single - double).abs().max()) < 0.01


# Flow paths: x_τ = (1 − τ)x + τε, and z = (α + σ) x_τ

PLACES = 0.6 * torch.randn(5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.2


def velocity(x, tau):
    """A velocity u(x_τ, τ) that is no data's own, so that it bends everywhere."""
    return (1.3 * x.roll(1, -1) + 2 * tau).sin() + 0.4 * x - 0.7 * tau


def on_path(z, logsnr):
    """The same velocity as a denoiser."""
    alpha, sigma = alpha_sigma(logsnr)
    tau = sigma / (alpha + sigma)
    return z / (alpha + sigma) - tau * velocity(z / (alpha + sigma), tau)


def levels_of(times):
    """λ of falling τ, then clean data: 1 and 0 are 2e-9 away."""
    return [2 * math.log((1 - tau) / tau) if 0 < tau < 1 else 40.0 * (1 - 2 * tau) for tau in times] + [math.inf]


def sit(x, steps):
    """SiT's ODE sampler: torchdiffeq's heun2 on a fixed grid, from τ = 1 to 0; its second evaluation is at the step's end."""
    times = [1 - i / steps for i in range(steps)] + [0.0]
    for now, then in pairwise(times):
        k1 = velocity(x, now)
        k2 = velocity(x + (then - now) * k1, then)
        x = x + (then - now) * (0.5 * k1 + 0.5 * k2)
    return x, levels_of(times)


def jit(x, steps):
    """JiT's: t = 1 − τ is 1 at data; the last step is Euler's."""
    times = np.linspace(0, 1, steps + 1).tolist()
    for now, then in pairwise(times[:-1]):
        v = -velocity(x, 1 - now)
        x = x + (then - now) * 0.5 * (v - velocity(x + (then - now) * v, 1 - then))
    return x - (times[-1] - times[-2]) * velocity(x, 1 - times[-2]), levels_of([1 - t for t in times[:-1]])


def jit_clamped(noise_scale, least=0.05):
    """JiT's own: v = (x̂ − z)/max(1 − t, least) with z = t x + (1 − t) c e; a function like `jit`, of a denoiser of N(.3, .5²)."""

    def integrated(z, steps):
        def v(z, t):
            share = 0.25 * t
            spread = 0.25 * t**2 + ((1 - t) * noise_scale) ** 2
            return (0.3 + share / spread * (z - 0.3 * t) - z) / max(1 - t, least)

        times = np.linspace(0, 1, steps + 1).tolist()
        for now, then in pairwise(times[:-1]):
            slope = v(z, now)
            z = z + (then - now) * 0.5 * (slope + v(z + (then - now) * slope, then))
        z = z + (times[-1] - times[-2]) * v(z, times[-2])
        return z, [at - 2 * math.log(noise_scale) for at in levels_of([1 - t for t in times[:-1]])]

    return integrated


def normal(z, logsnr):
    """The denoiser of N(.3, .5²)."""
    alpha, sigma = alpha_sigma(logsnr)
    return 0.3 + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (z - 0.3 * alpha)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("noise_scale", [1.0, 2.0])
def test_jits_sampler_is_the_one_of_its_formulas_and_leaves_some_noise(noise_scale, steps):
    """At 50 steps, the last of .02 divides by .05: 60 % of the difference to x̂ stays."""
    start = noise_scale * quantiles(2000)
    wanted, levels = jit_clamped(noise_scale)(start, steps)
    alpha, sigma = alpha_sigma(levels[0])
    z = start * (alpha + sigma / noise_scale)
    result = walk(parse_sampler(f"jit:noise_scale={noise_scale}"), z, levels, normal, no_noise)
    np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-5)
    unbound = walk(parse_sampler(f"heun:space=path,noise_scale={noise_scale}"), z, levels, normal, no_noise)
    np.testing.assert_allclose(unbound, jit_clamped(noise_scale, 0)(start, steps)[0], rtol=0, atol=1e-5)
    apart = float((result - unbound).abs().max())
    assert apart > 0.001 if steps == 50 else apart < 1e-9


def by_diffusers(name, shift):
    def integrated(x, steps):
        import diffusers  # slow

        scheduler = getattr(diffusers, name)(shift=shift)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x = scheduler.step(velocity(x, float(t) / 1000), t, x).prev_sample.double()
        return x, levels_of(sorted(set(scheduler.sigmas.tolist()) - {0.0}, reverse=True))

    return integrated


@pytest.mark.parametrize("steps", [2, 10, 50])
@pytest.mark.parametrize(
    ("spec", "integrated"),
    [
        ("heun:space=path", sit),
        ("heun:space=path", jit),
        ("heun:space=path", by_diffusers("FlowMatchHeunDiscreteScheduler", 1.0)),
        ("heun:space=path", by_diffusers("FlowMatchHeunDiscreteScheduler", 3.0)),
        ("ddim", by_diffusers("FlowMatchEulerDiscreteScheduler", 3.0)),  # Euler's step is the same in both spaces
    ],
    ids=["sit", "jit", "diffusers", "diffusers, shifted", "diffusers, Euler"],
)
def test_a_walk_on_a_flow_path_is_its_authors(spec, integrated, steps):
    wanted, levels = integrated(PLACES, steps)
    found = walk(parse_sampler(spec), PLACES * sum(alpha_sigma(levels[0])), levels, on_path, no_noise)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    if spec != "ddim":
        assert float((walk(parse_sampler("heun:space=edm"), PLACES, levels, on_path, no_noise) - wanted).abs().max()) > 0.01


def test_jits_times_are_the_trailing_ones():
    levels = logsnr_grid(parse_schedule("fm-ot", -40, 40), 50, SPACINGS.find("jit"))
    np.testing.assert_allclose(levels[1:], jit(PLACES, 50)[1][1:], atol=1e-6)


@pytest.mark.parametrize("limit", [15, 30, 50])
def test_on_a_path_a_networks_digits_are_kept_up_to_clean_data(limit):
    """The network computes in float32. Without care, its rounding would count 1/τ' times in the last correction."""
    grid = logsnr_grid(parse_schedule("fm-ot", -limit, limit), 10)
    single = Denoiser(lambda x, lam, _: velocity(x, (-lam[:, None] / 2).sigmoid()), Prediction("u-path"))
    x = walk(parse_sampler("heun:space=path"), PLACES.float(), grid, single, no_noise)
    np.testing.assert_allclose(x, walk(parse_sampler("heun:space=path"), PLACES, grid, on_path, no_noise), rtol=0, atol=1e-5)


ON_PATH = {"fm-ot", "logit-normal", "mode"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_space_is_path_where_the_schedule_or_the_networks_input_is_the_paths(name):
    schedule = parse_schedule(f"{name}:shift=-1")
    for prediction, path in (("v", name in ON_PATH), ("u", name in ON_PATH), ("x-path", True)):
        space = "path" if path else "edm"
        assert choose_space(parse_sampler("heun:s_churn=3"), Prediction(prediction), schedule).params["space"] == space
        for chosen in ("heun:space=edm", "heun:space=path", "edm-imagenet64", "ddim"):
            assert choose_space(parse_sampler(chosen), Prediction(prediction), schedule) == parse_sampler(chosen)


# These tests state SDEs on the flow path in SiT's time t = 1 − τ; t = 1 is data.

W = {  # diffusion coefficients of SiT, w(t, norm) in dx = (v + w s) dt + √(2w) dW
    "constant": lambda t, norm: norm,
    "SBDM": lambda t, norm: norm * ((1 - t) ** 2 / t + (1 - t)),
    "sigma": lambda t, norm: norm * (1 - t),
    "linear": lambda t, norm: norm * (1 - t),
    "decreasing": lambda t, norm: 0.25 * (norm * math.cos(math.pi * t) + 1) ** 2,
    "increasing-decreasing": lambda t, norm: norm * math.sin(math.pi * t) ** 2,
}


def sit_sde(x, steps, noises, form="sigma", norm=1.0, last="Mean", last_size=0.04):
    """SiT's: steps − 1 steps of dt with noise on an even grid from 0 to 1 − last_size, then one of last_size without noise."""
    times = np.linspace(0.001 if form == "SBDM" else 0, 1 - last_size, steps)
    dt = times[1] - times[0]

    def score(x, v, t):
        ratio = t / 1  # alpha / alpha'; sigma = 1 − t, sigma' = −1
        return (ratio * v - x) / ((1 - t) ** 2 + ratio * (1 - t))

    for t, w_cur in zip(times[:-1], noises, strict=True):
        v = -velocity(x, 1 - t)
        w = W[form](t, norm)
        x = x + (v + w * score(x, v, t)) * dt + math.sqrt(2 * w) * w_cur * math.sqrt(dt)
    t = times[-1]
    v = -velocity(x, 1 - t)
    if last == "Mean":
        return x + (v + W[form](t, norm) * score(x, v, t)) * last_size, levels_of(1 - times)
    if last == "Tweedie":
        return x / t + (1 - t) ** 2 / t * score(x, v, t), levels_of(1 - times)
    return x + v * last_size, levels_of(1 - times)  # Euler


def repa_sde(x, steps, noises):
    """REPA's, in time from 1 at noise to 0: dx = (v − s/2 · 2t) dt + √(2t) dW."""
    times = [*np.linspace(1.0, 0.04, steps), 0.0]

    def drift(x, t):
        v = velocity(x, t)
        ratio = (1 - t) / -1
        return v - 0.5 * (2 * t) * (ratio * v - x) / (t**2 - ratio * t)

    for t, then, eps in zip(times[:-2], times[1:-1], noises, strict=True):
        x = x + drift(x, t) * (then - t) + math.sqrt(2 * t) * eps * math.sqrt(abs(then - t))
    return x + (0 - times[-2]) * drift(x, times[-2]), levels_of(times[:-1])


@pytest.mark.parametrize("steps", [25, 250])
@pytest.mark.parametrize(
    ("spec", "integrated", "how"),
    [
        ("sit-sde", sit_sde, {}),
        ("repa-sde", repa_sde, {}),
        *((f"sit-sde:diffusion={form},norm=0.7", sit_sde, {"form": form, "norm": 0.7}) for form in W),
        ("sit-sde:last_step=tweedie", sit_sde, {"last": "Tweedie"}),
        ("sit-sde:last_step=tweedie", sit_sde, {"last": "Euler"}),
    ],
)
def test_a_walk_of_an_sde_is_its_authors_with_the_same_noise(spec, integrated, how, steps):
    noises = torch.randn(steps - 1, *PLACES.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    wanted, levels = integrated(PLACES, steps, noises, **how)
    x = walk(parse_sampler(spec), PLACES * sum(alpha_sigma(levels[0])), levels, on_path, iter(noises).__next__)
    np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("limit", [15, 40])
@pytest.mark.parametrize("steps", [2, 25, 250])
def test_the_usual_grid_of_an_sde_is_its_authors_from_the_noisiest_level(steps, limit):
    sampler = parse_sampler("sit-sde")
    schedule = parse_schedule("fm-ot", -limit, limit)
    spacing = usual_spacing(schedule, sampler)
    first = 1 / (1 + math.exp(-limit / 2))
    assert (sampler.grid, sampler.steps) == ("fm-ot", 250) and spacing == SPACINGS.find("repa")
    wanted = levels_of(np.linspace(first, 0.04, steps))
    np.testing.assert_allclose(logsnr_grid(schedule, steps, spacing)[1:], wanted[1:], rtol=1e-12)


CENTRE = 0.4
SPREAD = 0.5


def of_normal(z, logsnr):
    """E[x | z] of data N(CENTRE, SPREAD²)."""
    alpha, sigma = alpha_sigma(logsnr)
    return CENTRE + alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * (z - alpha * CENTRE)


def moments(spec, levels):
    """Mean and variance of a walk from exact noise: one walk without noise, and one for each normal number of 1 instead of 0."""
    numbers = torch.eye(1 + len(levels), dtype=torch.float64)[1:]
    draws = iter(numbers)
    out = walk(parse_sampler(spec), next(draws), levels, of_normal, draws.__next__)
    return float(out[0]), float((out[1:] - out[0]).square().sum())


@pytest.mark.parametrize("form", ["sigma", "decreasing", "increasing-decreasing", "constant"])
def test_mean_and_variance_of_an_sde_are_those_of_its_recursion_and_tend_to_the_exact_ones(form):
    """On the path, data N(m, s²) have mean tm and variance t²s² + (1 − t)² at every t, whatever w; v + w s is linear in x."""
    errors = []
    for steps in (50, 100, 250, 1000):
        times = np.linspace(0, 0.96, steps)
        mean = 0.0
        variance = 1.0
        dt = times[1]
        for t in times[:-1]:
            pull = (t * SPREAD**2 - (1 - t) - W[form](t, 1)) / (t**2 * SPREAD**2 + (1 - t) ** 2)
            mean += dt * (CENTRE + pull * (mean - t * CENTRE))
            variance = (1 + dt * pull) ** 2 * variance + 2 * W[form](t, 1) * dt
        levels = levels_of(1 - times)
        stretch = sum(alpha_sigma(levels[-2]))
        spec = f"euler-maruyama:diffusion={form}"
        found, of_noise = moments(spec, levels[:-1])
        np.testing.assert_allclose((found / stretch, of_noise / stretch**2), (mean, variance), rtol=1e-6, atol=1e-8)
        errors.append(steps * (variance - (0.96**2 * SPREAD**2 + 0.04**2)))
        assert mean == pytest.approx(0.96 * CENTRE, abs=1e-9)
        pull = (0.96 * SPREAD**2 - 0.04 - W[form](0.96, 1)) / (0.96**2 * SPREAD**2 + 0.04**2)
        assert moments(spec, levels) == pytest.approx((CENTRE, (1 + 0.04 * pull) ** 2 * variance), rel=1e-6)
    assert errors == pytest.approx([errors[-1]] * 4, rel=0.45)


@pytest.mark.parametrize("form", ["sigma", "decreasing", "increasing-decreasing", "constant"])
def test_an_sde_has_strong_order_1_since_its_noise_is_additive(form):
    """On the same Brownian paths, against a walk of 4096 steps."""
    finest = 4096
    times = np.linspace(0.98, 0.04, 4097)
    walks = torch.randn(finest, 500, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    start = torch.randn(500, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def end(steps):
        every = finest // steps
        noises = iter(walks.view(steps, every, -1).sum(1) / math.sqrt(every))
        sampler = parse_sampler(f"euler-maruyama:diffusion={form}")
        return walk(sampler, start, levels_of(times[::every])[:-1], of_normal, noises.__next__)

    exact = end(finest)
    errors = np.array([float((end(steps) - exact).square().mean().sqrt()) for steps in (32, 64, 128)])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 1, atol=0.15)


# Single steps

LEVELS = st.floats(-12, 12)
UP = st.floats(0.01, 4)
Z, X, LAST, XI = torch.tensor([[0.4, -1.3], [0.7, 0.2], [0.9, 0.1], [-0.6, 1.1]], dtype=torch.float64)
FAITHFUL = [
    "ddim",
    "heun",
    "heun:space=path",
    "dpmpp-2m",
    "ddpm:gamma=0",
    "dpmpp-2m-sde",
    "dpmpp-2m-sde:eta=0.1",
    "dpmpp-2m-sde:eta=3",
]


def step(spec, last, move, z=Z, x=X, xi=XI):
    sampler = parse_sampler(spec)
    return sampler(z, last, move, wanted_by(sampler, lambda z, lam: x), lambda: xi)


@pytest.mark.parametrize("spec", FAITHFUL)
@given(LEVELS, UP)
def test_the_true_data_keeps_the_marginal_whatever_the_noise(spec, now, up):
    """With x̂ = x, z = αx + σε becomes a mean α'x and, with what ε leaves, a variance of σ'²."""
    (alpha, sigma) = alpha_sigma(now)
    (alpha_then, sigma_then) = alpha_sigma(now + up)
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
    (_, sigma) = alpha_sigma(now)
    (alpha_then, sigma_then) = alpha_sigma(now + up)
    h = up / 2
    r = back / up
    d = (1 + 1 / (2 * r)) * X - 1 / (2 * r) * LAST
    wanted = sigma_then / sigma * Z - alpha_then * (math.exp(-h) - 1) * d
    found, kept = step("dpmpp-2m", LAST, move)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    assert torch.equal(kept, X)


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


def test_edms_settings_are_those_of_imagenet_64_and_what_is_said_besides_counts_more():
    sampler = parse_sampler("edm-imagenet64:s-churn=20")
    published = {"s_churn": 20, "s_min": 0.05, "s_max": 50, "s_noise": 1.003, "space": "edm"}
    assert sampler.params == {**published, "least": 0, "noise_scale": 1}
    assert parse_sampler(sampler.spec).params == sampler.params


@pytest.mark.parametrize(
    "spec",
    [
        "plms",
        "ddim:gamma=.5",
        "ddpm:gamma=1.5",
        "heun:s_noise=-1",
        "heun:space=vp",
        "dpmpp-2m-sde:eta=0",
        "euler-maruyama:norm=-1",
        "euler-maruyama:diffusion=beta",
        "euler-maruyama:last_step=none",
    ],
)
def test_an_unknown_sampler_parameter_or_preset_is_refused(spec):
    with pytest.raises(UsageError):
        parse_sampler(spec)
