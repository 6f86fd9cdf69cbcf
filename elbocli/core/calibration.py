"""The worth of a classifier's probabilities: accuracy with an interval, and how often it is right when it says so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Images of which the likeliest class has a probability from low to high: how many, its mean, and the share that it is right
    of.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[Reliability]:
    """The table of all bins that hold images. confidence: [N] in [0, 1]; right: [N] of bool."""
    cell = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for k in np.unique(cell):
        own = cell == k
        rows.append(
            Reliability(
                k / bins, (k + 1) / bins, int(own.sum()), float(confidence[own].mean()), float(right[own].mean())
            )
        )
    return rows


def calibration_error(table: list[Reliability]) -> float:
    """ECE: the mean of |accuracy − confidence| over images. Source: Naeini et al. 2015; Guo et al. 2017."""
    count = sum(row.count for row in table)
    return sum(row.count * abs(row.accuracy - row.confidence) for row in table) / count
