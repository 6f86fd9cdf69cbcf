"""Intervals of differences, against scipy's tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from elbocli.core.estimate import Estimate, error_of_share

sizes = st.integers(2, 12)


@given(st.integers(0, 10**6), sizes, sizes)
def test_the_difference_of_two_means_is_welchs(seed: int, n: int, m: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = draw.normal(1, 0.5, n), draw.normal(0, 2, m)
    found = Estimate.of_repeats([*a]).minus(Estimate.of_repeats([*b]))
    wanted = stats.ttest_ind(a, b, equal_var=False)
    assert found.freedom == pytest.approx(wanted.df)
    assert found.interval == pytest.approx(tuple(wanted.confidence_interval()))


@given(st.integers(0, 10**6), sizes)
def test_the_mean_of_paired_differences_is_students(seed: int, n: int) -> None:
    draw = np.random.default_rng(seed)
    a = draw.normal(size=n)
    b = a + draw.normal(0.1, 0.1, n)
    found = Estimate.of_repeats([*(b - a)])
    assert found.interval == pytest.approx(tuple(stats.ttest_rel(b, a).confidence_interval()))


def test_an_exact_standard_error_has_a_normal_interval_and_an_unknown_one_none() -> None:
    found = Estimate(1.0, 0.3).minus(Estimate(0.5, 0.4))
    assert (found.value, found.se, found.freedom) == (0.5, pytest.approx(0.5), math.inf)
    assert found.interval == pytest.approx(stats.norm(0.5, 0.5).interval(0.95))
    assert Estimate(1.0).minus(Estimate(0.5, 0.1)) == Estimate(0.5) and Estimate(0.5).interval is None


def test_an_error_of_repeats_beside_an_exact_one_keeps_welchs_freedom() -> None:
    found = Estimate(1.0, 0.3, 2).minus(Estimate(0.5, 0.4))
    assert found.freedom == pytest.approx((0.09 + 0.16) ** 2 / (0.09**2 / 2))


def test_repeats_that_do_not_vary_have_no_width() -> None:
    assert Estimate.of_repeats([2.0, 2.0]).minus(Estimate.of_repeats([1.0, 1.0])).interval == (1.0, 1.0)


@given(st.integers(1, 400), st.data())
def test_the_interval_of_a_share_holds_it_and_lies_within_0_and_1(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    low, high = error_of_share(right, count)[1]
    assert 0 <= low <= right / count + 1e-12 and right / count - 1e-12 <= high <= 1


def test_the_interval_of_a_share_solves_its_equation() -> None:
    """|p − share| = 1.96 √(p (1 − p) / n) at both ends."""
    for end in error_of_share(37, 50)[1]:
        assert abs(end - 0.74) == pytest.approx(1.959963984540054 * np.sqrt(end * (1 - end) / 50), rel=1e-9)
