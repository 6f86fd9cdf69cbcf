import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from identities import diffuse, eps_hat

from elbocli.core.prediction import PREDICTIONS, Prediction
from elbocli.core.sampling import Guidance
from elbocli.errors import UsageError

SCALES = st.floats(0, 20)


def pair(seed=0):
    return torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SCALES)
def test_guidance_goes_from_unconditional_through_conditional_by_scale(scale):
    conditional, unconditional = pair()
    wanted = unconditional + scale * (conditional - unconditional)
    np.testing.assert_allclose(Guidance(scale).combine(conditional, unconditional), wanted, rtol=1e-12, atol=1e-12)


def test_scale_one_is_conditional_and_zero_unconditional():
    conditional, unconditional = pair()
    np.testing.assert_allclose(Guidance(1.0).combine(conditional, unconditional), conditional, rtol=1e-14)
    assert torch.equal(Guidance(0.0).combine(conditional, unconditional), unconditional)


@given(SCALES, st.floats(-10, 10), st.sampled_from(sorted(PREDICTIONS)))
def test_guiding_any_prediction_is_guiding_the_noise_estimate(scale, lam, name):
    conditional, unconditional = pair()
    at = torch.full((4,), lam, dtype=torch.float64)
    x, eps = pair(1)
    z = diffuse(x, eps, at)
    guide, prediction = Guidance(scale), Prediction(name)
    guided = eps_hat(prediction, guide.combine(conditional, unconditional), z, at)
    wanted = guide.combine(eps_hat(prediction, conditional, z, at), eps_hat(prediction, unconditional, z, at))
    np.testing.assert_allclose(guided, wanted, rtol=1e-8, atol=1e-8 * math.exp(abs(lam) / 2))


@pytest.mark.parametrize(("logsnr", "active"), [(-3.1, False), (-3, True), (0, True), (4, True), (4.1, False)])
def test_guidance_acts_on_its_interval_ends_included(logsnr, active):
    assert Guidance(2.0, -3.0, 4.0).active(logsnr) is active


@given(st.floats(-50, 50))
def test_scale_one_never_asks_for_the_unconditional_output(logsnr):
    assert not Guidance(1.0).active(logsnr)
    assert Guidance(1.5).active(logsnr)
    assert Guidance(0.0).active(logsnr)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (math.nan, 1), (0, math.nan)])
def test_an_empty_interval_is_refused(low, high):
    with pytest.raises(UsageError):
        Guidance(2.0, low, high)
