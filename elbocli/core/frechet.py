"""Moments of feature vectors, and the Fréchet distance of two Gaussians.

Fréchet distance: |μ₁−μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½.
Source: Dowson & Landau 1982; Heusel et al. 2017 (FID).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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


class Gaussian(Protocol):
    """Gaussian with mean `mu` [D] and covariance `sigma` [D, D], float64."""

    @property
    def mu(self) -> np.ndarray: ...

    @property
    def sigma(self) -> np.ndarray: ...


def root(sigma: np.ndarray) -> np.ndarray:
    """Return A [D, rank] with A Aᵀ = sigma."""
    from scipy.linalg.lapack import dpstrf

    # Pivoting stops at the rank of sigma, so a singular covariance (of fewer images than features) is no special case.
    tolerance = len(sigma) * np.finfo(np.float64).eps * max(float(sigma.diagonal().max()), 0.0)
    packed, pivots, rank, _ = dpstrf(sigma, lower=1, tol=tolerance)
    factor = np.empty((len(sigma), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    return factor


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Return the Fréchet distance of two Gaussians."""
    # With Σᵢ = AᵢAᵢᵀ, tr (Σ₁Σ₂)^½ is the sum of the singular values of A₁ᵀA₂: roots of the eigenvalues of a Gram matrix.
    cross = root(first.sigma).T @ root(second.sigma)
    gram = cross @ cross.T if cross.shape[0] <= cross.shape[1] else cross.T @ cross
    shared = float(np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum())
    apart = first.mu - second.mu
    traces = np.trace(first.sigma) + np.trace(second.sigma)
    return float(apart @ apart + traces - 2 * shared)
