"""The paper's theorem on a user's own network: the weighted loss, and the same as an integral of bounds.

Left: L_w as training computes it. Right: −∫ L(λ;x) dw(λ) + w(λmax) L(λmax;x) − w(λmin) L(λmin;x), with L estimated
from independent noise on the same images. Source: Kingma & Gao 2023, theorem 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import PLAIN, Measurement
from elbocli.bound.result import Check, NoiseShares, Side, Theorem
from elbocli.core.adaptive import bin_edges
from elbocli.core.elbo import Augmented
from elbocli.core.estimate import PairedEstimate, PairedMoments
from elbocli.core.schedule import schedule_of_shares
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError

AGREE = 4.0
"""Standard errors that the sides may be apart."""
SHARES = 10
"""Cells of λ in which the measure is reported."""


def check_theorem(asked: Measurement, weightings: list[Weighting]) -> Theorem:
    """Check the theorem for each weighting on a run. Raises ElboError."""
    low, high = asked.low, asked.high
    measures = [Augmented(weighting, low, high) for weighting in weightings]
    for weighting, measure in zip(weightings, measures):
        if not 0 < measure.largest < math.inf:
            raise UsageError(f"{weighting.spec} is zero, or not finite, from logsnr {low:g} to {high:g}")
    # The average of the densities: no level that any weighting needs is rare.
    edges, schedules = bin_edges(low, high), [asked.schedule("", weighting) for weighting in [PLAIN, *weightings]]
    share = torch.stack([each.t(edges[:-1]) - each.t(edges[1:]) for each in schedules]).mean(0)
    shared = schedule_of_shares(edges, share, "mixture")
    bounds, checks = PairedMoments(), []
    for drawn in asked.draws(PLAIN, shared, "right"):
        # The error at each λ as often as L(·;x) under each measure holds it; then L(λmin;x).
        part = drawn.shares(shared)
        columns = [(part * measure.above(drawn.logsnr)).sum(2) for measure in measures]
        bounds.add(torch.stack([*columns, drawn.below[:, None].expand(-1, 2)], 2))
    for index, (weighting, measure) in enumerate(zip(weightings, measures)):
        loss = PairedMoments()
        for drawn in asked.draws(weighting, schedules[index + 1], f"left-{index}"):
            loss.add(drawn.loss.mean(2, keepdim=True))
        cells = bin_edges(low, high, SHARES)
        checks.append(_check(weighting, measure, loss.estimate(), bounds.estimate(), index, cells))
    return Theorem(all(check.agree for check in checks), checks, asked.count, n_images=len(asked.rows))


def _check(
    weighting: Weighting, measure: Augmented, loss: PairedEstimate, bounds: PairedEstimate, index: int, edges: Tensor
) -> Check:
    """Both sides of one weighting, the `index`th of the bounds, and its measure."""
    of = np.zeros(len(bounds.mean))
    of[index] = 1
    left, right = _side(loss, np.ones(1)), _side(bounds, of)
    error = math.hypot(left.se, right.se)
    apart = (left.nats - right.nats) / error if error > 0 else 0.0
    shares, point = measure.shares(edges)
    mass = point, edges.tolist(), shares.tolist()
    rising = weighting.rising(float(edges[0]), float(edges[-1]))
    sides = (weighting.spec, not rising, left, right, apart, abs(apart) <= AGREE)
    if rising:
        signs = (float(part.sum()) / measure.largest for part in (measure.mass.clamp(min=0), measure.mass.clamp(max=0)))
        return Check(*sides, [[*stretch] for stretch in rising], NoiseShares(*mass, *signs))
    # L_w = w(λmin) (E_{p_w}[L(λ;x)] − L(λmin;x)): the paper's statement, solved for the expectation.
    of = of / measure.first
    of[-1] = 1
    return Check(*sides, augmented_elbo=_side(bounds, of), p_w=NoiseShares(*mass))


def _side(estimate: PairedEstimate, of: np.ndarray) -> Side:
    value, se = estimate.value(of), estimate.noise_se(of)
    return Side(value, se, se / abs(value) if value else 0.0)
