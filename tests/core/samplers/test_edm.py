"""EDM's sampler as its authors describe it (Karras et al. 2022, algorithm 2), re-stated, against the walk of heun."""

import math

import edm
import numpy as np
import pytest
import torch

from elbocli.core.prediction import alpha_sigma
from elbocli.core.samplers import parse_sampler, time_grid, walk
from elbocli.core.sampling import STARTS
from elbocli.core.schedule import parse_schedule


def draws(seed=0, size=64):
    """Noise by torch's generator, float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("spec", "steps"), [("heun", 18), ("heun:edm-imagenet64", 18), ("heun:edm-imagenet64", 256)])
@pytest.mark.parametrize("noise", ["edm", "edm2"])
def test_from_its_own_start_a_walk_is_edms_to_rounding(mixture, spec, steps, noise):
    def d(y, sigma):
        logsnr = -2 * math.log(sigma)
        return mixture.denoise(y * alpha_sigma(logsnr)[0], logsnr)

    def found(start):
        draw = draws()
        return walk(sampler, draw() * STARTS[start](grid[0]), grid, mixture.denoise, draw, noise == "edm")

    sampler = parse_sampler(spec)
    grid = time_grid(parse_schedule(parse_sampler("heun:edm-imagenet64").traits.grid), steps)
    wanted = edm.algorithm_2(d, draws(), steps, *sampler.params.values(), edm2=noise == "edm2")
    np.testing.assert_allclose(found("edm"), wanted, rtol=0, atol=1e-11)
    if not sampler.params["s_churn"]:  # which forgets the start
        assert 1e-6 < float((found("unit") - wanted).abs().max()) < 1e-2


def test_edms_start_is_80_times_the_noise_in_y():
    logsnr = -2 * math.log(edm.SIGMA_MAX)
    assert STARTS["edm"](logsnr) / alpha_sigma(logsnr)[0] == pytest.approx(80, rel=1e-14)
    assert STARTS["unit"](logsnr) / alpha_sigma(logsnr)[0] == pytest.approx(math.sqrt(80**2 + 1), rel=1e-14)
    np.testing.assert_allclose(STARTS["edm"](-60), 1)
