"""k-means: centres such that the squared distances of vectors to the nearest of them are small."""

from __future__ import annotations

import numpy as np

from elbocli.core.streams import Stream

STARTS, STEPS = 10, 100


def nearest_centre(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the centre nearest to each of the vectors [N, D], and the squared distance of it: [N] each."""
    squares = np.square(vectors).sum(1)[:, None] - 2 * vectors @ centres.T + np.square(centres).sum(1)
    squares = squares.clip(0)  # rounding may leave a little less
    index = squares.argmin(1)
    return index, squares[np.arange(len(vectors)), index]


def kmeans(vectors: np.ndarray, k: int, stream: Stream) -> np.ndarray:
    """Centres [k, D] of the vectors [N, D], N ≥ k: the best of STARTS descents.

    Each begins at vectors drawn with a chance that grows with their squared distance from those before. Source: Lloyd
    1982; Arthur & Vassilvitskii 2007 (k-means++).
    """
    found, least = vectors[:k], np.inf
    for start in range(STARTS):
        generator = stream.at(start)
        centres = vectors[[generator.integers(len(vectors))]]
        while len(centres) < k:
            chance = nearest_centre(vectors, centres)[1]
            even = np.full(len(vectors), 1 / len(vectors))
            drawn = generator.choice(len(vectors), p=chance / chance.sum() if chance.sum() else even)
            centres = np.concatenate([centres, vectors[drawn][None]])
        index, squares = nearest_centre(vectors, centres)
        for _ in range(STEPS):
            held = np.unique(index)
            centres[held] = [vectors[index == each].mean(0) for each in held]
            before, (index, squares) = index, nearest_centre(vectors, centres)
            if (index == before).all():
                break
        if squares.sum() < least:
            found, least = centres, squares.sum()
    return found
