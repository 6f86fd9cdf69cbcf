"""Check theorem 1 of Kingma & Gao 2023 on a run.

Theorem 1: weighted loss = −∫ L(λ) dw(λ) + w(λmax) L(λmax) − w(λmin) L(λmin); L(λ) = prior term + ½ ∫ ‖ε−ε̂‖² dλ up to λ.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from elbocli.bound.measure import PLAIN, RunMeasurement
from elbocli.bound.result import Check, Side, Theorem
from elbocli.core.adaptive import bin_edges
from elbocli.core.elbo import Augmented
from elbocli.core.monotone import rising
from elbocli.core.objective import Objective
from elbocli.core.paired import PairedEstimate, PairedMoments
from elbocli.core.schedule import Schedule, schedule_of_shares
from elbocli.core.weighting import Weighting
from elbocli.errors import Parameter, UsageError
from elbocli.files.schedule_file import resolve_weighting

AGREE = 4.0  # largest difference between the theorem's two sides that counts as agreement, in standard errors


def check_theorem(measured: RunMeasurement, specs: Sequence[str] = ()) -> Theorem:
    """Compare both sides of theorem 1, measured for each weighting. Raises ElboError.

    measured: run and images. specs: SPECs of the weightings; (): the run's training weighting.
    """
    weightings = [resolve_weighting(spec) for spec in specs] or [measured.trained.weighting()]
    measures = [_measure(weighting, measured.low, measured.high) for weighting in weightings]
    schedules = [measured.schedule(weighting) for weighting in weightings]
    rights = _right_sides(measured, measures, [measured.schedule(), *schedules])
    checks = list[Check]()
    for index, (weighting, schedule) in enumerate(zip(weightings, schedules)):
        left = _left_side(measured, Objective(weighting, schedule, measured.prediction), f"left-{index}")
        checks.append(_check(weighting, measures[index], left, rights, np.eye(len(rights.mean))[index]))
    agree = all(check.agree for check in checks)
    return Theorem(agree=agree, checks=checks, draws_per_side=measured.draws, n_images=len(measured.rows))


def _measure(weighting: Weighting, low: float, high: float) -> Augmented:
    weighting.check(low, high)
    measure = Augmented(weighting, low, high)
    if not measure.largest > 0:
        raise UsageError(
            f"{weighting.spec}: the largest w on logsnr {low:g} to {high:g} is 0; change ",
            Parameter("logsnr_min"),
            " or ",
            Parameter("logsnr_max"),
        )
    return measure


def _left_side(measured: RunMeasurement, objective: Objective, purpose: str) -> Side:
    loss = PairedMoments()
    for draws in measured.draw_all(objective, purpose):
        loss.add(draws.loss.mean(2, keepdim=True))
    return _side(loss.estimate(), np.ones(1))


def _right_sides(measured: RunMeasurement, measures: list[Augmented], schedules: list[Schedule]) -> PairedEstimate:
    """Estimate the right side of each weighting, and L(λmin;x) last."""
    # All weightings share the draws, at noise levels of the schedules' average density, so that no weighting lacks any.
    edges = bin_edges(measured.low, measured.high)
    bounds = PairedMoments()
    share = torch.stack([-each.t(edges).diff() for each in schedules]).mean(0)
    shared = schedule_of_shares(edges, share, "mixture")
    for draws in measured.draw_all(Objective(PLAIN, shared, measured.prediction), "right"):
        # The integral of L(λ;x) under each measure, as one sum over the draws.
        part = draws.shares(shared)
        columns = [(part * measure.above(draws.logsnr)).sum(2) for measure in measures]
        bounds.add(torch.stack([*columns, draws.prior[:, None].expand(-1, 2)], 2))
    return bounds.estimate()


def _check(weighting: Weighting, measure: Augmented, left: Side, rights: PairedEstimate, of: np.ndarray) -> Check:
    # of: coefficients of the weighting's right side.
    low = float(measure.levels[0])
    high = float(measure.levels[-1])
    right = _side(rights, of)
    se = math.hypot(left.se, right.se)
    in_se = (left.nats - right.nats) / se if se > 0 else 0.0
    rises = rising(weighting, low, high)  # the theorem is on the whole range, also where w is 0
    sides = (weighting.spec, not rises, left, right, in_se, abs(in_se) <= AGREE)
    if rises:
        return Check(*sides, [[*interval] for interval in rises])
    # L_w = w(λmin) (E_{p_w}[L(λ;x)] − L(λmin;x)): the paper's statement, solved for the expectation.
    of = of / float(measure.values[0])
    of[-1] = 1
    return Check(*sides, augmented_elbo=_side(rights, of))


def _side(estimate: PairedEstimate, of: np.ndarray) -> Side:
    value = estimate.value(of)
    se = estimate.noise_se(of)
    return Side(value, se, se / abs(value) if value else 0.0)
