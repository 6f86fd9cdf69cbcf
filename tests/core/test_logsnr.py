import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core import prediction as level

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
def test_logsnr_of_inverts_sigma_over_alpha(lam):
    assert level.logsnr_of(float(level.sigma(at(lam)) / level.alpha(at(lam)))) == pytest.approx(lam, abs=1e-13)


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


@pytest.mark.parametrize(
    ("size", "shift"), [(64, 0), (32, 1.386294), (128, -1.386294), (256, -2.772589), (512, -4.158883)]
)
def test_resolution_shift_is_the_log_of_the_pixel_ratio_squared(size, shift):
    assert level.resolution_shift(size) == pytest.approx(shift, abs=1e-6)
