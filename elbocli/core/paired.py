"""A mean over images, each seen through noise, with the two errors it has: of the images and of the noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from elbocli.core.feature_moments import StreamingFeatureMoments


class PairedMoments:
    """Sums over images of two independent estimates of the same vector.

    Half their difference gives an unbiased estimate of the noise's variance, even if the draws within one estimate
    depend on each other. The rest of their mean's variance is the variance between images.
    """

    def __init__(self) -> None:
        self._means, self._noise = StreamingFeatureMoments(), 0.0

    def add(self, pairs: Tensor) -> None:
        """pairs: [images, 2, C] float64."""
        values = pairs.numpy()
        self._means.add(values.mean(1))
        half = 0.5 * (values[:, 0] - values[:, 1])
        self._noise = self._noise + half.T @ half

    @property
    def n(self) -> int:
        """Images so far."""
        return self._means.n

    def estimate(self) -> PairedEstimate:
        """Estimate from the images so far, two at least."""
        means = self._means.moments()
        noise = np.asarray(self._noise) / self.n
        return PairedEstimate(self.n, means.mu, means.sigma - noise, noise)


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
