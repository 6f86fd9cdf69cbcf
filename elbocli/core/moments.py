"""Mean and covariance of a stream of feature vectors, in memory that doesn't grow with it; Fréchet distance."""

from __future__ import annotations

import numpy as np


class StreamingMoments:
    """Sums of features and their outer products about the first batch's mean, float64.

    About that mean, not zero, so that nothing cancels when features are far from the origin.
    """

    def __init__(self) -> None:
        self.n = 0

    def add(self, features: np.ndarray) -> None:
        """features: [B, D]."""
        features = features.astype(np.float64)
        if self.n == 0:
            self._origin = features.mean(0)
            self._sum = np.zeros(features.shape[1])
            self._outer = np.zeros((features.shape[1],) * 2)
        centred = features - self._origin
        self.n += len(features)
        self._sum += centred.sum(0)
        self._outer += centred.T @ centred

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """(mu [D], sigma [D, D]), the covariance over n − 1. Needs two vectors."""
        mean = self._sum / self.n
        return self._origin + mean, (self._outer - self.n * np.outer(mean, mean)) / (self.n - 1)
