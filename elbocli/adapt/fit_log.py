"""Fit a schedule to loss logs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from elbocli.core.adaptive import ErrorMoments, fit_schedule, loss_variance
from elbocli.core.criteria import CRITERIA
from elbocli.core.schedule import Schedule, cell_of, parse_schedule
from elbocli.core.weighting import Weighting
from elbocli.errors import ElboError, UsageError
from elbocli.files.losslog import LossLog, read_logs
from elbocli.files.schedule_file import finite, resolve_schedule, resolve_weighting, to_text

Density = Callable[[Tensor], Tensor]


OWN = "own"
FIXED = ("cosine", "edm", "uniform")
FITTED = "fitted:"


@dataclass(frozen=True)
class FittedSchedule:
    """A fitted schedule, its file's text, the moments it came from, and what it and others promise.

    candidates: the density of each schedule by name: the log's own, the FIXED ones, and a fitted one per criterion.
    variances: of the loss estimate per image, relative to the loss squared, for independent and low-discrepancy t.
    """

    schedule: Schedule
    text: str
    moments: ErrorMoments
    weighting: Weighting
    criterion: str
    log: LossLog
    candidates: dict[str, Density]
    variances: dict[str, tuple[float, float]]

    @property
    def ratios(self) -> dict[str, tuple[float, float]]:
        """Each variance over the least of its kind."""
        best = [min(kind) for kind in zip(*self.variances.values())]
        return {
            name: (pair[0] / best[0] if best[0] > 0 else math.nan, pair[1] / best[1] if best[1] > 0 else math.nan)
            for name, pair in self.variances.items()
        }

    def report(self) -> dict[str, Any]:
        """All of it as JSON: null for what is infinite, or a ratio to zero."""
        return {
            "weighting": self.weighting.spec,
            "criterion": self.criterion,
            "images": self.log.images,
            "intervals": self.log.lines,
            "batch": self.log.batch,
            "logsnr_min": self.schedule.logsnr_min,
            "logsnr_max": self.schedule.logsnr_max,
            "bins": len(self.moments.mean),
            "schedules": {
                name: {
                    "variance_independent": finite(independent),
                    "variance_low_discrepancy": finite(low_discrepancy),
                    "ratio_independent": finite(self.ratios[name][0]),
                    "ratio_low_discrepancy": finite(self.ratios[name][1]),
                }
                for name, (independent, low_discrepancy) in self.variances.items()
            },
        }


def _merged(log: LossLog, bins: int | None) -> tuple[Tensor, Tensor]:
    """(edges, sums) with neighbouring bins added up to `bins` of them."""
    count = log.sums.shape[1]
    if bins is None or bins == count:
        return log.edges, log.sums
    if bins < 2 or count % bins:
        allowed = [str(b) for b in range(2, count + 1) if count % b == 0]
        raise UsageError(f"--bins {bins}: the log has {count} bins, which merge into {', '.join(allowed)}")
    return log.edges[:: count // bins], log.sums.reshape(3, bins, -1).sum(2)


def _own_density(log: LossLog) -> Density:
    """The density the log was drawn from: its schedule's, or as counted when that one moved (or is gone)."""
    low, high = float(log.edges[0]), float(log.edges[-1])
    try:
        return resolve_schedule(str(log.header.get("schedule")), low, high).density
    except ElboError:
        height = log.sums[0] / log.sums[0].sum() / log.edges.diff()
        return lambda at: height[cell_of(at, log.edges)]


def _fixed_density(name: str, like: Schedule) -> Density:
    """The density of a schedule of that name on the same range; zero where it has next to nothing there."""
    try:
        return parse_schedule(name, like.logsnr_min, like.logsnr_max).density
    except UsageError:
        return torch.zeros_like


def run(
    sources: list[Path | IO[bytes]],
    *,
    weighting: str | None,
    shift: float,
    monotone: bool,
    bias: float | None,
    criterion: str,
    bins: int | None,
    floor: float,
    since: int,
) -> FittedSchedule:
    """Fit a schedule for a weighting (None: the log's own). bias: its parameter of that name. Raises ElboError."""
    log = read_logs(sources, since)
    spec = weighting or str(log.header.get("weighting", "elbo"))
    w = resolve_weighting(spec, shift=shift, monotone=monotone, given=None if bias is None else {"bias": bias})
    edges, sums = _merged(log, bins)
    moments = ErrorMoments.of_sums(edges, sums)
    schedule = fit_schedule(moments, w, criterion, floor)
    candidates = {OWN: _own_density(log)}
    candidates |= {name: _fixed_density(name, schedule) for name in FIXED}
    candidates |= {FITTED + name: fit_schedule(moments, w, name, floor).density for name in CRITERIA}
    variances = {name: loss_variance(moments, w, density, log.batch) for name, density in candidates.items()}
    origin: dict[str, Any] = {
        "weighting": w.spec,
        "criterion": criterion,
        "floor": floor,
        "source_sha256": _digest(log),
        "images": log.images,
    }
    return FittedSchedule(schedule, to_text(schedule, **origin), moments, w, criterion, log, candidates, variances)


def _digest(log: LossLog) -> str:
    import hashlib

    return hashlib.sha256(log.edges.numpy().tobytes() + log.sums.numpy().tobytes()).hexdigest()
