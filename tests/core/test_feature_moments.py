import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.estimate import FeatureMoments, StreamingFeatureMoments


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 99))
def test_any_split_of_the_stream_gives_numpys_mean_and_covariance(sizes, width, seed):
    features = np.random.default_rng(seed).normal(size=(sum(sizes) + 2, width)) @ np.diag(np.arange(1, width + 1))
    moments = StreamingFeatureMoments()
    for part in np.split(features, np.cumsum([2, *sizes])[:-1]):
        moments.add(part)
    found = moments.moments()
    assert found.n == len(features)
    np.testing.assert_allclose(found.mu, features.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        found.sigma, np.cov(features, rowvar=False).reshape(width, width), rtol=1e-10, atol=1e-12
    )


def test_features_far_from_the_origin_keep_their_digits():
    spread = np.random.default_rng(0).normal(size=(1000, 3))
    moments = StreamingFeatureMoments()
    for part in np.split(spread + 1e6, 10):
        moments.add(part)
    np.testing.assert_allclose(moments.moments().sigma, np.cov(spread, rowvar=False), rtol=1e-8, atol=1e-9)


def test_half_and_single_precision_are_summed_in_double():
    features = np.random.default_rng(0).normal(size=(20000, 2)).astype(np.float32)
    moments = StreamingFeatureMoments()
    for part in np.split(features, 100):
        moments.add(part)
    mu, sigma = moments.moments().mu, moments.moments().sigma
    exact = features.astype(np.float64)
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(mu, exact.mean(0), rtol=1e-11)
    np.testing.assert_allclose(sigma, np.cov(exact, rowvar=False), rtol=1e-11)


def test_the_covariance_is_symmetric_and_not_negative():
    moments = StreamingFeatureMoments()
    moments.add(np.random.default_rng(0).normal(size=(5, 8)))
    sigma = moments.moments().sigma
    np.testing.assert_array_equal(sigma, sigma.T)
    assert np.linalg.eigvalsh(sigma).min() > -1e-12


def same(a: FeatureMoments, b: FeatureMoments) -> None:
    assert a.n == b.n
    np.testing.assert_allclose(a.mu, b.mu, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-8, atol=1e-8)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 5), st.integers(0, 99))
def test_moments_of_parts_add_up_and_a_part_can_be_taken_out_again(first, second, width, seed):
    features = np.random.default_rng(seed).normal(3, 2, size=(first + second, width))
    a, b, both = FeatureMoments.of(features[:first]), FeatureMoments.of(features[first:]), FeatureMoments.of(features)
    same(a + b, both)
    same(both - b, a)


def test_one_has_no_covariance():
    with pytest.warns(RuntimeWarning, match="invalid value"):
        assert np.isnan(FeatureMoments.of(np.zeros((1, 2))).sigma).all()
