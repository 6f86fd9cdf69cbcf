"""The Gaussian of the data's mean and covariance: its likelihood, and what its exact denoiser errs at every noise level.

In the coordinates of its directions all is one-dimensional. With r = e^λ, variance s and deviation c of x from the mean,
  ε − ε̂ = (r s ε − √r c) / (1 + r s),   E = (r² s² + r c²) / (1 + r s)²,
  ½ ∫_{−∞}^λ E dλ = ½ (log(1 + r s) + r (c² − s) / (1 + r s)) = KL(q(z_λ|x) ‖ p(z_λ)).
Source: derived here; the Gaussian as a control variate: Kong et al. 2023 (arXiv 2302.03792).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DIRECTIONS = 1024
"""The most directions that have variances of their own."""
ENTRIES = 1 << 24
"""Numbers of the data, at most, from which it is fitted."""
LEAST = 1e-9
"""Least variance, over the mean one: a constant pixel is no more certain than that."""
FLOOR = 1e-6
"""Least variance at all, a standard deviation of an eighth of the step between levels of pixels: images that are all alike have none."""


@dataclass(frozen=True)
class GaussianModel:
    """mean [D], directions [D, K] with variances [K], and the variance `rest` in all others; float64."""

    mean: Tensor
    directions: Tensor
    variances: Tensor
    rest: float

    @property
    def others(self) -> int:
        """Number of the other directions."""
        return self.directions.shape[0] - self.directions.shape[1]

    def upto(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """½ ∫_{−∞}^λ of the expected error of the Gaussian's denoiser at x, in nats. x: [B, …]; logsnr: [L] → [B, L]."""
        square, beyond = self._squares(x)
        s, s0, columns = self.variances, self.rest, []
        for r in logsnr.double().exp().tolist():
            own = (r * s).log1p() + r * (square - s) / (1 + r * s)
            other = self.others * math.log1p(r * s0) + r * (beyond - self.others * s0) / (1 + r * s0)
            columns.append(0.5 * (own.sum(1) + other))
        return torch.stack(columns, 1)

    def nats(self, x: Tensor) -> Tensor:
        """−log of the density at x [B, …], [B]."""
        square, beyond = self._squares(x)
        size = self.variances.log().sum() + self.others * math.log(self.rest)
        away = (square / self.variances).sum(1) + beyond / self.rest
        return 0.5 * (len(self.mean) * math.log(2 * math.pi) + size + away)

    def errors(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """‖ε−ε̂‖² of its denoiser, and the expectation over ε. x, eps: [B, …] on one device; logsnr: [B] → [B] each."""
        away = x.flatten(1) - self.mean.to(x)
        noise, turn = eps.flatten(1), self.directions.to(x)
        c, e = (away @ turn).double().cpu(), (noise @ turn).double().cpu()
        squares = torch.stack([(away * away).sum(1), (noise * noise).sum(1), (away * noise).sum(1)]).double().cpu()
        left = squares - torch.stack([(c * c).sum(1), (e * e).sum(1), (c * e).sum(1)])  # in the other directions
        r = logsnr.double().cpu().exp()[:, None]
        a, b = (r * self.variances / (1 + r * self.variances), r.sqrt() / (1 + r * self.variances))
        r0 = r[:, 0]
        a0, b0 = r0 * self.rest / (1 + r0 * self.rest), r0.sqrt() / (1 + r0 * self.rest)
        found = (a * e - b * c).square().sum(1) + a0**2 * left[1] - 2 * a0 * b0 * left[2] + b0**2 * left[0]
        expected = (a**2 + (b * c) ** 2).sum(1) + a0**2 * self.others + b0**2 * left[0]
        return found, expected

    def _squares(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """c² in each direction [B, K], and its sum over the others [B]."""
        away = x.double().flatten(1) - self.mean
        square = (away @ self.directions).square()
        return square, (away.square().sum(1) - square.sum(1)).clamp(min=0)


def rows_to_fit(count: int, dimensions: int) -> int:
    """Images, of `count`, that are enough to fit it at a bounded cost."""
    return min(count, 4096 if dimensions <= DIRECTIONS else 2048, max(2, ENTRIES // dimensions))


def fit_gaussian(x: Tensor) -> GaussianModel:
    """The Gaussian of images [N, …], two at least. Its covariance is drawn towards one of equal variances by as much as
    so few images call for. Source: Ledoit & Wolf 2004, A well-conditioned estimator, lemma 3.3.
    """
    data = x.double().flatten(1)
    count, dimensions = data.shape
    mean = data.mean(0)
    data = data - mean
    if dimensions <= count:
        values, vectors = torch.linalg.eigh(data.T @ data / count)
    else:
        values, left = torch.linalg.eigh(data @ data.T / count)
        vectors = data.T @ left / (values.clamp(min=1e-300) * count).sqrt()
    keep = (values > LEAST * values.sum().clamp(min=1e-30) / dimensions).nonzero()[:, 0].flip(0)[:DIRECTIONS]
    kept, vectors = values[keep], vectors[:, keep]
    usual = float(values.clamp(min=0).sum()) / dimensions
    square = float(values.square().sum())
    away = square / dimensions - usual**2
    noise = float(data.square().sum(1).square().sum() / count - square) / (count * dimensions)
    drawn = min(1.0, max(0.0, noise) / away) if away > 0 else 1.0
    others = dimensions - len(keep)
    left_over = max(0.0, usual * dimensions - float(kept.sum())) / others if others else 0.0
    least = max(LEAST * usual, FLOOR)
    shrunk = ((1 - drawn) * kept + drawn * usual).clamp(min=least)
    return GaussianModel(mean, vectors, shrunk, max(least, (1 - drawn) * left_over + drawn * usual))
