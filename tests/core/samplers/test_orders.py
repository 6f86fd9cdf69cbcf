"""What every sampler makes of a mixture of normals with its exact denoiser: its moments, and how fast they come right.

Without sampling error: samplers of an equation start from quantiles of a normal, those that draw noise use Sobol's
points for the start and for every step, whose means over 2^17 walks are within about .001.
"""

import numpy as np
import pytest
import torch
from denoisers import wanted_by

from elbocli.core.samplers import SAMPLERS, parse_sampler, time_grid, walk
from elbocli.core.schedule import parse_schedule

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
"""Of mean and variance at 64 steps on the usual grid."""


def quantiles(n):
    """Of a standard normal, scaled to variance 1."""
    z = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    return z / z.std(correction=0)


def no_noise():
    raise AssertionError("a deterministic sampler asked for noise")


def walked(mixture, spec, steps):
    """Data at the end of 2^17 walks with noise, or of 2000 without, on the sampler's usual grid."""
    sampler = parse_sampler(spec)
    schedule = parse_schedule(sampler.traits.grid, LOW, HIGH, clip=True)
    if spec in EQUATION:
        return walk(sampler, quantiles(2000), time_grid(schedule, steps), mixture.denoise, no_noise)
    sobol = torch.quasirandom.SobolEngine(steps + 1, scramble=True, seed=0)
    draws = iter(torch.special.ndtri(sobol.draw(2**17, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)).T.contiguous())
    return walk(
        sampler, next(draws), time_grid(schedule, steps), wanted_by(sampler, mixture.denoise), lambda: next(draws)
    )


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
        walk(parse_sampler(spec), z, time_grid(schedule, steps + 1), mixture.denoise, no_noise)
        for steps in (4096, 32, 64, 128)
    )
    errors = np.array([float((end - truth).square().mean().sqrt()) for end in ends])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.15)


@pytest.mark.parametrize(("spec", "order"), NOISE.items())
def test_the_variance_of_walks_with_noise_converges_with_its_order(mixture, spec, order):
    errors = np.array([abs(float(walked(mixture, spec, steps + 1).var(correction=0)) - VAR) for steps in (16, 32, 64)])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.25)
