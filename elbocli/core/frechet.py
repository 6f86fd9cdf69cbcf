"""The Fréchet distance of two Gaussians: |μ₁−μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½.

Source: Dowson & Landau 1982; Heusel et al. 2017, for features of images (FID).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.linalg.lapack import dpstrf


class Gaussian(Protocol):
    """A mean [D] and a covariance [D, D], float64."""

    @property
    def mu(self) -> np.ndarray:
        """The mean."""
        ...

    @property
    def sigma(self) -> np.ndarray:
        """The covariance."""
        ...


def root(sigma: np.ndarray) -> np.ndarray:
    """A [D, rank] with A Aᵀ = sigma, by Cholesky's decomposition with pivots, which ends where sigma's rank does.

    So covariances of fewer images than features need no case of their own, and their null space adds no √(rounding error).
    """
    tolerance = len(sigma) * np.finfo(np.float64).eps * max(float(sigma.diagonal().max()), 0.0)
    packed, pivots, rank, _ = dpstrf(sigma, lower=1, tol=tolerance)
    factor = np.empty((len(sigma), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    return factor


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The distance of two Gaussians of the same dimension. Zero up to rounding, perhaps below, when they are the same.

    tr (Σ₁Σ₂)^½ is the sum of the singular values of A₂ᵀA₁, whose squares are the eigenvalues of the smaller Gram matrix.
    """
    cross = root(first.sigma).T @ root(second.sigma)
    gram = cross @ cross.T if cross.shape[0] <= cross.shape[1] else cross.T @ cross
    shared = float(np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum())
    apart = first.mu - second.mu
    traces = np.trace(first.sigma) + np.trace(second.sigma)
    return float(apart @ apart + traces - 2 * shared)
