"""The Fréchet distance in closed form and by scipy's root; its standard error and limit on features of known distance."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.moments import FeatureMoments
from elbocli.scoring.frechet import frechet_distance
from elbocli.scoring.score_errors import frechet_influence, some_pairs


def drawn(n, width, seed=0, decay=0.5):
    """Moments of n vectors whose spread falls by dimension."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((width, width)) * np.arange(1, width + 1) ** -float(decay)
    return FeatureMoments.of(random.standard_normal((n, width)) @ mixed.T + random.standard_normal(width))


def by_scipy(a, b):
    both = scipy.linalg.sqrtm(a.sigma @ b.sigma)
    return (a.mu - b.mu) @ (a.mu - b.mu) + np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.trace(both).real


@pytest.mark.parametrize("decay", [0, 0.5, 2])
@pytest.mark.parametrize(("n", "m"), [(400, 300), (30, 300), (300, 30), (30, 25), (41, 400)], ids=lambda n: f"{n} for 40")
@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_it_is_scipys_also_where_ranks_are_short(n, m, decay):
    a = drawn(n, 40, 1, decay)
    b = drawn(m, 40, 2, decay)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6)


@given(st.integers(1, 6), st.integers(0, 99))
def test_commuting_covariances_have_a_closed_form(width, seed):
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.standard_normal((width, width)))
    one, two = random.uniform(0, 3, (2, width)) * (random.random((2, width)) < 0.8)
    first, second = (FeatureMoments(2, random.standard_normal(width), turn * spread @ turn.T) for spread in (one, two))
    exact = np.sum((first.mu - second.mu) ** 2) + np.sum((np.sqrt(one) - np.sqrt(two)) ** 2)
    assert frechet_distance(first, second) == pytest.approx(exact, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("n", [10, 200])
def test_nothing_is_far_from_itself(n):
    assert abs(frechet_distance(drawn(n, 50), drawn(n, 50))) < 1e-10


def test_it_is_quadratic_in_scale_however_small():
    pair = drawn(100, 20, 1), drawn(15, 20, 2)
    tiny = [FeatureMoments(each.n, 1e-9 * each.mu, 1e-18 * each.scatter) for each in pair]
    assert frechet_distance(*tiny) == pytest.approx(1e-18 * frechet_distance(*pair), rel=1e-9, abs=0)


# Its error


class World:
    """Features of known mean and covariance. skewed: log-normal. apart: the reference's."""

    def __init__(self, width, skewed=False, apart=0.3, seed=0):
        self.random = random = np.random.default_rng(seed)
        self.skewed = skewed
        turn, _ = np.linalg.qr(random.standard_normal((width, width)))
        self.mix = turn * np.arange(1, width + 1) ** -0.5
        bent = np.eye(width) + apart * random.standard_normal((width, width)) / np.sqrt(width)
        sigma = self.mix @ self.mix.T
        offset = apart * self.mix @ random.standard_normal(width) / np.sqrt(width)
        self.reference = FeatureMoments(2, offset, bent @ sigma @ bent.T)

    def draw(self, n):
        z = self.random.standard_normal((n, len(self.mix)))
        if self.skewed:
            z = (np.exp(0.7 * z) - np.exp(0.245)) / np.sqrt((np.exp(0.49) - 1) * np.exp(0.49))
        return z @ self.mix.T

    def plain(self, features):
        return frechet_distance(FeatureMoments.of(features), self.reference)

    def error(self, features):
        return frechet_influence(features, FeatureMoments.of(features), self.reference).se


def test_the_influence_is_the_change_by_an_image_that_is_left_out():
    """To second order: the distance without one image, by its definition."""
    world = World(6)
    n = 400
    features = world.draw(n)
    found = frechet_influence(features, FeatureMoments.of(features), world.reference).first
    changes = [world.plain(features) - world.plain(np.delete(features, index, 0)) for index in range(n)]
    wanted = (n - 1) * (np.array(changes) - np.mean(changes))
    assert np.abs(found - wanted).max() < 0.01 * np.std(wanted)


def test_the_second_influence_is_the_mixed_derivative_by_two_images_weights():
    world = World(6)
    n = 60
    step = 1e-3
    features = world.draw(n)
    own = FeatureMoments.of(features)
    own = FeatureMoments(n, own.mu, own.scatter * (n - 1) / n)
    found = frechet_influence(features, own, world.reference).second

    def at(one, other, *steps):
        weights = np.ones(n) / n * (1 - sum(steps))
        weights[one] += steps[0]
        weights[other] += steps[1]
        mu = weights @ features
        centred = features - mu
        return frechet_distance(FeatureMoments(2, mu, (centred * weights[:, None]).T @ centred), world.reference)

    for place, (one, other) in enumerate(list(zip(*some_pairs(n)))[:5]):
        more = at(one, other, step, step) + at(one, other, -step, -step)
        assert found[place] == pytest.approx(
            (more - at(one, other, step, -step) - at(one, other, -step, step)) / (2 * step) ** 2, rel=1e-3
        )


@pytest.mark.parametrize(("n", "apart", "skewed"), [(600, 0, False), (600, 0.3, False), (4000, 0.3, True)])
def test_the_standard_error_is_that_of_new_draws(n, apart, skewed):
    """Also without a distance, where the first derivative vanishes and the second tells the error."""
    world = World(8, skewed=skewed, apart=apart)
    fresh = [world.plain(world.draw(n)) for _ in range(300)]
    errors = [world.error(world.draw(n)) for _ in range(30)]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(fresh), rel=0.2)


def test_a_reference_of_equal_images_has_an_error_too():
    """Its covariance is zero: the distance is ‖μ − μᵣ‖² + tr Σ, whose error needs no map."""
    features = np.random.default_rng(5).normal(size=(400, 6))
    flat = FeatureMoments(30, np.full(6, 0.5), np.zeros((6, 6)))
    error = frechet_influence(features, FeatureMoments.of(features), flat).se
    c = features - features.mean(0)
    wanted = 2 * c @ (features.mean(0) - 0.5) + (c**2).sum(1)
    assert error == pytest.approx(wanted.std() / 20, rel=0.02)
