"""CMMD and the kernel distance with a Gaussian kernel, as they are defined."""

import numpy as np
import pytest
from feature_sets import ask, features, plain, structured, turned
from scipy.spatial.distance import cdist
from torch_fidelity.metric_kid import kid_features_to_metric

from elbocli.core import neighbours


def kernel(x, y, width):
    return np.exp(-cdist(x, y, "sqeuclidean") / (2 * width**2))


def restated_cmmd(x, y):
    """Jayasumana et al. 2024: σ = 10, means over all pairs, times 1000, of embeddings on the sphere."""
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, y))
    return 1000 * (kernel(x, x, 10).mean() + kernel(y, y, 10).mean() - 2 * kernel(x, y, 10).mean())


def restated_unbiased(x, y, width):
    """Gretton et al. 2012: pairs of different vectors."""
    total = -2 * kernel(x, y, width).mean()
    for each in (x, y):
        inner = kernel(each, each, width)
        total += (inner.sum() - np.trace(inner)) / (len(each) * (len(each) - 1))
    return total


@pytest.mark.parametrize("made", [plain, structured])
@pytest.mark.parametrize("rows", [32, 4096])
def test_both_are_their_formulas(made, rows, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", rows)
    pair = [each.astype(np.float32).astype(np.float64) for each in made(0)]
    assert ask("cmmd", *pair)["gaussian_mmd"] == pytest.approx(restated_cmmd(*pair), rel=1e-6, abs=1e-9)
    for width in (1, 10):
        found = ask("kid-rbf", *pair, rbf_width=width)["kernel_inception_distance_rbf"]
        assert found == pytest.approx(restated_unbiased(pair[0], pair[1], width), rel=1e-6, abs=1e-9)
    assert ask("cmmd", *pair)["gaussian_mmd"] > 0


def test_one_subset_of_all_is_torch_fidelitys():
    own, other = (features(each).values for each in plain(1, 90, 90))
    theirs = kid_features_to_metric(
        own, other, kid_subsets=1, kid_subset_size=90, kid_kernel="rbf", kid_kernel_rbf_sigma=3, verbose=False
    )
    found = ask("kid-rbf", own, other, rbf_width=3)["kernel_inception_distance_rbf"]
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)


@pytest.mark.parametrize("name", ["cmmd", "kid-rbf"])
def test_order_and_rotation_change_nothing(name):
    own, other = plain(2)
    found, draw, turn = ask(name, own, other), np.random.default_rng(0), turned(1)
    assert ask(name, draw.permutation(own), draw.permutation(other)) == pytest.approx(found, abs=1e-9)
    assert ask(name, own @ turn, other @ turn) == pytest.approx(found, rel=1e-4)


def test_cmmd_of_doubled_sets_is_the_same_and_of_a_set_with_itself_nothing():
    own, other = plain(2)
    assert ask("cmmd", np.repeat(own, 2, 0), np.repeat(other, 3, 0)) == pytest.approx(ask("cmmd", own, other), rel=1e-9)
    assert abs(ask("cmmd", own, own.copy())["gaussian_mmd"]) < 1e-9
    assert ask("cmmd", own * np.arange(1, 151)[:, None], other) == pytest.approx(ask("cmmd", own, other), rel=1e-5)


def test_the_unbiased_one_of_one_distribution_is_about_zero_on_average():
    found = [
        ask("kid-rbf", *np.random.default_rng(seed).normal(size=(2, 60, 4)), rbf_width=2)[
            "kernel_inception_distance_rbf"
        ]
        for seed in range(40)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / 40**0.5 and min(found) < 0 < max(found)
