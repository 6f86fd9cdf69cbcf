"""Neighbours as scikit-learn finds them, whatever the size of the blocks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from elbocli.core import neighbours


@pytest.fixture(params=[16, 4096])
def rows(request, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", request.param)


def drawn(n, seed, width=5):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, width)) + 30).float()


@pytest.mark.parametrize("others", [False, True])
def test_the_nearest_are_scikit_learns(rows, others):
    points = drawn(61, 0)
    queries = points if others else drawn(37, 1)
    far, which = neighbours.nearest(queries, points, 4, others=others)
    model = NearestNeighbors(n_neighbors=4).fit(points.double().numpy())
    expected, indices = model.kneighbors(None if others else queries.double().numpy())
    assert (which.numpy() == indices).all()
    np.testing.assert_allclose(far, expected, rtol=1e-6)
    if others:
        np.testing.assert_allclose(neighbours.radii(points, 4), expected[:, -1], rtol=1e-6)


def test_blocks_make_up_all_distances(rows):
    queries, points = drawn(37, 0), drawn(61, 1)
    found = torch.full((37, 61), torch.nan)
    for row, column, apart in neighbours.distances(queries, points):
        assert apart.dtype == torch.float32
        found[row : row + len(apart), column : column + apart.shape[1]] = apart
    np.testing.assert_allclose(found, pairwise_distances(queries.double(), points.double()), rtol=1e-6)


def test_a_copy_is_at_no_distance_and_a_point_is_not_its_own_neighbour(rows):
    points = drawn(40, 0)
    points[7] = points[31]
    far, which = neighbours.nearest(points[[3, 7]], points, 1)
    assert far[0, 0] == 0 and which[0, 0] == 3 and far[1, 0] == 0
    far, which = neighbours.nearest(points, points, 1, others=True)
    assert far[7, 0] == far[31, 0] == 0 and which[7, 0] == 31 and which[31, 0] == 7
    assert (far[:, 0] > 0).sum() == 38


def test_the_upper_blocks_hold_each_pair_once_or_twice(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 16)
    points = drawn(40, 0)
    whole = sum(float(each.sum()) for _, _, each in neighbours.squares(points, points))
    upper = sum(
        float(each.sum()) * (2 if column > row else 1)
        for row, column, each in neighbours.squares(points, points, upper=True)
    )
    assert upper == pytest.approx(whole, rel=1e-12)
