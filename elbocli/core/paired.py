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
        """Estimate from the images so far, two at least."""
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
    if len(known) < 3:
        return np.sqrt(np.full(len(own), own.mean() if len(own) else 0.0))
    spread = float(known.var(ddof=1) - polygamma(1, 0.5))
    if spread <= polygamma(1, LARGEST_FREEDOM / 2):
        return np.sqrt(np.full(len(own), own.mean()))
    freedom = 2 * brentq(lambda half: polygamma(1, half) - spread, 1e-6, LARGEST_FREEDOM / 2)
    usual = np.exp(known.mean() - digamma(0.5) + digamma(freedom / 2) + np.log(1 / freedom))
    return np.sqrt((freedom * usual + own) / (freedom + 1))
