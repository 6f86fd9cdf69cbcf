"""Standard errors of estimates, tests of class frequencies, calibration, and the Fréchet distance of two Gaussians.

Fréchet distance: |μ₁−μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½.
Source: Dowson & Landau 1982; Heusel et al. 2017 (FID).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

NORMAL_95 = 1.959963984540054  # half-width of a normal distribution's 95 % interval, in standard deviations


def error_of_share(right: int, n: int) -> tuple[float, list[float]]:
    """Return the standard error of the proportion right/n, and Wilson's 95 % interval [low, high]."""
    from scipy.stats import binomtest

    share = right / n
    return math.sqrt(share * (1 - share) / n), list(binomtest(right, n).proportion_ci(method="wilson"))


LEAST_EXPECTED = 5  # images expected in each cell of a chi-square test of two samples; Cochran 1954


def p_of_uniform(counts: np.ndarray) -> float:
    """Return the p-value of Pearson's chi-square test that classes are equally frequent. counts: images of each class, [K]."""
    from scipy.stats import chisquare

    return float(chisquare(counts).pvalue) if len(counts) > 1 else 1.0


def p_of_equal_shares(first: np.ndarray, second: np.ndarray) -> float:
    """Return the p-value of Pearson's chi-square test that two independent samples have equal proportions of classes.

    first, second: number of images of each class, [K]. Rare classes are pooled, so that LEAST_EXPECTED images are expected in
    each cell: else one image of a rare class could make any p-value.
    """
    from scipy.stats import chi2_contingency

    table = np.stack([first, second])
    table = table[:, np.argsort(table.sum(0), kind="stable")]
    expected = table.sum(0) * (table.sum(1).min() / table.sum())
    starts, held = [0], 0.0
    for place, images in enumerate(expected):
        if held >= LEAST_EXPECTED:
            starts.append(place)
            held = 0.0
        held += images
    if held < LEAST_EXPECTED and len(starts) > 1:
        starts.pop()
    cells = np.add.reduceat(table, starts, axis=1)
    return float(chi2_contingency(cells, correction=False).pvalue) if len(starts) > 1 else 1.0


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Return the standard error of the mean of two or more independent values, [N]."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


@dataclass(frozen=True)
class Estimate:
    """Value with its standard error.

    se: None if unknown.
    freedom: degrees of freedom of `se`; inf: `se` is exact.
    """

    value: float
    se: float | None = None
    freedom: float = math.inf

    @classmethod
    def of_repeats(cls, values: Sequence[float]) -> Estimate:
        """Return mean and standard error of two or more independent values."""
        return cls(float(np.mean(values)), standard_error(values), len(values) - 1)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval (low, high) by Student's t; None if `se` is None."""
        if self.se is None:
            return None
        if math.isinf(self.freedom):
            half = NORMAL_95 * self.se
        else:
            from scipy.special import stdtrit

            half = float(stdtrit(self.freedom, 0.975)) * self.se
        return self.value - half, self.value + half

    def minus(self, other: Estimate) -> Estimate:
        """Subtract an independent estimate; degrees of freedom by Welch 1947."""
        value = self.value - other.value
        if self.se is None or other.se is None:
            return Estimate(value)
        mine, theirs = self.se**2, other.se**2
        shares = [part**2 / freedom for part, freedom in ((mine, self.freedom), (theirs, other.freedom)) if part]
        doubt = sum(shares)  # 0 if both standard errors are exact, as x / inf is 0
        return Estimate(value, math.sqrt(mine + theirs), (mine + theirs) ** 2 / doubt if doubt else math.inf)


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
        n, apart = self.n + other.n, other.mu - self.mu
        between = np.outer(apart, apart * (self.n * other.n / n))
        return FeatureMoments(n, self.mu + apart * (other.n / n), self.scatter + other.scatter + between)


NOTHING = FeatureMoments(0, np.zeros(1), np.zeros(1))  # of no vectors


class StreamingFeatureMoments:
    """Accumulator of FeatureMoments over batches."""

    ROWS = 4096  # vectors per sum: one sum per batch would take longer than a fast device needs for the batch

    def __init__(self) -> None:
        self.n, self._sum = 0, NOTHING
        self._waiting: list[np.ndarray] = []

    def add(self, features: np.ndarray) -> None:
        """Add features [B, D]."""
        self.n += len(features)
        self._waiting.append(features)
        if sum(map(len, self._waiting)) >= self.ROWS:
            self.moments()

    def moments(self) -> FeatureMoments:
        """Return the moments of all features added."""
        if self._waiting:
            self._sum += FeatureMoments.of(np.concatenate(self._waiting))
            self._waiting = []
        return self._sum


class PairedMoments:
    """Accumulator for a PairedEstimate. Each image gives two independent, noisy vectors."""

    def __init__(self) -> None:
        self._means, self._noise, self._least = StreamingFeatureMoments(), 0.0, 0.0

    def add(self, pairs: Tensor, squares: Tensor | None = None) -> None:
        """Add images.

        pairs: two vectors per image, [images, 2, C], float64.
        squares: noise variances of the vectors, [images, 2, C]; their mean replaces a smaller estimate from `pairs`. None: never.
        """
        values = pairs.numpy()
        self._means.add(values.mean(1))
        half = 0.5 * (values[:, 0] - values[:, 1])
        self._noise += half.T @ half
        if squares is not None:
            self._least += 0.25 * squares.numpy().sum((0, 1))

    @property
    def n(self) -> int:
        return self._means.n

    def estimate(self) -> PairedEstimate:
        """Return the estimate so far. Raises UsageError for fewer than two images."""
        if self.n < 2:
            raise UsageError(f"a standard error needs at least two images, found {self.n}; give more images")
        # Half the difference of a pair estimates the noise variance without bias, even if an estimate's draws are dependent.
        means = self._means.moments()
        noise = np.asarray(self._noise) / self.n
        lacking = np.maximum(self._least / self.n - noise.diagonal(), 0)
        return PairedEstimate(self.n, means.mu, means.sigma - noise, noise + np.diag(lacking))


