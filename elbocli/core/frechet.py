"""The Fréchet distance of two Gaussians: |μ₁−μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½.

Source: Dowson & Landau 1982; Heusel et al. 2017, for features of images (FID).

The error of a Fréchet distance from n samples: its standard error, and what it would be of infinitely many.

The reference is taken as it is. Samples are independent draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.linalg.lapack import dpstrf

from elbocli.core.estimate import FeatureMoments


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


PARTS = 10
"""Into which the samples are dealt to extrapolate; even, as they make up two halves, too."""
ROWS = 4096


def influence(features: np.ndarray, own: Gaussian, reference: Gaussian) -> np.ndarray:
    """The amount by which each of the features [N, D] moves the distance of them all, times N: [N], zero on average.

    The derivative of the distance with respect to an image's weight. With c = x − μ, and T the optimal map between the
    two Gaussians, Σᵣ^½ (Σᵣ^½ Σ Σᵣ^½)^−½ Σᵣ^½: 2 c·(μ − μᵣ) + cᵀ(1 − T)c less its mean. T is never formed: cᵀTc is
    Σₖ yₖ²/√mₖ over the eigenvectors and eigenvalues m of AᵀΣA, A the root of Σᵣ, on the range of Σ.
    own: the moments of the features.
    """
    factor = root(reference.sigma)
    values, vectors = np.linalg.eigh(factor.T @ own.sigma @ factor)
    whole = values > len(values) * np.finfo(np.float64).eps * values.max(initial=0)
    across = factor @ (vectors[:, whole] * values[whole] ** -0.25)
    toward = 2 * (own.mu - reference.mu)
    found = np.empty(len(features))
    for start in range(0, len(features), ROWS):
        c = features[start : start + ROWS] - own.mu
        found[start : start + ROWS] = c @ toward + np.square(c).sum(1) - np.square(c @ across).sum(1)
    return found - found.mean()


def standard_error(features: np.ndarray, own: Gaussian, reference: Gaussian) -> float:
    """The standard error of the distance of the features [N, D] from the reference, by the infinitesimal jackknife.

    That is where the bootstrap's standard error tends with the number of its resamples, in closed form.
    It is of the spread alone: the distance's bias, which falls as 1/N, is often larger.
    Source: Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, ch. 6.
    """
    return float(np.sqrt(influence(features, own, reference).var(ddof=1) / len(features)))


def extrapolate(parts: Sequence[FeatureMoments], reference: Gaussian) -> tuple[float, float]:
    """The distance of infinitely many samples, from the moments of PARTS equal parts of them, dealt at random, and the
    curvature: how much of it is in doubt for not being linear.

    The bias of the distance is a/N + b/N² + …. The line in 1/N through the distance of all and the mean distance of all
    but a part leaves −b g/(g−1) /N² of it (g parts: the jackknife's estimate); that through the halves −2b/N². The second
    less the first, times 1/(2(g−1)/g − 1), is therefore what the first has left, as far as b says: the curvature. The
    images' own spread cancels in both, as all of them count alike. Source: Chong & Forsyth 2020 (arXiv:1911.07023) for
    the line; Quenouille 1956 for the two points.
    """
    whole = sum(parts[1:], parts[0])
    middle = len(parts) // 2
    half = sum(parts[1:middle], parts[0])
    at_all = frechet_distance(whole, reference)

    def line(without: Sequence[FeatureMoments]) -> float:
        groups = len(without)
        less = [frechet_distance(whole - part, reference) for part in without]
        return groups * at_all - (groups - 1) * float(np.mean(less))

    value, halves = line(parts), line([half, whole - half])
    groups = len(parts)
    return value, abs(halves - value) / (2 * (groups - 1) / groups - 1)
