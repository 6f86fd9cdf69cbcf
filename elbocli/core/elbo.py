"""Terms of the variational bound, likelihood by the probability-flow ODE, and a Gaussian model of the data.

−log p(x) ≤ KL(q(z₁|x) ‖ N(0,I)) + E[−log p(x|z₀)] + ½ ∫ E‖ε−ε̂‖² dλ, all in nats, summed over dimensions.
Source: Kingma et al. 2021 (VDM), eq. 11 to 17; Kingma & Gao 2023, sec. 3 and appendix A.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from elbocli.core.prediction import alpha_sigma
from elbocli.core.schedule import cell_of
from elbocli.core.weighting import Weighting

LEVELS = 256
GRID = 1 << 14


def prior(x: Tensor, logsnr_min: float) -> Tensor:
    """Return KL(q(z₁|x) ‖ N(0,I)) of each example, [B], in nats.

    x: clean data, [B, …]. logsnr_min: λ of z₁.
    """
    # ½ Σ (α²x² + σ² − 1 − log σ²), with σ² − 1 = −α² and −log σ² = log(1 + e^λ)
    signal = alpha_sigma(logsnr_min)[0] ** 2
    square = x.double().square().flatten(1)
    return 0.5 * (signal * (square.sum(1) - square.shape[1]) + square.shape[1] * math.log1p(math.exp(logsnr_min)))


@lru_cache(maxsize=8)
def reconstruction(logsnr_max: float) -> Tensor:
    """Return E[−log p(k|z₀)] of each pixel level k, [LEVELS], in nats per dimension.

    logsnr_max: λ of z₀.
    Decoder: p(k|z₀) ∝ exp(−(z₀/α − x_k)² e^λ / 2), with the levels x_k = 2k/(LEVELS−1) − 1.
    Source: Kingma et al. 2021, sec. 3.3.
    """
    # z₀/α = x_k + e^{−λ/2} ε; the expectation over ε is a Gauss-Legendre quadrature on [−9, 9].
    node, share = np.polynomial.legendre.leggauss(8)
    edges = np.linspace(-9, 9, 97)
    half = np.diff(edges)[:, None] / 2
    eps = torch.from_numpy((edges[:-1, None] + half + half * node).ravel())
    chance = torch.from_numpy((half * share).ravel()) * (-0.5 * eps.square()).exp() / math.sqrt(2 * math.pi)
    step = 2 / (LEVELS - 1) * math.exp(logsnr_max / 2)
    other = torch.arange(LEVELS, dtype=torch.float64)
    found = torch.empty(LEVELS, dtype=torch.float64)
    for k in range((LEVELS + 1) // 2):
        log_sum = torch.logsumexp(-0.5 * ((k - other) * step + eps[:, None]).square(), 1)
        found[k] = found[LEVELS - 1 - k] = (chance * (log_sum + 0.5 * eps.square())).sum()
    return found


def reconstruction_of_numbers(logsnr_max: float) -> float:
    """Return E[−log p(x|z₀)] of a continuous dimension: ½ log(2πe·e^{−λ}) nats.

    logsnr_max: λ of z₀. Decoder: N(z₀/α, σ²/α²).
    Source: Kingma et al. 2021, sec. 3.3, without discretisation.
    """
    return 0.5 * (math.log(2 * math.pi * math.e) - logsnr_max)


def bits_per_dimension(nats: float, dimensions: int) -> float:
    """Convert nats of a whole example to bits per dimension."""
    return nats / (dimensions * math.log(2))


def by_cell(values: Tensor, logsnr: Tensor, edges: Tensor) -> Tensor:
    """Return the sum of `values` in each bin of λ, [.., bins].

    values, logsnr: [.., K]. edges: [bins + 1].
    """
    found = torch.zeros(*values.shape[:-1], len(edges) - 1, dtype=values.dtype)
    return found.scatter_add_(-1, cell_of(logsnr, edges), values)


class Augmented:
    """The measure −dw(λ) on noise levels, by which bounds add up to the weighted loss L_w.

    L_w = −∫ L(λ;x) dw(λ) + w(λmax) L(λmax;x) − w(λmin) L(λmin;x), where L(λ;x) is the bound for data noised to λ.
    low, high: λmin and λmax.
    Source: Kingma & Gao 2023, theorem 1 and eq. 12.
    """

    def __init__(self, weighting: Weighting, low: float, high: float):
        self.levels = torch.linspace(low, high, GRID + 1, dtype=torch.float64)
        self.values = weighting(self.levels)
        self.largest = float(self.values.max())

    def above(self, logsnr: Tensor) -> Tensor:
        """Return w(λ) for each λ in `logsnr`: the measure above λ, and w(λmax)."""
        return torch.from_numpy(np.interp(logsnr, self.levels, self.values))


DIRECTIONS = 1024  # largest number of principal directions of a GaussianModel
ENTRIES = 1 << 24  # largest number of values (images × dimensions) in the fit of the Gaussian
LEAST = 1e-9  # least variance of a GaussianModel relative to the mean variance, for pixels that are constant
FLOOR = 1e-6  # least variance of a GaussianModel, for identical images: (1/8 of the step between pixel levels)²


@dataclass(frozen=True)
class GaussianModel:
    """Gaussian model of the data, with exact likelihood and denoising errors.

    mean: [D]. directions: principal directions, [D, K].
    variances: variance in each principal direction, [K]. rest: variance in each other direction.
    Source: Kong et al. 2023 (arXiv 2302.03792), for the Gaussian as a control variate.
    """

    # In each principal direction, with r = e^λ, variance s and deviation c of x from the mean,
    #   ε − ε̂ = (r s ε − √r c) / (1 + r s),   E = (r² s² + r c²) / (1 + r s)²,
    #   ½ ∫_{−∞}^λ E dλ = ½ (log(1 + r s) + r (c² − s) / (1 + r s)) = KL(q(z_λ|x) ‖ p(z_λ)).

    mean: Tensor
    directions: Tensor
    variances: Tensor
    rest: float

    @property
    def others(self) -> int:
        return self.directions.shape[0] - self.directions.shape[1]

    def upto(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """Return ½ ∫ E‖ε−ε̂‖² dλ from −∞ to each `logsnr`, [B, L], in nats.

        E: mean over ε. ε̂: of the exact denoiser. x: [B, …]. logsnr: [L].
        """
        square, beyond = self._squares(x)
        s = self.variances
        s0 = self.rest
        columns = []
        for r in logsnr.double().exp().tolist():
            own = (r * s).log1p() + r * (square - s) / (1 + r * s)
            other = self.others * math.log1p(r * s0) + r * (beyond - self.others * s0) / (1 + r * s0)
            columns.append(0.5 * (own.sum(1) + other))
        return torch.stack(columns, 1)

    def nats(self, x: Tensor) -> Tensor:
        """Return −log p(x), [B], in nats. x: [B, …]."""
        square, beyond = self._squares(x)
        size = self.variances.log().sum() + self.others * math.log(self.rest)
        away = (square / self.variances).sum(1) + beyond / self.rest
        return 0.5 * (len(self.mean) * math.log(2 * math.pi) + size + away)

    def errors(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the exact denoiser's ‖ε−ε̂‖², and its expectation over ε, [B] each.

        x, eps: [B, …], on one device. logsnr: [B].
        """
        ratio = logsnr.double().exp()[:, None]
        r, mean, turn, s = (each.to(x.device) for each in (ratio, self.mean, self.directions, self.variances))
        away = x.flatten(1) - mean
        noise = eps.double().flatten(1)
        c = away @ turn
        e = noise @ turn
        a = r * s / (1 + r * s)
        b = r.sqrt() / (1 + r * s)
        a0 = r * self.rest / (1 + r * self.rest)
        b0 = r.sqrt() / (1 + r * self.rest)
        error = a0 * noise - b0 * away + ((a - a0) * e - (b - b0) * c) @ turn.T
        expected = (a.square() + (b * c).square()).sum(1) + a0[:, 0] ** 2 * self.others
        expected += b0[:, 0] ** 2 * (away.square().sum(1) - c.square().sum(1))
        return error.square().sum(1).cpu(), expected.cpu()

    def _squares(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared deviations from the mean: in principal directions, [B, K]; summed over others, [B]."""
        away = x.double().flatten(1) - self.mean
        square = (away @ self.directions).square()
        return square, (away.square().sum(1) - square.sum(1)).clamp(min=0)


def rows_to_fit(count: int, dimensions: int) -> int:
    """Return how many of `count` images to fit the Gaussian to."""
    return min(count, 4096 if dimensions <= DIRECTIONS else 2048, max(2, ENTRIES // dimensions))


def fit_gaussian(x: Tensor) -> GaussianModel:
    """Fit a Gaussian to two or more images, [N, …], by Ledoit-Wolf shrinkage.

    Source: Ledoit & Wolf 2004, A well-conditioned estimator, lemma 3.3.
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
    kept = values[keep]
    vectors = vectors[:, keep]
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
