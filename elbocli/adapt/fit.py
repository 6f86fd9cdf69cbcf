"""Fit schedules to loss logs or, before training, to the least possible errors on a dataset."""

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
    bin_middles,
    fit_schedule,
    floored,
    loss_variance,
    refuse_adaptive,
    schedule_of_scores,
)
from elbocli.core.criteria import CRITERIA, OF_ERRORS
from elbocli.core.schedule import Schedule, cell_of, parse_schedule
from elbocli.core.weighting import Weighting
from elbocli.errors import ElboError, UsageError
from elbocli.files.losslog import LossLog, read_logs, read_optimum
from elbocli.files.reading import file_sha256, reading
from elbocli.files.records import Record, stored
from elbocli.files.schedule_file import finite, resolve_schedule, to_text
from elbocli.run.train_settings import ADAPTIVE
from elbocli.runtime.progress import log
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
    half, p_mean, p_std, told_apart: None without --data-only.
    half: logsnr range of the middle half of the draws.
    p_mean, p_std: mean and standard deviation of ln sigma_edm = −logsnr/2.
    told_apart: logsnr above which the least possible error is below half its maximum over λ; None: nowhere.
    """

    weighting: str
    criterion: str
    images: int
    logsnr_min: float
    logsnr_max: float
    bins: int
    intervals: int | None = None
    batch: int | None = None
    schedules: dict[str, dict[str, float | None]] | None = None
    half: list[float] | None = None
    p_mean: float | None = None
    p_std: float | None = None
    told_apart: float | None = None

    def table(self) -> Table:
        """Return the predicted variances by schedule, or for --data-only the parameters of the fitted schedule."""
        names = ("variance_independent", "ratio_independent", "variance_low_discrepancy", "ratio_low_discrepancy")
        return Table(
            f"Schedule fitted for weighting {self.weighting}, criterion {self.criterion}",
            ["schedule", "independent t", "/ best", "low-discrepancy t", "/ best"],
            [
                [name, *(f"{pair[key]:.4g}" if pair[key] else None for key in names)]
                for name, pair in (self.schedules or {}).items()
            ],
            {
                "variances": self.batch and f"of a batch's mean loss, x batch size {self.batch} / loss²; predicted",
                "fitted to": f"{self.images:,} images" + (f", {self.intervals:,} lines of loss logs" if self.intervals else ""),
                "half of the draws": self.half and "logsnr {:.3g} to {:.3g}".format(*self.half),
                "EDM's parameters": self.p_std and f"P_mean {self.p_mean:.3g}, P_std {self.p_std:.3g}",
            },
        )


@dataclass(frozen=True)
class FittedSchedule:
    """A fitted schedule, with a report and data for the plot. text: contents of the schedule file.

    edges: edges of the λ bins, [bins + 1]. error: (ε error per dimension, standard error), [bins] each.
    densities: schedule's name → density p(λ).
    share: weighted loss as a density over λ, with integral 1, [bins]; None for --data-only.
    """

    schedule: Schedule
    text: str
    report: AdaptReport
    edges: Tensor
    error: tuple[Tensor, Tensor]
    densities: dict[str, Density]
    share: Tensor | None = None


def fit_log(
    sources: list[Path | IO[bytes]],
    choose: Callable[[str], Weighting],
    *,
    criterion: str,
    bins: int | None = None,
    floor: float = 0.01,
    since: int = 0,
    optimum: Path | None = None,
) -> FittedSchedule:
    """Fit a schedule to loss logs. Raises ElboError.

    choose: function (SPEC of the log's weighting) → weighting to fit for.
    criterion: a name in CRITERIA. floor: smallest density, as a fraction of the uniform density.
    bins: number of bins after merging; None: the log's bins. since: step after which the logs are used.
    optimum: file of least possible errors, for criterion `excess` only.
    """
    if (CRITERIA.find(criterion).name == "excess") != (optimum is not None):
        raise UsageError("--criterion excess and --optimum FILE go together: give both, or neither")
    losses = read_logs(sources, since)
    count = losses.sums.shape[1]
    bins = bins or count
    if count % bins:
        raise UsageError(f"--bins {bins}: the log has {count} bins; give a divisor of {count}")
    edges = losses.edges[:: count // bins]
    moments = ErrorMoments.of_sums(edges, losses.sums.reshape(3, bins, -1).sum(2))
    w = choose(losses.header.weighting or "elbo")
    if w.learned:  # learned anew from the whole log, under the log's own schedule
        if (named := str(losses.header.schedule)) == ADAPTIVE:
            refuse_adaptive(w)
        ends = float(losses.edges[0]), float(losses.edges[-1])
        w = w.knowing(resolve_schedule(named, *ends), moments.middle, moments.smoothed.mean)
    least = None
    if optimum:
        known = read_optimum(optimum)
        if (size := losses.header.dimensions) not in (None, known.dimensions):
            raise UsageError(
                f"{optimum}: {known.dimensions} values per image, not the run's {size}; make it with 'elbo optimum --like RUN'"
            )
        with reading(optimum, kind=UsageError):
            least = known.least(edges, training=True)[0]
    schedule = fit_schedule(moments, w, criterion, floor, least=least)
    fixed = {name: _fixed_density(name, schedule) for name in FIXED}
    densities = {"own": _own_density(losses), **fixed, "uniform": _fixed_density("uniform", schedule)}
    densities |= {f"fitted:{name}": fit_schedule(moments, w, name, floor).density for name in OF_ERRORS}
    densities[f"fitted:{criterion}"] = schedule.density
    variances = {name: loss_variance(moments, w, density, losses.batch) for name, density in densities.items()}
    best = [min(kind) for kind in zip(*variances.values())]
    promises = {}
    for name, pair in variances.items():
        ratios = [value / minimum if minimum > 0 else math.nan for value, minimum in zip(pair, best)]
        promises[name] = dict(zip(PROMISE, map(finite, (*pair, *ratios))))
    digest = hashlib.sha256(losses.edges.numpy().tobytes() + losses.sums.numpy().tobytes()).hexdigest()
    share, error = w(moments.middle) * moments.smoothed.mean, moments.mean.where(moments.count > 1, torch.nan)
    return FittedSchedule(
        schedule,
        to_text(schedule, weighting=w.spec, criterion=criterion, floor=floor, source_sha256=digest, images=losses.images),
        AdaptReport(
            w.spec,
            criterion,
            losses.images,
            schedule.logsnr_min,
            schedule.logsnr_max,
            bins,
            losses.lines,
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
        return resolve_schedule(str(losses.header.schedule), float(losses.edges[0]), float(losses.edges[-1])).density
    except ElboError:
        # + 0.5: the Krichevsky-Trofimov estimate, so that no density is zero.
        counted, width = losses.sums[0] + 0.5, losses.edges.diff()
        height = floored(counted / counted.sum(), width, losses.header.floor or 0) / width
        return lambda at: height[cell_of(at, losses.edges)]


def _fixed_density(name: str, like: Schedule) -> Density:
    # Zero if almost no draw of the named schedule lies in the range of `like`.
    with suppress(UsageError):
        return parse_schedule(name, like.logsnr_min, like.logsnr_max).density
    return torch.zeros_like


def fit_data(path: Path, weighting: Weighting, floor: float = 0.01) -> FittedSchedule:
    """Fit a schedule with density ∝ weighting × least possible error. Raises ElboError.

    path: file from `elbo optimum`. floor: smallest density, as a fraction of the uniform density.
    """
    optimum = read_optimum(path)
    edges = torch.tensor(optimum.edges, dtype=torch.float64)
    error = optimum.least(edges, training=True)
    least = error[0].clamp(min=0)
    schedule = schedule_of_scores(edges, least, weighting, floor)
    middle, share = bin_middles(edges), -schedule.t(edges).diff()
    mean = float((share * middle).sum())
    spread = float((share * ((middle - mean).square() + edges.diff().square() / 12)).sum()) ** 0.5
    peak = int(least.argmax())
    below = (least[peak:] < 0.5 * least[peak]).nonzero()
    half = schedule.logsnr(torch.tensor([0.75, 0.25], dtype=torch.float64)).tolist()
    told_apart = float(edges[peak + int(below[0])]) if len(below) else None
    own = {"half": half, "p_mean": -0.5 * mean, "p_std": 0.5 * spread, "told_apart": told_apart}
    if told_apart is not None:
        log.warning(f"above logsnr {told_apart:.3g}, networks exceed the least possible error; raise --floor to draw more there")
    digest = file_sha256(path)
    fixed = {name: _fixed_density(name, schedule) for name in FIXED}
    return FittedSchedule(
        schedule,
        to_text(
            schedule, weighting=weighting.spec, criterion="data-only", floor=floor, source_sha256=digest, images=optimum.images
        ),
        AdaptReport(weighting.spec, "data-only", optimum.images, schedule.logsnr_min, schedule.logsnr_max, len(least), **own),
        edges,
        error,
        {**fixed, "fitted": schedule.density},
    )


def plot_fit(fitted: FittedSchedule, out: Path) -> None:
    """Plot a fitted schedule's errors and densities against λ."""
    from elbocli.cli.figure import ERROR, POINTS, brief, draw_band, draw_densities, finish, lettered, new_figure

    (error, se), middle, measured = fitted.error, bin_middles(fitted.edges), fitted.share is not None
    low, high = float(fitted.edges[0]), float(fitted.edges[-1])
    sheet, axes = new_figure([["error"], ["density"]], 7.4, 5.2)
    seen = error.isfinite()
    draw_band(axes["error"], middle[seen], error[seen], se[seen])
    title = "measured error" if measured else "least error of a denoiser of the images"
    axes["error"].set(yscale="log" if measured else "linear", ylabel=ERROR, title=f"{title}, ± 2 standard errors")
    if measured:
        label = f"share of the loss, {lettered(brief(fitted.report.weighting))}"
        axes["density"].fill_between(middle, fitted.share, color="0.85", label=label, step="mid")
    else:
        axes["error"].set_ylim(bottom=0)
    at = torch.linspace(low + 1e-9, high - 1e-9, POINTS, dtype=torch.float64)
    draw_densities(axes["density"], fitted.densities, at)
    finish(sheet, axes, ["density"], low, high, out)
