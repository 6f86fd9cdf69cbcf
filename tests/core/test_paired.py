"""Standard errors against simulation: what the images add, what the noise adds, and what a finite population takes away."""

import numpy as np
import pytest
import torch

from elbocli.core.estimate import PairedEstimate, PairedMoments

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


def test_without_noise_the_error_is_that_of_a_mean():
    values = torch.from_numpy(np.random.default_rng(3).normal(size=(100, 1, 1))).expand(-1, 2, -1)
    moments = PairedMoments()
    moments.add(values)
    found = moments.estimate()
    assert found.noise_se(np.ones(1)) == 0
    assert found.se(np.ones(1), np.inf) == pytest.approx(float(values[:, 0].std()) / 10, rel=1e-12)


def test_rounds_on_the_same_images_share_what_the_images_add():
    random = np.random.default_rng(4)
    population = random.multivariate_normal([3, -1], BETWEEN, 5000)
    rounds = [estimated(random, 5000, population) for _ in range(4)]
    pooled = PairedEstimate.pooled(rounds)
    assert pooled.value(ONE) == pytest.approx(np.mean([r.value(ONE) for r in rounds]), rel=1e-12)
    np.testing.assert_allclose(pooled.noise, NOISE / 4, atol=0.02)
    np.testing.assert_allclose(pooled.between, np.cov(population.T), atol=0.06)
