"""Means over images of vectors that were estimated several times for each image, with their covariances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from elbocli.core.moments import StreamingFeatureMoments
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


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
