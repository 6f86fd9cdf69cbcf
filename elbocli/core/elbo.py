"""Terms of the variational bound on −log p of images or latents.

−log p(x) ≤ KL(q(z₁|x) ‖ N(0,I)) + E[−log p(x|z₀)] + ½ ∫ E‖ε−ε̂‖² dλ, all in nats, summed over dimensions.
Source: Kingma et al. 2021 (VDM), eq. 11 to 17; Kingma & Gao 2023, sec. 3 and appendix A.
"""

import math
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
