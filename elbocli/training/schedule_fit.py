"""Fit schedules to loss logs."""

import hashlib
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from elbocli.core.adaptive import (
    ErrorMoments,
    fit_schedule,
    floored,
    loss_variance,
)
from elbocli.core.schedule import Schedule, cell_of, parse_schedule
from elbocli.errors import ElboError, UsageError
from elbocli.files.losslog import LossLog, read_losslog
from elbocli.files.records import Record, stored
from elbocli.files.schedule_file import finite, resolve_schedule, resolve_weighting, to_text
from elbocli.runtime.table import Table

Density = Callable[[Tensor], Tensor]
FIXED = ("cosine", "edm")
PROMISE = ("variance_independent", "variance_low_discrepancy", "ratio_independent", "ratio_low_discrepancy")


@stored("result of elbo adapt --json")
class AdaptReport(Record):
    """Report of `elbo adapt` on a fitted schedule.

    intervals: number of lines in the loss logs. batch: batch size of the predicted variances.
    schedules: schedule's name → variance_* and ratio_* for independent and low-discrepancy t; None: infinite or undefined.
    variance_*: batch size × variance of a batch's mean loss / squared loss. ratio_*: variance / smallest of all schedules.
    """

    weighting: str
    images: int
    logsnr_min: float
    logsnr_max: float
    bins: int
    intervals: int
    batch: int
    schedules: dict[str, dict[str, float | None]]

    def table(self) -> Table:
        """Return the predicted variances by schedule."""
        names = ("variance_independent", "ratio_independent", "variance_low_discrepancy", "ratio_low_discrepancy")
        return Table(
            f"Schedule fitted for weighting {self.weighting}",
            ["schedule", "independent t", "/ best", "low-discrepancy t", "/ best"],
            [[name, *(f"{pair[key]:.4g}" if pair[key] else None for key in names)] for name, pair in self.schedules.items()],
            {"fitted to": f"{self.images:,} images, {self.intervals:,} lines of loss logs"},
            [f"Variance of the mean loss of {self.batch} images, predicted, in units of loss²/{self.batch}; lower is better."],
        )


@dataclass(frozen=True)
class FittedSchedule:
    """A fitted schedule, with a report and data for the plot. text: contents of the schedule file.

    edges: edges of the λ bins, [bins + 1]. error: (ε error per dimension, standard error), [bins] each.
    densities: schedule's name → density p(λ).
    share: weighted loss as a density over λ, with integral 1, [bins].
    """

    schedule: Schedule
    text: str
    report: AdaptReport
    edges: Tensor
    error: tuple[Tensor, Tensor]
    densities: dict[str, Density]
    share: Tensor


def fit_log(
    sources: list[Path | IO[bytes]],
    weighting: str | None = None,
    *,
    floor: float = 0.01,
    since: int = 0,
) -> FittedSchedule:
    """Fit a schedule to loss logs. Raises ElboError.

    weighting: SPEC of the weighting to fit for; None: the log's.
    floor: smallest density, as a fraction of the uniform density.
    since: step after which the logs are used.
    """
    losses = read_losslog(*sources).chosen(after=since)
    edges = losses.edges
    moments = ErrorMoments.of_sums(edges, losses.sums)
    w = resolve_weighting(weighting or losses.headers[0].weighting or "elbo")
    if w.of_density:
        raise UsageError(
            f"the run's schedule is the fitted one for its learned weighting {w.spec}; fit another by --weighting SPEC"
        )
    if w.learned:
        w = w.with_errors(parse_schedule("uniform", float(edges[0]), float(edges[-1])), moments.middle, moments.smoothed.mean)
    schedule = fit_schedule(moments, w, floor)
    fixed = {name: _fixed_density(name, schedule) for name in FIXED}
    densities = {"own": _own_density(losses), **fixed, "uniform": _fixed_density("uniform", schedule)}
    densities["fitted"] = schedule.density
    variances = {name: loss_variance(moments, w, density, losses.batch) for name, density in densities.items()}
    best = [min(kind) for kind in zip(*variances.values())]
    promises = {}
    for name, pair in variances.items():
        ratios = [value / minimum if minimum > 0 else math.nan for value, minimum in zip(pair, best)]
        promises[name] = dict(zip(PROMISE, map(finite, (*pair, *ratios))))
    digest = hashlib.sha256(edges.numpy().tobytes() + losses.sums.numpy().tobytes()).hexdigest()
    share = w(moments.middle) * moments.smoothed.mean
    error = moments.mean.where(moments.count > 1, torch.nan)
    return FittedSchedule(
        schedule,
        to_text(schedule, weighting=w.spec, floor=floor, source_sha256=digest, images=losses.images),
        AdaptReport(
            w.spec,
            losses.images,
            schedule.logsnr_min,
            schedule.logsnr_max,
            len(edges) - 1,
            len(losses.rows),
            losses.batch,
            promises,
        ),
        edges,
        (error, moments.mean_se),
        {"log's own": densities["own"], **fixed, "fitted": schedule.density},
        share / (share * edges.diff()).sum(),
    )


def _own_density(losses: LossLog) -> Density:
    try:
        return resolve_schedule(str(losses.headers[0].schedule), float(losses.edges[0]), float(losses.edges[-1])).density
    except ElboError:
        # + 0.5: the Krichevsky-Trofimov estimate, so that no density is zero.
        counted = losses.sums[0] + 0.5
        width = losses.edges.diff()
        height = floored(counted / counted.sum(), width, losses.headers[0].floor or 0) / width
        return lambda at: height[cell_of(at, losses.edges)]


def _fixed_density(name: str, like: Schedule) -> Density:
    # Zero if almost no draw of the named schedule lies in the range of `like`.
    with suppress(UsageError):
        return parse_schedule(name, like.logsnr_min, like.logsnr_max).density
    return torch.zeros_like
