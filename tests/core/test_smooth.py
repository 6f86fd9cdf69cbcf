"""A smooth curve through noisy means."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.adaptive import BENDS, roughness, smooth

AT = torch.linspace(-9.9, 9.9, 100, dtype=torch.float64)
CURVE = (AT / 2).sigmoid()


def noisy(curve, precision, seed):
    """Gamma-distributed means with that precision: 1 over their relative variance."""
    return torch.from_numpy(np.random.default_rng(seed).gamma(precision, size=len(curve)) / precision) * curve


def off(found, curve=CURVE):
    return float((found / curve).log().square().mean().sqrt())


@pytest.mark.parametrize("bend", BENDS)
def test_roughness_is_that_of_the_curve_however_it_is_cut(bend):
    """∫ f″²/bend + f′² dλ of f = sin over ten periods, on bins of different and of uneven width."""
    wanted = 10 * np.pi * (1 / bend + 1)
    for count in (800, 1200):
        at = torch.linspace(0, 20 * np.pi, count, dtype=torch.float64)
        assert float(at.sin() @ roughness(at, bend) @ at.sin()) == pytest.approx(wanted, rel=0.02)
    at = 20 * np.pi * torch.linspace(0, 1, 1200, dtype=torch.float64) ** 1.2
    assert float(at.sin() @ roughness(at, bend) @ at.sin()) == pytest.approx(wanted, rel=0.02)


@given(st.floats(1e-6, 1e6), st.integers(0, 99))
def test_the_unit_does_not_matter(unit, seed):
    mean, precision = noisy(CURVE, 20, seed), torch.full_like(CURVE, 20)
    np.testing.assert_allclose(smooth(AT, unit * mean, precision), unit * smooth(AT, mean, precision), rtol=1e-4)


def test_many_observations_are_left_as_they_are():
    mean = torch.from_numpy(np.random.default_rng(0).uniform(0.01, 5, 100))
    np.testing.assert_allclose(smooth(AT, mean, torch.full_like(mean, 1e12)), mean, rtol=1e-5)


@pytest.mark.parametrize("precision", [1, 10, 100])
def test_few_observations_are_smoothed_without_bias(precision):
    """A sixth of the variance at most, and the mean of many smoothed curves is the curve itself."""
    found = [smooth(AT, noisy(CURVE, precision, seed), torch.full_like(CURVE, precision)) for seed in range(40)]
    alone = 1 / precision
    assert np.mean([(curve / CURVE - 1).square().mean() for curve in found]) < alone / 6
    bias = torch.stack(found).mean(0) / CURVE - 1
    assert float(bias.square().mean().sqrt()) < 0.2 * alone**0.5


def test_a_jump_is_followed_when_the_observations_show_it():
    """A smoothness fixed beforehand would smear it: the likeliest one doesn't."""
    curve = CURVE * torch.where(AT > 0, 0.3, 1.0)
    found = smooth(AT, noisy(curve, 1000, 0), torch.full_like(curve, 1000))
    assert off(found, curve) < 0.05
    assert float(found[51] / found[48]) == pytest.approx(0.3, rel=0.15)


def test_between_observations_it_is_straight_in_the_logarithm_and_level_far_beyond():
    precision = torch.full_like(CURVE, 1e6)
    precision[40:60] = 0
    np.testing.assert_allclose(smooth(AT, (0.4 * AT).exp(), precision), (0.4 * AT).exp(), rtol=0.02)
    precision[:60] = 0
    found = smooth(AT, torch.ones_like(AT), precision)
    np.testing.assert_allclose(found, 1, rtol=1e-6)


def test_one_observation_is_the_level_everywhere():
    precision = torch.zeros_like(AT)
    precision[30] = 2
    np.testing.assert_allclose(smooth(AT, torch.full_like(AT, 7), precision), 7, rtol=1e-4)


def test_means_of_zero_pull_down_and_break_nothing():
    mean = torch.where(torch.arange(100) % 2 == 0, 0.0, 2.0).double()
    found = smooth(AT, mean, torch.full_like(mean, 0.5))
    np.testing.assert_allclose(found, 1, rtol=0.2)


def test_two_bins_are_enough():
    at, mean = torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 3.0]).double()
    np.testing.assert_allclose(smooth(at, mean, torch.full_like(mean, 1e9)), mean, rtol=1e-6)
