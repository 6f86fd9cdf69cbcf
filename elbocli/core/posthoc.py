"""One average from snapshots of others, after training: Karras et al. 2023, arXiv:2312.02696 sec. 3.2.

A power average at step T is ∫ p(t) θ(t) dt with p(t) = (γ+1) t^γ / T^(γ+1) on [0, T] and θ(t) constant between
updates; this is exact (core/training.py), so a combination of stored averages is off from the wished one by
∫ (Σ x_i p_i − p)(t) θ(t) dt, whatever θ did. Least squares makes Σ x_i p_i − p small; Σ x_i = 1 makes its integral 0,
so that what doesn't change along training comes out exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RIDGE = 1e-10
"""Price of a coefficient of 1, in squared residual: averages are stored in float32, and coefficients in the thousands,
which many nearly equal profiles invite, would amplify its rounding."""


class Profile(NamedTuple):
    """γ and T, in steps, of an average of the weights up to T in proportion to t^γ."""

    gamma: float
    step: float


class Solution(NamedTuple):
    """coefficients: [n], adding up to 1. residual: ‖Σ x_i p_i − p‖ / ‖p‖ in L², 0 when the profile was met."""

    coefficients: np.ndarray
    residual: float


def products(one: Sequence[Profile], other: Sequence[Profile]) -> np.ndarray:
    """∫ p_i(t) q_j(t) dt in closed form, [len(one), len(other)] float64.

    With T_1 ≤ T_2 the product lives on [0, T_1]: (γ1+1)(γ2+1) / (T_1^(γ1+1) T_2^(γ2+1)) ∫₀^T_1 t^(γ1+γ2) dt
    = (γ1+1)(γ2+1) / (γ1+γ2+1) · (T_1/T_2)^γ2 / T_2.
    """
    g1, t1 = np.array(one, dtype=np.float64).T[:, :, None]
    g2, t2 = np.array(other, dtype=np.float64).T[:, None, :]
    late = np.where(t1 <= t2, g2, g1)
    low, high = np.minimum(t1, t2), np.maximum(t1, t2)
    return (g1 + 1) * (g2 + 1) / (g1 + g2 + 1) * (low / high) ** late / high


def solve(stored: Sequence[Profile], target: Profile) -> Solution:
    """The combination of stored profiles, of coefficients that add up to 1, nearest to the target in L².

    All in float64. Raises ValueError when nothing is stored.
    """
    if not stored:
        raise ValueError("no profiles to combine")
    exact = [profile == target for profile in stored]
    if any(exact):
        return Solution(np.array(exact, dtype=np.float64) / sum(exact), 0.0)
    # Every profile divided by its norm: narrow and wide ones then count alike, and the matrix is as good as it can be.
    gram = products(stored, stored)
    norms = np.sqrt(np.diag(gram))
    gram /= np.outer(norms, norms)
    length = math.sqrt(products([target], [target]).item())
    wish = products(stored, [target])[:, 0] / (norms * length)
    sums = length / norms  # of the scaled coefficients y = x norms / length, Σ x = Σ y length / norms
    # The nearest without the condition, moved along G⁻¹ sums until it holds: where the Lagrangian is stationary.
    free, along = np.linalg.solve(gram + RIDGE * np.eye(len(stored)), np.stack([wish, sums], 1)).T
    y = free + along * (1 - sums @ free) / (sums @ along)
    square = y @ gram @ y - 2 * y @ wish + 1
    return Solution(y * length / norms, math.sqrt(max(0.0, square)))
