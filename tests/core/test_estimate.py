"""Standard errors and intervals against scipy and simulation; moments of features in any parts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from elbocli.core.estimate import Estimate
from elbocli.core.moments import StreamingFeatureMoments
from elbocli.core.paired import PairedMoments
from elbocli.errors import UsageError
from elbocli.runs.classes import p_of_equal_shares, p_of_uniform

sizes = st.integers(2, 12)


@given(st.integers(0, 10**6), sizes, sizes)
def test_the_difference_of_two_means_is_welchs(seed, n, m):
    draw = np.random.default_rng(seed)
    a = draw.normal(1, 0.5, n)
    b = draw.normal(0, 2, m)
    found = Estimate.of_repeats([*a]).minus(Estimate.of_repeats([*b]))
    wanted = stats.ttest_ind(a, b, equal_var=False)
    assert found.freedom == pytest.approx(wanted.df)
    assert found.interval == pytest.approx(tuple(wanted.confidence_interval()))


def test_an_exact_standard_error_has_a_normal_interval_and_an_unknown_one_none():
    found = Estimate.normal(1.0, 0.3).minus(Estimate(0.5, 0.4))
    assert (found.value, found.se, found.freedom) == (0.5, pytest.approx(0.5), math.inf)
    assert found.interval == pytest.approx(stats.norm(0.5, 0.5).interval(0.95))
    assert Estimate(1.0).minus(Estimate(0.5, 0.1)) == Estimate(0.5) and Estimate(0.5).interval is None


def test_an_error_of_repeats_beside_an_exact_one_keeps_welchs_freedom():
    found = Estimate.normal(1.0, 0.3, freedom=2).minus(Estimate(0.5, 0.4))
    assert found.freedom == pytest.approx((0.09 + 0.16) ** 2 / (0.09**2 / 2))


def test_repeats_that_do_not_vary_have_no_width():
    assert Estimate.of_repeats([2.0, 2.0]).minus(Estimate.of_repeats([1.0, 1.0])).interval == (1.0, 1.0)


def test_the_interval_of_a_share_solves_its_equation():
    """|p − share| = 1.96 √(p (1 − p) / n) at both ends."""
    for end in Estimate.of_share(37, 50).interval or ():
        assert abs(end - 0.74) == pytest.approx(1.959963984540054 * np.sqrt(end * (1 - end) / 50), rel=1e-9)


# What the images add, what the noise adds, and what a finite population takes away


BETWEEN = np.array([[1.0, 0.3], [0.3, 0.5]])


NOISE = np.array([[0.4, -0.2], [-0.2, 0.9]])


ONE = np.array([1.0, 2.0])


def pairs(random, n, population=None):
    """[n, 2, 2]: true values of n images (of a population, or new ones), each with two noisy estimates."""
    if population is None:
        true = random.multivariate_normal([3, -1], BETWEEN, n)
    else:
        true = population[random.permutation(len(population))[:n]]
    noise = random.multivariate_normal([0, 0], 2 * NOISE, (n, 2))
    return torch.from_numpy(true[:, None] + noise)


def estimated(random, n, population=None):
    moments = PairedMoments()
    for part in pairs(random, n, population).split(37):
        moments.add(part)
    return moments.estimate()


def test_the_two_covariances_are_told_apart():
    found = estimated(np.random.default_rng(0), 200_000)
    np.testing.assert_allclose(found.between, BETWEEN, atol=0.02)
    np.testing.assert_allclose(found.noise, NOISE, atol=0.02)
    assert found.value(ONE) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("n", [40, 200])
def test_the_standard_error_is_the_spread_of_the_mean(n):
    """Over many repetitions with images from a population of 200."""
    random = np.random.default_rng(1)
    population = random.multivariate_normal([3, -1], BETWEEN, 200)
    repeats = [estimated(random, n, population) for _ in range(2000)]
    spread = np.std([e.value(ONE) for e in repeats])
    said = np.sqrt(np.mean([e.se(ONE, 200) ** 2 for e in repeats]))
    assert said == pytest.approx(spread, rel=0.05)


def test_when_every_image_was_drawn_only_the_noise_is_left():
    found = estimated(np.random.default_rng(2), 50)
    assert found.se(ONE, 50) == found.noise_se(ONE)
    assert found.noise_se(ONE) < found.se(ONE, 51) < found.se(ONE, np.inf)
    with pytest.raises(UsageError):
        estimated(np.random.default_rng(2), 1)


# Moments of features


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 99))
def test_any_split_of_the_stream_gives_numpys_mean_and_covariance(sizes, width, seed):
    features = np.random.default_rng(seed).normal(size=(sum(sizes) + 2, width)) @ np.diag(np.arange(1, width + 1))
    moments = StreamingFeatureMoments()
    for part in np.split(features, np.cumsum([2, *sizes])[:-1]):
        moments.add(part)
    found = moments.moments()
    assert found.n == len(features)
    np.testing.assert_allclose(found.mu, features.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(features, rowvar=False).reshape(width, width), rtol=1e-10, atol=1e-12)


def test_single_precision_far_from_the_origin_keeps_its_digits():
    """And more vectors than are added up at a time."""
    features = (np.random.default_rng(0).normal(size=(5000, 3)) + 1e4).astype(np.float32)
    moments = StreamingFeatureMoments()
    for part in np.split(features, 10):
        moments.add(part)
    found = moments.moments()
    exact = features.astype(np.float64)
    np.testing.assert_allclose(found.mu, exact.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.sigma, np.cov(exact - 1e4, rowvar=False), rtol=1e-10, atol=1e-12)


# Tests of class frequencies


@pytest.mark.parametrize(
    ("n", "m", "shares"), [(40, 40, np.ones(10)), (800, 5000, np.ones(10)), (64, 50_000, 1 / np.arange(1, 1001))]
)
def test_samples_of_equal_frequencies_differ_by_chance_alone(n, m, shares):
    """Among p-values of 500 pairs, a tenth are below .1, also where most classes have less than one image."""
    draw = np.random.default_rng(0)
    shares = shares / shares.sum()
    values = np.array([p_of_equal_shares(draw.multinomial(n, shares), draw.multinomial(m, shares)) for _ in range(500)])
    assert stats.binomtest(int((values < 0.1).sum()), 500, 0.1).pvalue > 1e-3 and (values < 1e-3).sum() <= 4


def test_p_values_of_frequencies_are_those_of_their_formulas():
    counts = np.array([30, 14, 16])
    assert p_of_uniform(counts) == pytest.approx(stats.chi2.sf(sum((counts - 20) ** 2 / 20), 2))
    other = np.array([20, 21, 19])
    expected = (counts + other) / 2
    assert p_of_equal_shares(counts, other) == pytest.approx(stats.chi2.sf(2 * sum((counts - expected) ** 2 / expected), 2))
    assert p_of_equal_shares(np.full(1000, 2), 5000 // np.arange(1, 1001)) < 1e-9  # rare classes are pooled, not left out
    assert p_of_uniform(counts[:1]) == p_of_equal_shares(counts[:1], other[:1]) == 1
