"""Mean and covariance of feature vectors: those of parts give those of the whole, in memory that doesn't grow with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FeatureMoments:
    """Moments of n vectors: their mean [D] and the sum of outer products about it [D, D], float64.

    Those of two sets add up to those of both, and a part can be taken out again.
    """

    n: int
    mu: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureMoments:
        """features: [N, D], N > 0."""
        features = features.astype(np.float64)
        mu = features.mean(0)
        features -= mu
        return cls(len(features), mu, features.T @ features)

    @property
    def sigma(self) -> np.ndarray:
        """The covariance over n − 1 [D, D]. Needs two vectors."""
        return self.scatter / (self.n - 1)

    def __add__(self, other: FeatureMoments) -> FeatureMoments:
        n, apart = self.n + other.n, other.mu - self.mu
        between = np.outer(apart, apart * (self.n * other.n / n))
        return FeatureMoments(n, self.mu + apart * (other.n / n), self.scatter + other.scatter + between)

    def __sub__(self, part: FeatureMoments) -> FeatureMoments:
        n = self.n - part.n
        mu = self.mu + (self.mu - part.mu) * (part.n / n)
        apart = part.mu - mu
        between = np.outer(apart, apart * (n * part.n / self.n))
        return FeatureMoments(n, mu, self.scatter - part.scatter - between)


class StreamingFeatureMoments:
    """Sums of features and their outer products about the first batch's mean, float64.

    About that mean, not zero, so that nothing cancels when features are far from the origin. Outer products are added
    up ROWS vectors at a time: one for each batch would take longer than a fast device takes for the batch.
    """

    ROWS = 1024

    def __init__(self) -> None:
        self.n = 0
        self._waiting: list[np.ndarray] = []

    def add(self, features: np.ndarray) -> None:
        """features: [B, D]."""
        features = features.astype(np.float64)
        if self.n == 0:
            self._origin = features.mean(0)
            self._sum = np.zeros(features.shape[1])
            self._outer = np.zeros((features.shape[1],) * 2)
        self.n += len(features)
        self._waiting.append(features - self._origin)
        if sum(map(len, self._waiting)) >= self.ROWS:
            self._take()

    def _take(self) -> None:
        centred = np.concatenate(self._waiting)
        self._sum += centred.sum(0)
        self._outer += centred.T @ centred
        self._waiting = []

    def moments(self) -> FeatureMoments:
        """Moments of all vectors so far. Needs one."""
        if self._waiting:
            self._take()
        mean = self._sum / self.n
        return FeatureMoments(self.n, self._origin + mean, self._outer - self.n * np.outer(mean, mean))
