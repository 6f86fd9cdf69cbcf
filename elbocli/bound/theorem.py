"""The paper's theorem on a user's own network: the weighted loss, and the same as an integral of bounds.

Left: L_w as training computes it. Right: −∫ L(λ;x) dw(λ) + w(λmax) L(λmax;x) − w(λmin) L(λmin;x), with L estimated
from independent noise on the same images. Source: Kingma & Gao 2023, theorem 1.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import Draws, Measurement
from elbocli.core.adaptive import bin_edges
from elbocli.core.elbo import Augmented, prior
from elbocli.core.paired import PairedEstimate, PairedMoments
from elbocli.core.schedule import Schedule, schedule_of_shares
from elbocli.core.weighting import Weighting, parse_weighting
from elbocli.errors import UsageError
from elbocli.runtime.progress import Progress

AGREE = 4.0
SHARES = 10


def run(probe: Measurement, weightings: list[Weighting]) -> Generator[Progress, None, dict[str, Any]]:
    """Check the theorem for each weighting; returns the result as JSON. Raises ElboError."""
    if len(probe.rows) < 2:
        raise UsageError("a standard error needs at least two images")
    measures = [Augmented(weighting, probe.low, probe.high) for weighting in weightings]
    for weighting, measure in zip(weightings, measures):
        if not 0 < measure.largest < math.inf:
            raise UsageError(f"{weighting.spec} is zero, or not finite, from logsnr {probe.low:g} to {probe.high:g}")
    shared = _mixture([probe.fitted(weighting) for weighting in [parse_weighting("elbo"), *weightings]])
    total, done = len(probe.rows) * (len(weightings) + 1), 0
    right = PairedMoments()
    yield Progress(
        0, total, "img", f"{probe.trained.path}: {len(probe.rows)} images, {probe.settings.draws} draws a side"
    )
    for drawn in probe.draws(parse_weighting("elbo"), shared, "right"):
        right.add(_right(drawn, shared, measures, probe))
        done += len(drawn.pixels)
        yield Progress(done, total, "img")
    checks = []
    for index, (weighting, measure) in enumerate(zip(weightings, measures)):
        left = PairedMoments()
        for drawn in probe.draws(weighting, probe.fitted(weighting), f"left-{index}"):
            left.add(drawn.loss.mean(2, keepdim=True))
            done += len(drawn.pixels)
            yield Progress(done, total, "img")
        check = _check(weighting, measure, left.estimate(), right.estimate(), index, probe)
        checks.append(check)
        yield Progress(message=_sentence(check))
    agree = all(check["agree"] for check in checks)
    return {
        "agree": agree,
        "checks": checks,
        "n_images": len(probe.rows),
        "draws_per_side": probe.settings.draws,
        **probe.about(),
    }


def _mixture(schedules: list[Schedule]) -> Schedule:
    """The average of several densities, as a table: no level that any of them needs is rare."""
    low, high = schedules[0].logsnr_min, schedules[0].logsnr_max
    edges = bin_edges(low, high)
    share = torch.stack([s.t(edges[:-1]) - s.t(edges[1:]) for s in schedules]).mean(0)
    return schedule_of_shares(edges, share, "mixture")


def _right(drawn: Draws, schedule: Schedule, measures: list[Augmented], probe: Measurement) -> Tensor:
    """[c, 2, measures + 1]: for each measure how often L(·;x) under it holds the error at each λ; then L(λmin;x)."""
    part = 0.5 * drawn.error / schedule.density(drawn.logsnr) / drawn.error.shape[-1]
    columns = [(part * measure.above(drawn.logsnr)).sum(2) for measure in measures]
    return torch.stack([*columns, prior(drawn.x, probe.low)[:, None].expand(-1, 2)], 2)


def _check(
    weighting: Weighting,
    measure: Augmented,
    left: PairedEstimate,
    right: PairedEstimate,
    index: int,
    probe: Measurement,
) -> dict[str, Any]:
    one, of = np.ones(1), np.zeros(len(right.mean))
    of[index] = 1
    sides = {"left": _said(left, one), "right": _said(right, of)}
    error = math.hypot(sides["left"]["se"], sides["right"]["se"])
    apart = (sides["left"]["nats"] - sides["right"]["nats"]) / error if error > 0 else 0.0
    rising = weighting.rising(probe.low, probe.high)
    found = {
        "weighting": weighting.spec,
        "monotone": not rising,
        **sides,
        "difference_in_se": apart,
        "agree": abs(apart) <= AGREE,
    }
    edges = bin_edges(probe.low, probe.high, SHARES)
    shares, point = measure.shares(edges)
    by_level = {"logsnr": edges.tolist(), "mass": shares.tolist()}
    if rising:
        return found | {
            "rising": rising,
            "signed_mass": {
                "positive": float(measure.mass.clamp(min=0).sum()) / measure.largest,
                "negative": float(measure.mass.clamp(max=0).sum()) / measure.largest,
                "at_logsnr_max": point,
                **by_level,
            },
        }
    # L_w = w(λmin) (E_{p_w}[L(λ;x)] − L(λmin;x)): the paper's statement, solved for the expectation.
    of = of / measure.first
    of[-1] = 1
    return found | {
        "augmented_elbo": _said(right, of),
        "p_w": {"at_logsnr_max": point, **by_level},
    }


def _said(estimate: PairedEstimate, of: np.ndarray) -> dict[str, float]:
    value, se = estimate.value(of), estimate.noise_se(of)
    return {"nats": value, "se": se, "relative_se": se / abs(value) if value else 0.0}


def _sentence(check: dict[str, Any]) -> str:
    left, right = check["left"], check["right"]
    kind = "an ELBO of noise-augmented data" if check["monotone"] else "not monotone: a signed sum of ELBOs"
    return (
        f"{check['weighting']}: loss {left['nats']:.6g} ± {left['se']:.2g} nats, from the bounds {right['nats']:.6g} ± "
        f"{right['se']:.2g}: {check['difference_in_se']:+.2f} standard errors apart, "
        f"{'they agree' if check['agree'] else 'they DISAGREE'}; {kind}"
    )
