"""The paper's theorem on a user's own network: the weighted loss, and the same as an integral of bounds.

Left: L_w as training computes it. Right: −∫ L(λ;x) dw(λ) + w(λmax) L(λmax;x) − w(λmin) L(λmin;x), with L estimated
from independent noise on the same images. Source: Kingma & Gao 2023, theorem 1.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import Measurement
from elbocli.bound.result import Check, NoiseShares, Side, SignedMass, Theorem
from elbocli.core.adaptive import bin_edges
from elbocli.core.elbo import Augmented, prior
from elbocli.core.estimate import PairedEstimate, PairedMoments
from elbocli.core.schedule import schedule_of_shares
from elbocli.core.weighting import Weighting, parse_weighting
from elbocli.errors import UsageError
from elbocli.runtime.progress import Progress

AGREE = 4.0
"""Standard errors that the sides may be apart."""
SHARES = 10
"""Cells of λ in which the measure is told."""


def run(asked: Measurement, weightings: list[Weighting]) -> Generator[Progress, None, Theorem]:
    """Check the theorem for each weighting on a run. Raises ElboError."""
    low, high, plain = asked.low, asked.high, parse_weighting("elbo")
    measures = [Augmented(weighting, low, high) for weighting in weightings]
    for weighting, measure in zip(weightings, measures):
        if not 0 < measure.largest < math.inf:
            raise UsageError(f"{weighting.spec} is zero, or not finite, from logsnr {low:g} to {high:g}")
    count, draws = len(asked.rows), asked.settings.draws
    total, done = count * (len(weightings) + 1), 0
    where = f"{asked.device}, {asked.precision}"
    yield Progress(0, total, "img", f"{asked.trained.path}: {count} images, {draws} draws a side; {where}")
    # The average of the densities: no level that any weighting needs is rare.
    edges, schedules = bin_edges(low, high), [asked.fitted(weighting) for weighting in [plain, *weightings]]
    share = torch.stack([each.t(edges[:-1]) - each.t(edges[1:]) for each in schedules]).mean(0)
    shared = schedule_of_shares(edges, share, "mixture")
    bounds = PairedMoments()
    for drawn in asked.draws(plain, shared, "right"):
        # The error at each λ as often as L(·;x) under each measure holds it; then L(λmin;x).
        part = drawn.shares(shared)
        columns = [(part * measure.above(drawn.logsnr)).sum(2) for measure in measures]
        bounds.add(torch.stack([*columns, prior(drawn.x, low)[:, None].expand(-1, 2)], 2))
        done += len(drawn.logsnr)
        yield Progress(done, total, "img")
    checks = []
    for index, (weighting, measure) in enumerate(zip(weightings, measures)):
        loss = PairedMoments()
        for drawn in asked.draws(weighting, asked.fitted(weighting), f"left-{index}"):
            loss.add(drawn.loss.mean(2, keepdim=True))
            done += len(drawn.logsnr)
            yield Progress(done, total, "img")
        left = _side(loss.estimate(), np.ones(1))
        checks.append(_check(weighting, measure, left, bounds.estimate(), index, bin_edges(low, high, SHARES)))
        yield Progress(message=_sentence(checks[-1]))
    return Theorem(all(check.agree for check in checks), checks, count, draws, asked.about())


def _check(
    weighting: Weighting, measure: Augmented, left: Side, bounds: PairedEstimate, index: int, edges: Tensor
) -> Check:
    """Both sides of one weighting, the `index`th of the bounds, and what its measure is."""
    of = np.zeros(len(bounds.mean))
    of[index] = 1
    right = _side(bounds, of)
    error = math.hypot(left.se, right.se)
    apart = (left.nats - right.nats) / error if error > 0 else 0.0
    shares, point = measure.shares(edges)
    levels, mass = edges.tolist(), shares.tolist()
    rising = weighting.rising(float(edges[0]), float(edges[-1]))
    sides = (weighting.spec, not rising, left, right, apart, abs(apart) <= AGREE)
    if rising:
        positive, negative = (
            float(part.sum()) / measure.largest for part in (measure.mass.clamp(min=0), measure.mass.clamp(max=0))
        )
        signed = SignedMass(positive, negative, point, levels, mass)
        return Check(*sides, rising=[[*stretch] for stretch in rising], signed_mass=signed)
    # L_w = w(λmin) (E_{p_w}[L(λ;x)] − L(λmin;x)): the paper's statement, solved for the expectation.
    of = of / measure.first
    of[-1] = 1
    return Check(*sides, augmented_elbo=_side(bounds, of), p_w=NoiseShares(point, levels, mass))


def _side(estimate: PairedEstimate, of: np.ndarray) -> Side:
    value, se = estimate.value(of), estimate.noise_se(of)
    return Side(value, se, se / abs(value) if value else 0.0)


def _sentence(check: Check) -> str:
    kind = "an ELBO of noise-augmented data" if check.monotone else "not monotone: a signed sum of ELBOs"
    return (
        f"{check.weighting}: loss {check.left.nats:.6g} ± {check.left.se:.2g} nats, from the bounds "
        f"{check.right.nats:.6g} ± {check.right.se:.2g}: {check.difference_in_se:+.2f} standard errors apart, "
        f"{'they agree' if check.agree else 'they DISAGREE'}; {kind}"
    )
