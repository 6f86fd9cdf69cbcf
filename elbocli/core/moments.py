"""Number, mean and scatter matrix of vectors, added up over batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FeatureMoments:
    """Number, mean and scatter matrix of feature vectors x, float64.

    mu: [D]. scatter: Σ (x − mu)(x − mu)ᵀ, [D, D].
    a + b: moments of a union of sets; NOTHING + b is b.
    """

    n: int
    mu: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureMoments:
        """Return the moments of features [N, D], N > 0."""
        features = features.astype(np.float64)
        mu = features.mean(0)
        features -= mu
        return cls(len(features), mu, features.T @ features)

    @property
    def sigma(self) -> np.ndarray:
        """Unbiased covariance, [D, D], for n ≥ 2."""
        return self.scatter / (self.n - 1)

    def __add__(self, other: FeatureMoments) -> FeatureMoments:
        n = self.n + other.n
        apart = other.mu - self.mu
        between = np.outer(apart, apart * (self.n * other.n / n))
        return FeatureMoments(n, self.mu + apart * (other.n / n), self.scatter + other.scatter + between)


NOTHING = FeatureMoments(0, np.zeros(1), np.zeros(1))  # of no vectors


class StreamingFeatureMoments:
    """Accumulator of FeatureMoments over batches."""

    ROWS = 4096  # vectors per sum: one sum per batch would take longer than a fast device needs for the batch

    def __init__(self) -> None:
        self.n = 0
        self._sum = NOTHING
        self._waiting: list[np.ndarray] = []

    def add(self, features: np.ndarray) -> None:
        """Add features [B, D]."""
        self.n += len(features)
        self._waiting.append(features)
        if sum(map(len, self._waiting)) >= self.ROWS:
            self.moments()

    def moments(self) -> FeatureMoments:
        """Return mean and covariance of all features that were added."""
        if self._waiting:
            self._sum += FeatureMoments.of(np.concatenate(self._waiting))
            self._waiting = []
        return self._sum
