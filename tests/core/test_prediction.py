import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from identities import diffuse, eps_hat, target, x_hat

from elbocli.core import prediction as level
from elbocli.core.prediction import PREDICTIONS, Prediction
from elbocli.errors import UsageError

NAMES = sorted(PREDICTIONS)
LEVELS = st.floats(-15, 15)
DATA = st.floats(0.1, 2)
ROWS = 8

FACTOR = {  # target error² = ‖ε−ε̂‖² × factor
    "eps": lambda lam: 1,
    "x": lambda lam: math.exp(-lam),
    "v": lambda lam: 1 + math.exp(-lam),
    "u": lambda lam: (1 + math.exp(-lam / 2)) ** 2,
    "u-path": lambda lam: (1 + math.exp(-lam / 2)) ** 2,
    "edm": lambda lam, sigma_data=0.5: (math.exp(-lam) + sigma_data**2) / sigma_data**2,
}


@st.composite
def cases(draw, low=-15, high=15):
    """(prediction, λ, x, ε, z): a batch at one level, float64."""
    name = draw(st.sampled_from(NAMES))
    prediction = Prediction(f"edm:sigma_data={draw(DATA)}" if name == "edm" else name)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    lam = torch.full((ROWS,), draw(st.floats(low, high)), dtype=torch.float64)
    x, eps = torch.randn(2, ROWS, 1, 2, 2, generator=generator, dtype=torch.float64)
    return prediction, lam, x, eps, diffuse(x, eps, lam)


def test_every_prediction_has_a_factor_here():
    assert set(FACTOR) == set(PREDICTIONS)


@given(cases())
def test_the_target_gives_the_data_back(case):
    prediction, lam, x, eps, z = case
    scale = 1 + math.exp(max(0.0, -float(lam[0])) / 2)  # x from ε divides by α
    np.testing.assert_allclose(x_hat(prediction, target(prediction, x, eps, lam), z, lam), x, atol=1e-13 * scale)


@given(cases())
def test_the_target_gives_the_noise_back(case):
    prediction, lam, x, eps, z = case
    scale = 1 + math.exp(max(0.0, float(lam[0])) / 2)  # ε from x divides by σ
    np.testing.assert_allclose(eps_hat(prediction, target(prediction, x, eps, lam), z, lam), eps, atol=1e-13 * scale)


@given(cases(), st.floats(-3, 3))
def test_any_output_leaves_z_as_the_mix_of_both_estimates(case, off):
    prediction, lam, x, eps, z = case
    out = target(prediction, x, eps, lam) + off
    mixed = diffuse(x_hat(prediction, out, z, lam), eps_hat(prediction, out, z, lam), lam)
    np.testing.assert_allclose(mixed, z, atol=1e-11)


@given(cases(-12, 12), st.floats(0.1, 3))
def test_error_factors_of_the_table(case, off):
    prediction, lam, x, eps, z = case
    out = target(prediction, x, eps, lam) + off
    noise_error = (eps_hat(prediction, out, z, lam) - eps).square()
    factor = FACTOR[prediction.declared.name](float(lam[0]), **prediction.declared.params)
    np.testing.assert_allclose(noise_error * factor, off**2, rtol=1e-6)
    np.testing.assert_allclose(prediction.coefficients(lam).eps_factor * factor, 1, rtol=1e-12)


@given(st.sampled_from(NAMES), st.floats(-level.LIMIT, level.LIMIT))
def test_error_factors_hold_at_every_level(name, lam):
    factor = Prediction(name).coefficients(torch.tensor([lam], dtype=torch.float64)).eps_factor
    assert float(factor) * FACTOR[name](lam) == pytest.approx(1, rel=1e-12)


@given(LEVELS)
def test_the_data_error_is_the_noise_error_over_snr(lam):
    at = torch.tensor([lam], dtype=torch.float64)
    for name in NAMES:
        c = Prediction(name).coefficients(at)
        assert float(c.x_from_out.square()) == pytest.approx(float(c.eps_factor) * math.exp(-lam), rel=1e-11)


TARGET = {
    "eps": lambda a, s, x, e: e,
    "x": lambda a, s, x, e: x,
    "v": lambda a, s, x, e: a * e - s * x,
    "u": lambda a, s, x, e: e - x,
    "u-path": lambda a, s, x, e: e - x,
}


@pytest.mark.parametrize("name", TARGET)
@given(lam=LEVELS, x=st.floats(-2, 2), eps=st.floats(-3, 3))
def test_targets_are_what_they_are_called(name, lam, x, eps):
    alpha, sigma = level.alpha_sigma(lam)
    at = torch.tensor([lam], dtype=torch.float64)
    found = target(
        Prediction(name), torch.tensor([[x]], dtype=torch.float64), torch.tensor([[eps]], dtype=torch.float64), at
    )
    assert float(found) == pytest.approx(TARGET[name](alpha, sigma, x, eps), rel=1e-13, abs=1e-14)


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


@given(LEVELS)
def test_u_path_is_u_of_the_straight_path(lam):
    """z/(α + σ) = (1−t) x + t ε with t = σ/(α + σ), the t of λ = 2 log((1−t)/t)."""
    c = Prediction("u-path").coefficients(torch.tensor([lam], dtype=torch.float64))
    t = 1 / (1 + math.exp(lam / 2))
    assert float(c.c_in * c.alpha) == pytest.approx(1 - t, rel=1e-12)
    assert float(c.c_in * c.sigma) == pytest.approx(t, rel=1e-12)
    assert (float(c.a), float(c.b)) == (-1, 1)


@given(cases())
def test_edm_at_unit_sigma_data_is_minus_v(case):
    _, lam, x, eps, _ = case
    unit = target(Prediction("edm:sigma_data=1"), x, eps, lam)
    np.testing.assert_allclose(unit, -target(Prediction("v"), x, eps, lam), rtol=1e-13, atol=1e-15)


@given(LEVELS, DATA)
def test_edms_input_and_target_have_unit_variance_for_data_of_sigma_data(lam, data):
    c = Prediction(f"edm:sigma_data={data}").coefficients(torch.tensor([lam], dtype=torch.float64))
    assert float((c.c_in * c.alpha * data).square() + (c.c_in * c.sigma).square()) == pytest.approx(1, rel=1e-13)
    assert float((c.a * data).square() + c.b.square()) == pytest.approx(1, rel=1e-13)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("edm", "u-path")])
def test_no_other_scales_the_input(name):
    assert Prediction(name).coefficients(torch.linspace(-15, 15, 9, dtype=torch.float64)).c_in.tolist() == [1] * 9


@pytest.mark.parametrize("name", NAMES)
def test_spec_reads_back(name):
    prediction = Prediction(name)
    again = Prediction(prediction.spec)
    assert (again.spec, again.declared) == (prediction.spec, prediction.declared)


@pytest.mark.parametrize(
    "text", ["", "epsilons", "v:sigma_data=1", "edm:sigma_data=0", "edm:sigma_data=x", "edm:shift=1"]
)
def test_a_bad_spec_is_refused(text):
    with pytest.raises(UsageError):
        Prediction(text)
