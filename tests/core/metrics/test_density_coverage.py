"""Density and coverage as Naeem et al. define them, and precision and recall by the same pairs."""

import numpy as np
import pytest
from feature_sets import ask, plain, structured, turned
from scipy.spatial.distance import cdist
from torch_fidelity.metric_prc import prc_features_to_metric

from elbocli.core import neighbours


def restated(fake, real, k):
    """All distances at once, rounded to single precision so that copies are as far as what they are copies of."""
    fake, real = (each.astype(np.float32).astype(np.float64) for each in (fake, real))
    reach = np.sort(cdist(real, real).astype(np.float32), 1)[:, k]
    apart = cdist(real, fake).astype(np.float32)
    inside = apart < reach[:, None]
    return {"density": inside.sum() / (k * len(fake)), "coverage": (apart.min(1) < reach).mean()}


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("made", [plain, structured])
@pytest.mark.parametrize("rows", [32, 4096])
def test_they_are_those_of_the_paper(k, made, rows, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", rows)
    own, other = made(k)
    found = ask("density-coverage", own, other, coverage_neighbours=k)
    assert found == pytest.approx(restated(own, other, k), abs=1e-6)
    assert 0 < found["coverage"] < 1 and found["density"] > 0


def test_order_rotation_and_doubled_samples_change_nothing():
    own, other = plain(3)
    found = ask("density-coverage", own, other)
    draw, turn = np.random.default_rng(0), turned(0)
    for pair in (
        (draw.permutation(own), draw.permutation(other)),
        (own @ turn + 5, other @ turn + 5),
        (np.repeat(own, 2, 0), other),
    ):
        assert ask("density-coverage", *pair) == pytest.approx(found, abs=1e-6)


def test_the_same_distribution_has_density_one_and_a_narrow_one_little_coverage():
    draw = np.random.default_rng(0)
    real, same = draw.normal(size=(2, 600, 6))
    found = ask("density-coverage", same, real)
    assert found["density"] == pytest.approx(1, abs=0.1) and found["coverage"] > 0.9
    narrow = ask("density-coverage", same * 0.3, real)
    assert narrow["density"] > 1.5 and narrow["coverage"] < 0.7
    assert ask("density-coverage", same + 50, real) == {"density": 0, "coverage": 0}


@pytest.mark.parametrize("rows", [32, 4096])
def test_precision_and_recall_are_torch_fidelitys_in_blocks_of_any_size(rows, monkeypatch):
    import torch

    monkeypatch.setattr(neighbours, "ROWS", rows)
    pair = [torch.from_numpy(each).float() for each in plain(5)]
    theirs = prc_features_to_metric(*pair, verbose=False)
    assert ask("prc", *pair) == pytest.approx(theirs, abs=1e-6)
