"""The Fréchet distance: closed forms, scipy's matrix root, and covariances that are not of full rank."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.estimate import FeatureMoments, frechet_distance, root


def drawn(n, width, seed=0, decay=0.5):
    """Moments of n vectors whose spread falls by dimension."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((width, width)) * np.arange(1, width + 1) ** -float(decay)
    return FeatureMoments.of(random.standard_normal((n, width)) @ mixed.T + random.standard_normal(width))


def by_scipy(a, b):
    both = scipy.linalg.sqrtm(a.sigma @ b.sigma)
    return (a.mu - b.mu) @ (a.mu - b.mu) + np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.trace(both).real


@pytest.mark.parametrize("decay", [0, 0.5, 2])
@pytest.mark.parametrize(
    ("n", "m"), [(400, 300), (30, 300), (300, 30), (30, 25), (41, 400)], ids=lambda n: f"{n} for 40"
)
@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_it_is_scipys_also_where_ranks_are_short(n, m, decay):
    a, b = drawn(n, 40, 1, decay), drawn(m, 40, 2, decay)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6)


@given(st.integers(1, 6), st.integers(0, 99))
def test_commuting_covariances_have_a_closed_form(width, seed):
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.standard_normal((width, width)))
    one, two = random.uniform(0, 3, (2, width)) * (random.random((2, width)) < 0.8)
    first, second = (FeatureMoments(2, random.standard_normal(width), turn * spread @ turn.T) for spread in (one, two))
    exact = np.sum((first.mu - second.mu) ** 2) + np.sum((np.sqrt(one) - np.sqrt(two)) ** 2)
    assert frechet_distance(first, second) == pytest.approx(exact, rel=1e-9, abs=1e-6)


def test_it_is_symmetric_and_quadratic_in_scale():
    a, b = drawn(100, 20, 1), drawn(15, 20, 2)
    thrice = [FeatureMoments(x.n, 3 * x.mu, 9 * x.scatter) for x in (a, b)]
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert frechet_distance(*thrice) == pytest.approx(9 * frechet_distance(a, b), rel=1e-10)


@pytest.mark.parametrize("n", [10, 200])
def test_nothing_is_far_from_itself(n):
    assert abs(frechet_distance(drawn(n, 50), drawn(n, 50))) < 1e-10


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_features_that_never_change_are_a_point():
    still = FeatureMoments.of(np.ones((5, 3)))
    assert frechet_distance(still, still) == 0
    assert frechet_distance(still, drawn(50, 3)) == pytest.approx(by_scipy(still, drawn(50, 3)), rel=1e-9)


@pytest.mark.parametrize("n", [2, 9, 60])
def test_the_root_has_the_rank_of_what_it_is_of(n):
    sigma = drawn(n, 20).sigma
    factor = root(sigma)
    assert factor.shape == (20, min(n - 1, 20))
    np.testing.assert_allclose(factor @ factor.T, sigma, atol=1e-12 * sigma.max())
