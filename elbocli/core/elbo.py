"""The variational bound, term by term, and every weighted loss as a functional of the error at each λ.

−log p(x) ≤ KL(q(z₁|x) ‖ N(0,I)) + E[−log p(x|z₀)] + ½ ∫ E‖ε−ε̂‖² dλ, all in nats, summed over dimensions.
L(t;x) is the first term plus the integral up to λ_t: the bound for data with the noise of time t.
Source: Kingma et al. 2021 (VDM), eq. 11 to 17; Kingma & Gao 2023, sec. 3 and appendix A.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from elbocli.core.logsnr import alpha_sigma
from elbocli.core.schedule import cell_of
from elbocli.core.weighting import Weighting

LEVELS = 256
GRID = 1 << 14


def prior(x: Tensor, logsnr_min: float) -> Tensor:
    """KL(q(z₁|x) ‖ N(0,I)) per example, [B] nats. x: [B, …].

    ½ Σ (α²x² + σ² − 1 − log σ²), with σ² − 1 = −α² and −log σ² = log(1 + e^λ).
    """
    signal = alpha_sigma(logsnr_min)[0] ** 2
    square = x.double().square().flatten(1)
    return 0.5 * (signal * (square.sum(1) - square.shape[1]) + square.shape[1] * math.log1p(math.exp(logsnr_min)))


@lru_cache(maxsize=8)
def reconstruction(logsnr_max: float) -> Tensor:
    """E[−log p(k|z₀)] of one dimension for each of its LEVELS levels k, [LEVELS] nats, exact.

    The decoder is a softmax over the levels x_j = 2j/(LEVELS−1) − 1: p(k|z₀) ∝ exp(−(z₀/α − x_k)² e^λ / 2), and
    z₀/α = x_k + e^{−λ/2} ε. The expectation over ε is a Gauss-Legendre quadrature on [−9, 9].
    Source: Kingma et al. 2021, sec. 3.3.
    """
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
    """E[−log p(x|z₀)] of one dimension that has no levels, such as a latent's, in nats: ½ log(2πe·e^{−λ}), exact.

    The decoder is N(z₀/α, σ²/α²), and z₀/α = x + e^{−λ/2} ε. With an exact denoiser and noise that leaves nothing of the
    data, the bound then is −log of the density. Source: Kingma et al. 2021, sec. 3.3, without discretisation.
    """
    return 0.5 * (math.log(2 * math.pi * math.e) - logsnr_max)


def bits_per_dimension(nats: float, dimensions: int) -> float:
    """nats / (D ln 2)."""
    return nats / (dimensions * math.log(2))


def by_cell(values: Tensor, logsnr: Tensor, edges: Tensor) -> Tensor:
    """values added up in the cells of λ that they belong to: the pieces of L(t;x). [.., K], [.., K] → [.., cells]."""
    found = torch.zeros(*values.shape[:-1], len(edges) - 1, dtype=values.dtype)
    return found.scatter_add_(-1, cell_of(logsnr, edges), values)


class Augmented:
    """The measure −dw over noise levels: what turns bounds L(t;x) into the weighted loss.

    L_w = −∫ L(λ;x) dw(λ) + w(λmax) L(λmax;x) − w(λmin) L(λmin;x). For a non-increasing w, −dw together with the
    point mass w(λmax) is w(λmin) times a distribution p_w: the loss is the expected bound of data noised by it.
    dw is taken as differences on a fine grid, which is right at kinks and jumps too.
    Source: Kingma & Gao 2023, theorem 1 and eq. 12.
    """

    def __init__(self, weighting: Weighting, low: float, high: float, cells: int = GRID):
        self.levels = torch.linspace(low, high, cells + 1, dtype=torch.float64)
        values = weighting(self.levels)
        self.first, self.last = float(values[0]), float(values[-1])
        self.largest = float(values.max())
        self.mass = -values.diff()
        self._from = self.mass.flip(0).cumsum(0).flip(0) + self.last

    def above(self, logsnr: Tensor) -> Tensor:
        """The measure of all levels above each λ, the point mass included: how often L(·;x) holds the error at λ."""
        position = (logsnr - self.levels[0]) / (self.levels[1] - self.levels[0])
        cell = position.floor().long().clamp(0, len(self.mass) - 1)
        return self._from[cell] - (position - cell) * self.mass[cell]

    def shares(self, edges: Tensor) -> tuple[Tensor, float]:
        """(measure between edges [cells], point mass at λmax), divided by the largest w: signed where w rises."""
        at = 0.5 * (self.levels[1:] + self.levels[:-1])
        return by_cell(self.mass, at, edges) / self.largest, self.last / self.largest
