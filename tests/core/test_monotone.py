import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.monotone import likeness, rising, slope


@given(st.floats(1e-3, 1e3), st.floats(0.01, 3))
def test_the_best_scale_halves_the_spread(scale, wave):
    """f/g = scale · e^{wave sin λ}: the best deviation is e^{wave} − 1."""

    def f(lam):
        return scale * (wave * lam.sin()).exp() * (-lam).exp()

    found = likeness(f, lambda lam: (-lam).exp(), -10, 10)
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert found.deviation == pytest.approx(math.expm1(wave), rel=1e-6)
    assert abs(math.sin(found.logsnr)) == pytest.approx(1, abs=1e-6)


def test_the_same_function_at_another_scale_deviates_by_nothing():
    assert likeness(lambda lam: 3e30 * lam.sigmoid(), torch.sigmoid, -15, 15).deviation < 1e-13


def test_a_zero_in_one_alone_is_an_infinite_deviation_and_is_placed():
    def cut(lam):
        return (lam > 2).double()

    found = likeness(lambda lam: lam * 0 + 1, cut, -5, 5)
    assert found.deviation == math.inf and found.logsnr <= 2
    assert likeness(cut, cut, -5, 5).deviation == 0


def test_nothing_at_all_is_like_nothing():
    assert likeness(torch.zeros_like, torch.zeros_like, -1, 1).deviation == 0


def test_rising_and_slope_of_a_function_that_is_known():
    ((start, end),) = rising(lambda lam: -(lam - 1).square(), -3, 3)
    assert (start, end) == (-3, pytest.approx(1, abs=1e-9))
    at = torch.tensor([0.0, 2.0])
    assert slope(lambda lam: lam.square(), at).tolist() == [0, 4]
    assert slope(lambda lam: torch.ones(2), at).tolist() == [0, 0]


def test_what_differs_beyond_all_numbers_differs_infinitely():
    found = likeness(lambda at: (-(at**2) / 3).exp(), lambda at: (-((at - 40) ** 2) / 3).exp(), -20, 20)
    assert found.deviation == math.inf
