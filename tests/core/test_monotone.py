import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from elbocli.core.monotone import SHOWN, in_words, likeness, rising, slope
from elbocli.core.weighting import parse_weighting


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


@settings(max_examples=20, phases=[Phase.generate])  # shrinking a failure would take minutes
@given(st.integers(0, 1000), st.sampled_from([1e-16, 1e-14, 1e-12, 1e-10]), st.sampled_from([1e-250, 1e-21, 1.0, 1e30]))
def test_rounding_of_a_constant_is_no_rise(seed, noise, scale):
    generator = torch.Generator().manual_seed(seed)

    def rounded(lam):
        return scale * (1 + noise * (2 * torch.rand(lam.shape, generator=generator, dtype=torch.float64) - 1))

    assert rising(rounded, -15, 15) == []


@pytest.mark.parametrize("scale", [1e-250, 1e-21, 1.0, 1e30])
def test_a_small_true_rise_is_one_at_any_height(scale):
    (found,) = rising(lambda lam: scale * (1 + 1e-7 * (-((lam - 1) ** 2)).exp()), -15, 15)
    assert found[1] == pytest.approx(1, abs=1e-2)
    assert rising(lambda lam: scale * (1 + 1e-10 * (-((lam - 1) ** 2)).exp()), -15, 15) == []


def test_numbers_too_small_for_float64_do_not_cut_a_rise_in_pieces():
    ((low, high),) = parse_weighting("edm:std=.1").rising(-15, 15)
    assert -6 < low < -4 and high == pytest.approx(2.4, abs=0.1)


@pytest.mark.parametrize("at", [-3.7, 0.00012, 2.5])
def test_a_jump_is_found_where_it_is(at):
    ((start, end),) = rising(lambda lam: (lam >= at) * (-lam / 10).exp(), -15, 15)
    assert start == pytest.approx(at, abs=1e-12) and start <= at <= end
    ((start, end),) = rising(lambda lam: (lam <= at) * (lam / 10).exp(), -15, 15)
    assert start == -15 and at - 1e-12 < end <= at


def test_intervals_are_named_in_a_line_however_many_there_are():
    assert in_words([(-15, -3.3077779), (-1e-17, 2)]) == "-15 to -3.307778, 0 to 2"
    steps = rising(lambda lam: lam.floor() + 100, -15, 15)
    assert len(steps) > SHOWN
    assert in_words(steps) == f"-14, -13, -12, -11 and {len(steps) - SHOWN} more"


@pytest.mark.parametrize("shift", [0, 0.7])
@pytest.mark.parametrize(
    "spec", ["v-mse:monotone@edm-sample", "u-mse:monotone@fm-ot", "edm:monotone", "iddpm:monotone"]
)
def test_what_is_held_monotone_never_rises(spec, shift):
    weighting = parse_weighting(spec, shift=shift)
    for low, high in ((-15, 15), (-50, 50)):
        assert weighting.rising(max(low, weighting.support[0]), min(high, weighting.support[1])) == []
