"""Estimates with standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from elbocli.core.moments import StreamingFeatureMoments
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

NORMAL_95 = 1.959963984540054  # half-width of a normal distribution's 95 % interval, in standard deviations


def error_of_share(right: int, n: int) -> tuple[float, list[float]]:
    """Return the proportion's standard error and 95 % interval [low, high] (Wilson 1927). right: successes in n trials."""
    share = right / n
    z = NORMAL_95
    middle = (right + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(n * share * (1 - share) + z**2 / 4)
    return math.sqrt(share * (1 - share) / n), [max(middle - half, 0.0), min(middle + half, 1.0)]


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
        mine = self.se**2
        theirs = other.se**2
        shares = [part**2 / freedom for part, freedom in ((mine, self.freedom), (theirs, other.freedom)) if part]
        doubt = sum(shares)  # 0 if both standard errors are exact, as x / inf is 0
        return Estimate(value, math.sqrt(mine + theirs), (mine + theirs) ** 2 / doubt if doubt else math.inf)


class PairedMoments:
    """Accumulator for a PairedEstimate. Each image gives two independent, noisy vectors."""

    def __init__(self) -> None:
        self._means = StreamingFeatureMoments()
        self._noise = 0.0

    def add(self, pairs: Tensor) -> None:
        """Add images. pairs: two vectors per image, [images, 2, C], float64."""
        values = pairs.numpy()
        self._means.add(values.mean(1))
        half = 0.5 * (values[:, 0] - values[:, 1])
        self._noise += half.T @ half

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
        return PairedEstimate(self.n, means.mu, means.sigma - noise, noise)


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
