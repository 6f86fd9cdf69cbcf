"""The Fréchet distance of two Gaussians.

Fréchet distance: |μ₁−μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½.
Source: Dowson & Landau 1982; Heusel et al. 2017 (FID).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


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
