"""Solve for the combination of stored averages that is nearest to another average."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RIDGE = 1e-10  # penalty on squared coefficients: coefficients in the thousands would amplify the averages' float32 rounding


class Profile(NamedTuple):
    """Coefficient of update t in a power average: ∝ t^gamma, for t from 0 to `step`."""

    gamma: float
    step: float


class Solution(NamedTuple):
    """Combination of stored averages.

    coefficients: factors of the averages, [n], with sum 1.
    residual: L² distance from the target profile, relative to the target's norm.
    """

    coefficients: np.ndarray
    residual: float


def products(one: Sequence[Profile], other: Sequence[Profile]) -> np.ndarray:
    """Return the inner products ∫ p_i(t) q_j(t) dt of profiles, float64 [len(one), len(other)]."""
    # With T_1 ≤ T_2 the integral is (γ1+1)(γ2+1) / (T_1^(γ1+1) T_2^(γ2+1)) ∫₀^T_1 t^(γ1+γ2) dt
    # = (γ1+1)(γ2+1) / (γ1+γ2+1) · (T_1/T_2)^γ2 / T_2.
    g1, t1 = np.array(one, dtype=np.float64).T[:, :, None]
    g2, t2 = np.array(other, dtype=np.float64).T[:, None, :]
    late = np.where(t1 <= t2, g2, g1)
    low = np.minimum(t1, t2)
    high = np.maximum(t1, t2)
    return (g1 + 1) * (g2 + 1) / (g1 + g2 + 1) * (low / high) ** late / high


def solve(stored: Sequence[Profile], target: Profile) -> Solution:
    """Return the combination of stored profiles nearest to the target profile in L².

    Source: Karras et al. 2023, arXiv:2312.02696 sec. 3.2.
    """
    # A power average at step T is ∫ p(t) θ(t) dt with p(t) = (γ+1) t^γ / T^(γ+1) on [0, T] and weights θ(t) constant between
    # updates. So a combination differs from the target by ∫ (Σ x_i p_i − p)(t) θ(t) dt. Least squares makes Σ x_i p_i − p
    # small; Σ x_i = 1 makes its integral 0, so that weights that are constant during training are reproduced exactly.
    exact = [profile == target for profile in stored]
    if any(exact):
        return Solution(np.array(exact, dtype=np.float64) / sum(exact), 0.0)
    # Normalise every profile, so that narrow and wide profiles count alike and the Gram matrix is well conditioned.
    gram = products(stored, stored)
    norms = np.sqrt(np.diag(gram))
    gram /= np.outer(norms, norms)
    length = math.sqrt(products([target], [target]).item())
    wish = products(stored, [target])[:, 0] / (norms * length)
    sums = length / norms  # for the scaled coefficients y = x norms / length, Σ x = Σ y length / norms
    # Stationary point of the Lagrangian: the unconstrained solution, moved along G⁻¹ sums until Σ x = 1.
    free, along = np.linalg.solve(gram + RIDGE * np.eye(len(stored)), np.stack([wish, sums], 1)).T
    y = free + along * (1 - sums @ free) / (sums @ along)
    square = y @ gram @ y - 2 * y @ wish + 1
    return Solution(y * length / norms, math.sqrt(max(0.0, square)))
