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


@pytest.mark.parametrize("dense", [1, 10**9])
@pytest.mark.parametrize("scale", [1, 1e-22, 1e18])
def test_all_pairs_within_reach_are_found_and_measured(rows, dense, scale, monkeypatch):
    """By blocks in float64 or pair by pair; also where squares leave float32."""
    monkeypatch.setattr(neighbours, "DENSE", dense)
    queries, points = drawn(37, 0) * scale, drawn(61, 1) * scale
    apart = torch.from_numpy(pairwise_distances(queries.double(), points.double())).float()
    reach, own = apart.quantile(0.2, 0), apart.quantile(0.1, 1)
    for mine in (None, own):
        wanted = apart <= reach if mine is None else (apart <= reach) | (apart <= own[:, None])
        found = torch.full((37, 61), torch.inf)
        for i, j, far in neighbours.within(queries, points, reach, mine):
            assert far.dtype == torch.float32 and torch.isinf(found[i, j]).all(), "each pair comes once"
            found[i, j] = far
        assert torch.isfinite(found[wanted]).all()
        np.testing.assert_allclose(found[found.isfinite()], apart[found.isfinite()], rtol=1e-6)


def test_among_many_copies_the_nearest_are_still_found(rows):
    """More of them than are kept, so that the bounds decide nothing."""
    points = drawn(4, 0).repeat(15, 1)
    points[::4] += torch.arange(15)[:, None] * 1e-6
    far, which = neighbours.nearest(points, points, 3, others=True)
    expected = NearestNeighbors(n_neighbors=3).fit(points.double()).kneighbors()[0]
    np.testing.assert_allclose(far, expected, rtol=1e-6, atol=1e-12)
    assert (which != torch.arange(60)[:, None]).all()


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
