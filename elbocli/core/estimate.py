"""Numbers with standard errors, the moments of features that they come from, the calibration of probabilities, and the
Fréchet distance of two Gaussians: |μ₁−μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½ (Dowson & Landau 1982; Heusel et al. 2017: FID).

The error of a Fréchet distance from n samples is its standard error, and what it would be of infinitely many. The reference
is taken as it is; samples are independent draws.
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

NORMAL_95 = 1.959963984540054
"""Standard errors on each side that hold a normal number 95 times in 100."""


def error_of_share(right: int, n: int) -> tuple[float, list[float]]:
    """The standard error of a share of n independent trials, and the ends of Wilson's interval that holds the true one 95
    times in 100, which has a width even where all trials went one way.
    """
    from scipy.stats import binomtest

    share = right / n
    return math.sqrt(share * (1 - share) / n), list(binomtest(right, n).proportion_ci(method="wilson"))


@dataclass(frozen=True)
class Estimate:
    """value; se: its standard error, None where it isn't known; freedom: the degrees of freedom of se, inf where it is exact."""

    value: float
    se: float | None = None
    freedom: float = math.inf

    @classmethod
    def of_repeats(cls, values: Sequence[float]) -> Estimate:
        """The mean of independent values, two at least."""
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return cls(float(np.mean(values)), error, len(values) - 1)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the interval that holds the true number 95 times in 100, by Student's t; None without a standard error."""
        if self.se is None:
            return None
        if math.isinf(self.freedom):
            half = NORMAL_95 * self.se
        else:
            from scipy.special import stdtrit

            half = float(stdtrit(self.freedom, 0.975)) * self.se
        return self.value - half, self.value + half

    def minus(self, other: Estimate) -> Estimate:
        """The difference to an independent one. Its degrees of freedom are Welch's (1947), by Satterthwaite."""
        value = self.value - other.value
        if self.se is None or other.se is None:
            return Estimate(value)
        mine, theirs = self.se**2, other.se**2
        shares = [part**2 / freedom for part, freedom in ((mine, self.freedom), (theirs, other.freedom)) if part]
        doubt = sum(shares)  # 0 where both are exact: x / inf
        return Estimate(value, math.sqrt(mine + theirs), (mine + theirs) ** 2 / doubt if doubt else math.inf)


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


class PairedMoments:
    """Sums over images of two independent estimates of the same vector.

    Half their difference gives an unbiased estimate of the noise's variance, even if the draws within one estimate
    depend on each other. The rest of their mean's variance is the variance between images.
    """

    def __init__(self) -> None:
        self._means, self._noise, self._least = StreamingFeatureMoments(), 0.0, 0.0

    def add(self, pairs: Tensor, squares: Tensor | None = None) -> None:
        """pairs: [images, 2, C] float64. squares: alike, the mean square of each estimate where theory knows it and a
        sample may miss it: the noise is taken to be no less.
        """
        values = pairs.numpy()
        self._means.add(values.mean(1))
        half = 0.5 * (values[:, 0] - values[:, 1])
        self._noise = self._noise + half.T @ half
        if squares is not None:
            self._least = self._least + 0.25 * squares.numpy().sum((0, 1))

    @property
    def n(self) -> int:
        """Images so far."""
        return self._means.n

    def estimate(self) -> PairedEstimate:
        """Estimate from the images so far. Raises UsageError where there are fewer than two."""
        if self.n < 2:
            raise UsageError("a standard error needs at least two images")
        means = self._means.moments()
        noise = np.asarray(self._noise) / self.n
        lacking = np.maximum(np.asarray(self._least) / self.n - noise.diagonal(), 0)
        return PairedEstimate(self.n, means.mu, means.sigma - noise, noise + np.diag(lacking))


