"""λ, α and σ, and what each prediction's output says of the data and of the noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from identities import diffuse, target, x_hat

from elbocli.core import prediction as level
from elbocli.core.prediction import PREDICTIONS, Prediction
from elbocli.errors import UsageError

NAMES = sorted(PREDICTIONS)


LEVELS = st.floats(-15, 15)


DATA = st.floats(0.1, 2)


ROWS = 8


def at(value):
    return torch.tensor([value], dtype=torch.float64)


@given(st.floats(-level.LIMIT, level.LIMIT))
def test_variance_is_preserved_and_logsnr_is_the_log_of_the_ratio(lam):
    alpha = float(level.alpha(at(lam)))
    sigma = float(level.sigma(at(lam)))
    assert alpha**2 + sigma**2 == pytest.approx(1, rel=1e-15)
    assert level.logsnr_of(sigma / alpha) == pytest.approx(lam, abs=1e-13)
    assert level.alpha_sigma(lam) == pytest.approx((alpha, sigma), rel=1e-14)


def test_infinite_logsnr_is_clean_data():
    assert level.alpha_sigma(math.inf) == (1.0, 0.0)


@pytest.mark.parametrize("lam", [15.0, 17.0, 30.0])
def test_float32_sigma_keeps_its_digits_at_high_logsnr(lam):
    single = level.sigma(torch.tensor([lam], dtype=torch.float32))
    assert float(single) == pytest.approx(math.exp(-lam / 2), rel=1e-6)


@pytest.mark.parametrize(("size", "shift"), [(64, 0), (32, 1.386294), (512, -4.158883)])
def test_resolution_shift_is_the_log_of_the_pixel_ratio_squared(size, shift):
    assert level.resolution_shift(size) == pytest.approx(shift, abs=1e-6)


@st.composite
def cases(draw):
    """(prediction, λ, x, ε, z): a batch at one level, float64."""
    name = draw(st.sampled_from(NAMES))
    prediction = Prediction(f"edm:sigma_data={draw(DATA)}" if name == "edm" else name)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    lam = torch.full((ROWS,), draw(LEVELS), dtype=torch.float64)
    x, eps = torch.randn(2, ROWS, 1, 2, 2, generator=generator, dtype=torch.float64)
    return prediction, lam, x, eps, diffuse(x, eps, lam)


@given(cases())
def test_the_target_gives_the_data_back(case):
    prediction, lam, x, eps, z = case
    scale = 1 + math.exp(max(0.0, -float(lam[0])) / 2)  # x from ε divides by α
    np.testing.assert_allclose(x_hat(prediction, target(prediction, x, eps, lam), z, lam), x, atol=1e-13 * scale)


PATHS = ("u-path", "x-path", "eps-path")
TARGET = {
    "eps": lambda a, s, x, e: e,
    "eps-path": lambda a, s, x, e: e,
    "x": lambda a, s, x, e: x,
    "x-path": lambda a, s, x, e: x,
    "v": lambda a, s, x, e: a * e - s * x,
    "u": lambda a, s, x, e: e - x,
    "u-path": lambda a, s, x, e: e - x,
}


@pytest.mark.parametrize("name", TARGET)
@given(lam=LEVELS, x=st.floats(-2, 2), eps=st.floats(-3, 3))
def test_targets_are_what_they_are_called(name, lam, x, eps):
    found = target(Prediction(name), at([x]), at([eps]), at(lam))
    assert float(found) == pytest.approx(TARGET[name](*level.alpha_sigma(lam), x, eps), rel=1e-13, abs=1e-14)


@given(LEVELS, DATA)
def test_edm_is_karras_preconditioning(lam, data):
    """D(y; σ) = c_skip y + c_out F(c_in y), y = z/α, σ = σ_edm."""
    sigma = math.exp(-lam / 2)
    c_skip = data**2 / (sigma**2 + data**2)
    c_out = sigma * data / math.sqrt(sigma**2 + data**2)
    c_in = 1 / math.sqrt(sigma**2 + data**2)
    alpha = level.alpha_sigma(lam)[0]
    c = Prediction(f"edm:sigma_data={data}").coefficients(torch.tensor([lam], dtype=torch.float64))
    assert float(c.x_from_z) == pytest.approx(c_skip / alpha, rel=1e-13)
    assert float(c.x_from_out) == pytest.approx(c_out, rel=1e-13)
    assert float(c.c_in) == pytest.approx(c_in / alpha, rel=1e-13)


@pytest.mark.parametrize("name", PATHS)
@given(LEVELS)
def test_the_network_of_a_path_sees_the_straight_path(name, lam):
    """z/(α + σ) = (1−t) x + t ε with t = σ/(α + σ), the t of λ = 2 log((1−t)/t)."""
    c = Prediction(name).coefficients(at(lam))
    t = 1 / (1 + math.exp(lam / 2))
    assert float(c.c_in * c.alpha) == pytest.approx(1 - t, rel=1e-12)
    assert float(c.c_in * c.sigma) == pytest.approx(t, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("edm", *PATHS)])
def test_no_other_scales_the_input(name):
    assert Prediction(name).coefficients(torch.linspace(-15, 15, 9, dtype=torch.float64)).c_in.tolist() == [1] * 9


def test_sigma_data_is_a_half_unless_given_and_a_bad_spec_is_refused():
    assert Prediction("edm").spec == "edm:sigma_data=0.5"
    for text in ("", "epsilons", "v:sigma_data=1", "edm:sigma_data=0", "edm:sigma_data=x"):
        with pytest.raises(UsageError):
            Prediction(text)
