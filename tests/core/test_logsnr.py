import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core import logsnr as level

LEVELS = st.floats(-level.LIMIT, level.LIMIT)


def at(value):
    return torch.tensor([value], dtype=torch.float64)


@given(LEVELS)
def test_variance_is_preserved(lam):
    total = level.alpha(at(lam)).square() + level.sigma(at(lam)).square()
    assert float(total) == pytest.approx(1, rel=1e-15)


@given(LEVELS)
def test_logsnr_is_the_log_of_alpha_over_sigma_squared(lam):
    ratio = 2 * (level.alpha(at(lam)).log() - level.sigma(at(lam)).log())
    assert float(ratio) == pytest.approx(lam, abs=1e-13)


@given(LEVELS)
def test_sigma_edm_is_sigma_over_alpha_and_logsnr_of_inverts_it(lam):
    sigma = float(level.sigma_edm(at(lam)))
    assert sigma == pytest.approx(float(level.sigma(at(lam)) / level.alpha(at(lam))), rel=1e-13)
    assert level.logsnr_of(sigma) == pytest.approx(lam, abs=1e-13)


@given(LEVELS)
def test_floats_and_tensors_agree(lam):
    assert level.alpha_sigma(lam) == pytest.approx(
        (float(level.alpha(at(lam))), float(level.sigma(at(lam)))), rel=1e-14
    )


def test_infinite_logsnr_is_clean_data():
    assert level.alpha_sigma(math.inf) == (1.0, 0.0)


@pytest.mark.parametrize("lam", [15.0, 17.0, 30.0])
def test_float32_sigma_keeps_its_digits_at_high_logsnr(lam):
    single = level.sigma(torch.tensor([lam], dtype=torch.float32))
    assert float(single) == pytest.approx(math.exp(-lam / 2), rel=1e-6)


def test_diffuse_mixes_each_example_at_its_own_level():
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    lam = torch.tensor([-4.0, 0.0, 7.0], dtype=torch.float64)
    z = level.diffuse(x, eps, lam)
    for row in range(3):
        alpha, sigma = level.alpha_sigma(float(lam[row]))
        np.testing.assert_allclose(z[row], alpha * x[row] + sigma * eps[row], rtol=1e-14)


def test_diffuse_keeps_the_type_of_the_data():
    x = torch.ones(1, 1, 2, 2, dtype=torch.float32)
    assert level.diffuse(x, x, torch.zeros(1, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "shift"), [(64, 0), (32, 1.386294), (128, -1.386294), (256, -2.772589), (512, -4.158883)]
)
def test_resolution_shift_is_the_log_of_the_pixel_ratio_squared(size, shift):
    assert level.resolution_shift(size) == pytest.approx(shift, abs=1e-6)
