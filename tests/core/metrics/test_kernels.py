"""CMMD as it is defined."""

import numpy as np
import pytest
from feature_sets import ask, plain, structured, turned
from scipy.spatial.distance import cdist

from elbocli.core import neighbours


def kernel(x, y, width):
    return np.exp(-cdist(x, y, "sqeuclidean") / (2 * width**2))


def restated_cmmd(x, y):
    """Jayasumana et al. 2024: σ = 10, means over all pairs, times 1000, of embeddings on the sphere."""
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, y))
    return 1000 * (kernel(x, x, 10).mean() + kernel(y, y, 10).mean() - 2 * kernel(x, y, 10).mean())


@pytest.mark.parametrize("made", [plain, structured])
@pytest.mark.parametrize("rows", [32, 4096])
def test_it_is_its_formula(made, rows, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", rows)
    pair = [each.astype(np.float32).astype(np.float64) for each in made(0)]
    assert ask("cmmd", *pair)["gaussian_mmd"] == pytest.approx(restated_cmmd(*pair), rel=1e-6, abs=1e-9)
    assert ask("cmmd", *pair)["gaussian_mmd"] > 0


def test_order_and_rotation_change_nothing():
    own, other = plain(2)
    found, draw, turn = ask("cmmd", own, other), np.random.default_rng(0), turned(1)
    assert ask("cmmd", draw.permutation(own), draw.permutation(other)) == pytest.approx(found, abs=1e-9)
    assert ask("cmmd", own @ turn, other @ turn) == pytest.approx(found, rel=1e-4)


def test_cmmd_of_doubled_sets_is_the_same_and_of_a_set_with_itself_nothing():
    own, other = plain(2)
    assert ask("cmmd", np.repeat(own, 2, 0), np.repeat(other, 3, 0)) == pytest.approx(ask("cmmd", own, other), rel=1e-9)
    assert abs(ask("cmmd", own, own.copy())["gaussian_mmd"]) < 1e-9
    assert ask("cmmd", own * np.arange(1, 151)[:, None], other) == pytest.approx(ask("cmmd", own, other), rel=1e-5)
