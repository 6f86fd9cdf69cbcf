"""Fit a schedule to loss logs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from elbocli.core.adaptive import ErrorMoments, fit_schedule, floored, loss_variance, refuse_adaptive
from elbocli.core.schedule import Schedule, cell_of, parse_schedule
from elbocli.core.training import CRITERIA, OF_ERRORS
from elbocli.core.weighting import Weighting
from elbocli.errors import ElboError, UsageError
from elbocli.files.losslog import LossLog, read_logs
from elbocli.files.optimum_file import Optimum, read_optimum
from elbocli.files.reading import reading
from elbocli.files.records import Record, stored
from elbocli.files.schedule_file import finite, resolve_schedule, resolve_weighting, to_text
from elbocli.run.train_settings import ADAPTIVE

Density = Callable[[Tensor], Tensor]
OWN = "own"
FIXED = ("cosine", "edm", "uniform")
FITTED = "fitted:"


class Promise(Record, frozen=True):
    """The promise of a schedule: the variance of the loss estimate per image, relative to the loss squared, for
    independent and for low-discrepancy t, and its ratio to the least.

    In JSON, null means infinite, or a ratio to zero.
    """

    variance_independent: float
    variance_low_discrepancy: float
    ratio_independent: float
    ratio_low_discrepancy: float

    def json(self) -> dict[str, Any]:
        """The object, for json to write."""
        return {key: finite(value) for key, value in super().json().items()}


@stored("result of elbo adapt --report (JSON)")
class AdaptReport(Record, frozen=True):
    """The schedule fitted to a log, and what each schedule promises."""

    weighting: str
    criterion: str
    images: int
    intervals: int
    batch: int
    logsnr_min: float
    logsnr_max: float
    bins: int
    schedules: dict[str, Promise]


@dataclass(frozen=True)
class FittedSchedule:
    """A fitted schedule, its file's text, the moments it came from, and the density of each schedule by name: the log's
    own, the FIXED ones, and a fitted one per criterion.
    """

    schedule: Schedule
    text: str
    moments: ErrorMoments
    weighting: Weighting
    log: LossLog
    candidates: dict[str, Density]
    report: AdaptReport


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
    """The density the log was drawn from: its schedule's, or as counted when that one moved (or is gone).

    Half an error more in each bin than was counted (the Krichevsky-Trofimov estimate) keeps chance from making a density
    zero, and none was below the floor of an adaptive schedule.
    """
    low, high = float(log.edges[0]), float(log.edges[-1])
    try:
        return resolve_schedule(str(log.header.schedule), low, high).density
    except ElboError:
        counted, width = log.sums[0] + 0.5, log.edges.diff()
        height = floored(counted / counted.sum(), width, log.header.floor or 0) / width
        return lambda at: height[cell_of(at, log.edges)]


def _learned(weighting: Weighting, log: LossLog, moments: ErrorMoments) -> Weighting:
    """The learned weighting that the whole log amounts to, under the log's own schedule. Raises ElboError."""
    name = str(log.header.schedule)
    if name == ADAPTIVE:
        refuse_adaptive(weighting)
    schedule = resolve_schedule(name, float(log.edges[0]), float(log.edges[-1]))
    return weighting.knowing(schedule, moments.middle, moments.smoothed().mean)


def fixed_density(name: str, like: Schedule) -> Density:
    """The density of a schedule of that name on the same range; zero where it has next to nothing there."""
    with suppress(UsageError):
        return parse_schedule(name, like.logsnr_min, like.logsnr_max).density
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
    optimum: Path | None = None,
) -> FittedSchedule:
    """Fit a schedule for a weighting (None: the log's own). bias: its parameter of that name. optimum: a file with the
    least error, for a criterion that needs it. Raises ElboError.
    """
    if CRITERIA.find(criterion).traits.optimum != (optimum is not None):
        raise UsageError("--criterion excess and --optimum FILE go together: give both, or neither")
    log = read_logs(sources, since)
    spec = weighting or log.header.weighting or "elbo"
    w = resolve_weighting(spec, shift=shift, monotone=monotone, given=None if bias is None else {"bias": bias})
    edges, sums = _merged(log, bins)
    moments = ErrorMoments.of_sums(edges, sums)
    w = _learned(w, log, moments) if w.learned else w
    least = None if optimum is None else _least(read_optimum(optimum), log, edges, optimum)
    schedule = fit_schedule(moments, w, criterion, floor, least=least)
    candidates = {OWN: _own_density(log)}
    candidates |= {name: fixed_density(name, schedule) for name in FIXED}
    candidates |= {FITTED + name: fit_schedule(moments, w, name, floor).density for name in OF_ERRORS}
    candidates |= {FITTED + criterion: schedule.density}
    promises = _promises({name: loss_variance(moments, w, density, log.batch) for name, density in candidates.items()})
    low, high, count = schedule.logsnr_min, schedule.logsnr_max, len(moments.mean)
    report = AdaptReport(w.spec, criterion, log.images, log.lines, log.batch, low, high, count, promises)
    digest = hashlib.sha256(log.edges.numpy().tobytes() + log.sums.numpy().tobytes()).hexdigest()
    known = {"criterion": criterion, "floor": floor, "source_sha256": digest, "images": log.images}
    text = to_text(schedule, weighting=w.spec, **known)
    return FittedSchedule(schedule, text, moments, w, log, candidates, report)


def _least(optimum: Optimum, log: LossLog, edges: Tensor, path: Path) -> Tensor:
    """The least error in the log's bins. Raises UsageError where it is of other images, or of other levels."""
    dimensions = log.header.dimensions
    if dimensions not in (None, optimum.dimensions):
        raise UsageError(
            f"{path}: is of images of {optimum.dimensions} numbers, and the log of such of {dimensions}; find the optimum of "
            "the images that the run was trained on, by 'elbo optimum --like RUN'"
        )
    with reading(path, kind=UsageError):
        return optimum.least(edges, training=True)[0]


def _promises(variances: dict[str, tuple[float, float]]) -> dict[str, Promise]:
    """variances: for independent and low-discrepancy t, by the schedule's name."""
    best = [min(kind) for kind in zip(*variances.values())]

    def promise(pair: tuple[float, float]) -> Promise:
        ratios = (value / least if least > 0 else math.nan for value, least in zip(pair, best))
        return Promise(*pair, *ratios)

    return {name: promise(pair) for name, pair in variances.items()}