@dataclass(frozen=True)
class PairedEstimate:
    """mean [C] over n images; between, noise: [C, C] covariance of one image's true value, and of its estimate."""

    n: int
    mean: np.ndarray
    between: np.ndarray
    noise: np.ndarray

    @staticmethod
    def pooled(rounds: list[PairedEstimate]) -> PairedEstimate:
        """Several rounds of draws on the same images."""
        mean, between, noise = (
            np.mean([getattr(e, key) for e in rounds], axis=0) for key in ("mean", "between", "noise")
        )
        return PairedEstimate(rounds[0].n, mean, between, noise / len(rounds))

    def value(self, of: np.ndarray) -> float:
        """The mean of a linear combination of the components. of: [C]."""
        return float(self.mean @ of)

    def noise_se(self, of: np.ndarray) -> float:
        """Standard error from the noise alone: how far another seed lies, on the same images."""
        return float(np.sqrt(of @ self.noise @ of / self.n))

    def se(self, of: np.ndarray, population: float) -> float:
        """Standard error of the mean over a population of that many images (inf: of their distribution).

        Images are drawn without replacement: when all were, their choice adds nothing. Source: Cochran 1977,
        Sampling Techniques, eq. 2.20.
        """
        chosen = max(0.0, float(of @ self.between @ of)) * (1 - self.n / population)
        return float(np.sqrt((chosen + of @ self.noise @ of) / self.n))


LARGEST_FREEDOM = 1e6


def image_errors(halves: np.ndarray) -> np.ndarray:
    """Standard errors [N] of the mean of each image's two independent estimates. halves: [N, 2].

    Half the difference of two numbers says little of their spread. So it is taken together with what all images say:
    the variances are thought of as drawn from an inverse χ² distribution, which is fitted to them, and each becomes its
    mean given the image's own difference. Source: Smyth 2004, Linear models and empirical Bayes methods, eq. 4 to 7.
    """
    from scipy.optimize import brentq  # only what estimates image by image needs it
    from scipy.special import digamma, polygamma

    own = 0.25 * np.square(halves[:, 0] - halves[:, 1])
    known = np.log(own[own > 0])
    spread = float(known.var(ddof=1) - polygamma(1, 0.5)) if len(known) > 2 else 0.0
    if spread <= polygamma(1, LARGEST_FREEDOM / 2):
        return np.sqrt(np.full(len(own), own.mean() if len(own) else 0.0))
    freedom = 2 * brentq(lambda half: polygamma(1, half) - spread, 1e-6, LARGEST_FREEDOM / 2)
    usual = np.exp(known.mean() - digamma(0.5) + digamma(freedom / 2) + np.log(1 / freedom))
    return np.sqrt((freedom * usual + own) / (freedom + 1))


BINS = 10


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """The table of all bins that hold images. confidence: [N] in [0, 1]; right: [N] of bool.

    Each row is of images whose likeliest class has a probability from low to high: their count, the mean of that
    probability, and the share that it is right of.
    """
    cell = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = []
    for k in np.unique(cell):
        own = cell == k
        means = {"confidence": float(confidence[own].mean()), "accuracy": float(right[own].mean())}
        rows.append({"low": k / BINS, "high": (k + 1) / BINS, "count": int(own.sum()), **means})
    return rows


def calibration_error(table: list[dict[str, float]]) -> float:
    """ECE: the mean of |accuracy − confidence| over images. Source: Naeini et al. 2015; Guo et al. 2017."""
    count = sum(row["count"] for row in table)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / count


class Gaussian(Protocol):
    """A mean [D] and a covariance [D, D], float64."""

    @property
    def mu(self) -> np.ndarray: ...

    @property
    def sigma(self) -> np.ndarray: ...


def root(sigma: np.ndarray) -> np.ndarray:
    """A [D, rank] with A Aᵀ = sigma, by Cholesky's decomposition with pivots, which ends where sigma's rank does.

    So covariances of fewer images than features need no case of their own, and their null space adds no √(rounding error).
    """
    from scipy.linalg.lapack import dpstrf

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
