"""The squared distance of kernel means of two sets (MMD²), for a Gaussian kernel. Source: Gretton et al. 2012."""

from __future__ import annotations

import torch
from torch import Tensor

from elbocli.core.neighbours import squares


def gaussian_mmd(
    first: Tensor,
    second: Tensor,
    width: float,
    device: torch.device | str = "cpu",
    *,
    unit: bool = False,
    biased: bool = False,
) -> float:
    """E k(x, x′) + E k(y, y′) − 2 E k(x, y) with k = exp(−|x − y|²/2 width²), in float64.

    first: [N, D], second: [M, D]. unit: of vectors scaled to length 1. biased: pairs of a vector with itself count, too
    (eq. 5 there; never negative), else not (eq. 3; needs two of each).
    """

    def total(some: Tensor, others: Tensor) -> float:
        same, found = some is others, 0.0
        for row, column, apart in squares(some, others, device, unit=unit, upper=same):
            part = float(apart.mul_(-0.5 / width**2).exp_().sum())
            found += 2 * part if same and column > row else part
        return found

    def among(some: Tensor) -> float:
        n, found = len(some), total(some, some)
        return found / n**2 if biased else (found - n) / (n * (n - 1))

    return among(first) + among(second) - 2 * total(first, second) / (len(first) * len(second))