@dataclass(frozen=True)
class PairedEstimate:
    """Mean over n images of a vector that was estimated several times for each image.

    mean: [C].
    between: covariance of the images' true vectors, [C, C].
    noise: error covariance of an image's mean estimate, [C, C].
    """

    n: int
    mean: np.ndarray
    between: np.ndarray
    noise: np.ndarray

    @staticmethod
    def pooled(rounds: list[PairedEstimate]) -> PairedEstimate:
        """Average independent rounds of estimates on the same images."""
        mean, between, noise = (np.mean([getattr(e, key) for e in rounds], axis=0) for key in ("mean", "between", "noise"))
        return PairedEstimate(rounds[0].n, mean, between, noise / len(rounds))

    def value(self, of: np.ndarray) -> float:
        """Return the mean of the linear combination with coefficients `of`, [C]."""
        return float(self.mean @ of)

    def noise_se(self, of: np.ndarray) -> float:
        """Return the standard deviation of `value(of)` over seeds, for the same images."""
        return float(np.sqrt(of @ self.noise @ of / self.n))

    def se(self, of: np.ndarray, population: float) -> float:
        """Return the standard error of `value(of)` for a population of images.

        population: number of images that the n images were drawn from without replacement; inf: a distribution.
        Source: Cochran 1977, Sampling Techniques, eq. 2.20.
        """
        chosen = max(0.0, float(of @ self.between @ of)) * (1 - self.n / population)
        return float(np.sqrt((chosen + of @ self.noise @ of) / self.n))


LARGEST_FREEDOM = 1e6


def image_errors(halves: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean of each row of `halves`, [N].

    halves: two independent estimates per image, [N, 2].
    Source: Smyth 2004, Linear models and empirical Bayes methods, eq. 4 to 7.
    """
    from scipy.optimize import brentq  # imported here because only estimates per image need it
    from scipy.special import digamma, polygamma

    # Two numbers give a poor estimate of their variance, so the variances of all images are shrunk by empirical Bayes.
    own = 0.25 * np.square(halves[:, 0] - halves[:, 1])
    known = np.log(own[own > 0])
    spread = float(known.var(ddof=1) - polygamma(1, 0.5)) if len(known) > 2 else 0.0
    if spread <= polygamma(1, LARGEST_FREEDOM / 2):
        return np.sqrt(np.full(len(own), own.mean()))
    freedom = 2 * brentq(lambda half: polygamma(1, half) - spread, 1e-6, LARGEST_FREEDOM / 2)
    usual = np.exp(known.mean() - digamma(0.5) + digamma(freedom / 2) + np.log(1 / freedom))
    return np.sqrt((freedom * usual + own) / (freedom + 1))


BINS = 10


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Return the reliability table, one row per non-empty bin of confidence.

    confidence: probability of the most likely class, [N].
    right: whether the most likely class is correct, bool [N].
    Returns: rows with the bin's limits, count of images, mean confidence, and accuracy.
    """
    cell = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = []
    for k in np.unique(cell):
        own = cell == k
        means = {"confidence": float(confidence[own].mean()), "accuracy": float(right[own].mean())}
        rows.append({"low": k / BINS, "high": (k + 1) / BINS, "count": int(own.sum()), **means})
    return rows


def calibration_error(table: list[dict[str, float]]) -> float:
    """Return the expected calibration error (ECE) of a table from `reliability`.

    Source: Naeini et al. 2015; Guo et al. 2017.
    """
    count = sum(row["count"] for row in table)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / count


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


PARTS = 10  # equal subsets of the samples in `extrapolate`; even, so that they also form two halves


def extrapolate(parts: Sequence[FeatureMoments], reference: Gaussian) -> tuple[float, float]:
    """Return the Fréchet distance for infinitely many samples, and an estimate, ≥ 0, of the distance's remaining bias.

    parts: moments of an even number of random, equally large subsets of the samples.
    Source: Chong & Forsyth 2020 (arXiv:1911.07023), line in 1/N; Quenouille 1956, jackknife.
    """
    # The bias of the distance is a/N + b/N² + …. With g parts, the line in 1/N through the distance of all samples and the
    # mean distance of all but one part (the jackknife) leaves a bias of −b g/(g−1) /N²; the line through the halves leaves
    # −2b/N². So the first line's remaining bias is the difference of the two values divided by 2(g−1)/g − 1.
    groups, middle = len(parts), len(parts) // 2

    def at(some: Sequence[FeatureMoments]) -> float:
        return frechet_distance(sum(some, NOTHING), reference)

    whole = at(parts)
    less = float(np.mean([at([*parts[:k], *parts[k + 1 :]]) for k in range(groups)]))
    value = groups * whole - (groups - 1) * less
    halves = 2 * whole - (at(parts[:middle]) + at(parts[middle:])) / 2
    return value, abs(halves - value) / (2 * (groups - 1) / groups - 1)
