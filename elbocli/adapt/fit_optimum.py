"""Fit a schedule to the least error on images that no network has seen yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from elbocli.core.adaptive import bin_middles, schedule_of_scores
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.errors import DataError, UsageError
from elbocli.files.hashing import file_sha256
from elbocli.files.optimum_file import Optimum, read_optimum
from elbocli.files.records import Record, stored
from elbocli.files.schedule_file import resolve_weighting, to_text

DEFAULT = "elbo"
"""The weighting where none is named: no log says one."""
QUARTERS = (0.75, 0.25)
"""Times between which half of the draws lie: the first is the noisier."""


@stored("result of elbo adapt --data-only --report (JSON)")
class DataReport(Record, frozen=True):
    """The schedule fitted to data alone. half: half of the draws lie between these logsnr. p_mean, p_std: mean and
    standard deviation of EDM's ln sigma = −logsnr/2 under it. told_apart: from this logsnr on the images are told apart, and
    the least error is below half of its peak; None where it isn't.
    """

    weighting: str
    criterion: str
    images: int
    logsnr_min: float
    logsnr_max: float
    bins: int
    half: list[float]
    p_mean: float
    p_std: float
    told_apart: float | None = None


@dataclass(frozen=True)
class DataSchedule:
    """A schedule fitted to data alone, its file's text, and what it was fitted to."""

    schedule: Schedule
    text: str
    optimum: Optimum
    weighting: Weighting
    report: DataReport


def run(
    path: Path, *, weighting: str | None, shift: float, monotone: bool, bias: float | None, floor: float
) -> DataSchedule:
    """Fit the schedule whose density is proportional to weighting × least error. bias: the weighting's parameter of that
    name. Raises ElboError.
    """
    found = read_optimum(path)
    spec = weighting or DEFAULT
    w = resolve_weighting(spec, shift=shift, monotone=monotone, given=None if bias is None else {"bias": bias})
    if w.learned:
        raise UsageError(f"{w.spec} is learned by training; --data-only takes a weighting that is known before")
    edges = torch.tensor(found.edges, dtype=torch.float64)
    least = found.least(edges, training=True)[0].clamp(min=0)
    if not bool((least > 0).any()):
        raise DataError(f"{path}: the least error is 0 at every noise level; find it on a range that has more noise")
    schedule = schedule_of_scores(edges, least, w, floor)
    known = {"criterion": "data-only", "floor": floor, "source_sha256": file_sha256(path), "images": found.images}
    half = schedule.logsnr(torch.tensor(QUARTERS, dtype=torch.float64)).tolist()
    middle, share = bin_middles(edges), schedule.t(edges[:-1]) - schedule.t(edges[1:])
    mean = float((share * middle).sum())
    spread = float((share * ((middle - mean).square() + edges.diff().square() / 12)).sum()) ** 0.5
    report = DataReport(
        w.spec,
        "data-only",
        found.images,
        schedule.logsnr_min,
        schedule.logsnr_max,
        len(least),
        half,
        -0.5 * mean,
        0.5 * spread,
        _told_apart(edges, least),
    )
    return DataSchedule(schedule, to_text(schedule, weighting=w.spec, **known), found, w, report)


def _told_apart(edges: Tensor, least: Tensor) -> float | None:
    """The λ beyond its peak from which on the least error is below half of it."""
    peak = int(least.argmax())
    below = (least[peak:] < 0.5 * least[peak]).nonzero()
    return float(edges[peak + int(below[0])]) if len(below) else None
