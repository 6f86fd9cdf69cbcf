"""Draw weightings and schedules over λ."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from elbocli.core.adaptive import bin_middles
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.report.figure import (
    ERROR,
    POINTS,
    add_legend,
    brief,
    draw_band,
    draw_densities,
    finish,
    lettered,
    line_style,
    new_figure,
    same,
)
from elbocli.training.schedule_fit import FittedSchedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEEP = 20.0  # ratio max w / w(0) above which the vertical axis is logarithmic
SHARE = 0.01  # smallest point mass of p_w that the legend mentions


@dataclass
class Line:
    """Line of the plot. value, slope: w and −dw/dλ at each λ, divided by the largest w. rises: whether w increases anywhere."""

    label: str
    value: Tensor
    slope: Tensor
    rises: bool


def _lines(weightings: dict[str, Weighting], at: Tensor) -> list[Line]:
    low = float(at[0])
    high = float(at[-1])
    lines = list[Line]()
    for spec, weighting in weightings.items():
        value = weighting(at)
        top = float(value.max()) or 1.0
        if line := next((line for line in lines if same(line.value, value / top)), None):
            line.label += f"\n= {lettered(brief(spec))}"
            continue
        rises = bool(weighting.rising(low, high))
        slope = (-weighting.slope(at) / top).where(value > 0, torch.nan)
        lines.append(Line(lettered(brief(spec)), value / top, slope, rises))
    return lines


def plot_weights(weightings: dict[str, Weighting], schedules: list[Schedule], low: float, high: float, out: Path) -> None:
    """Draw weightings, and densities of schedules, over λ from `low` to `high` into the file `out`.

    weightings: SPEC, shown in the legend → weighting. Raises DataError.
    """
    at = torch.linspace(low, high, POINTS, dtype=torch.float64)
    lines = _lines(weightings, at)
    panels = ["w", "p", *(["density"] if schedules else [])]
    sheet, axes = new_figure(panels, 7.7, 2.4 * len(panels) + 0.3)
    _draw_weightings(axes["w"], lines, at)
    _draw_noise(axes["p"], lines, at)
    if schedules:
        draw_densities(axes["density"], {brief(schedule.base): schedule.density for schedule in schedules}, at)
        _cap(axes["density"])
    finish(sheet, axes, low, high, out)


def _draw_weightings(axis: "Axes", lines: list[Line], at: Tensor) -> None:
    zero = int(at.abs().argmin())
    steep = any(line.value[zero] * STEEP < line.value.max() for line in lines)
    for index, line in enumerate(lines):
        value = line.value / line.value[zero] if steep and line.value[zero] > 0 else line.value
        axis.plot(at, value, label=line.label, **line_style(index))
    if steep:
        axis.set_yscale("log", nonpositive="mask")
        axis.set_ylim(bottom=1e-4)
    axis.set_ylabel(r"$w(\lambda) / w(0)$" if steep else r"$w(\lambda) / \max w$")
    add_legend(axis)


def _draw_noise(axis: "Axes", lines: list[Line], at: Tensor) -> None:
    for index, line in enumerate(lines):
        last = float(line.value[line.value > 0][-1:].sum())  # the point mass at the largest λ that has a weight
        mass = rf"mass {last:.2g} at $\lambda_{{\max}}$: {line.label}"
        axis.plot(at, line.slope, label=None if line.rises or last < SHARE else mass, **line_style(index))
    _cap(axis)
    if any(line.rises for line in lines):
        bottom = 1.15 * min(float(line.slope.nan_to_num(0).min()) for line in lines)
        axis.axhspan(bottom, 0, color="0.92", zorder=0, label="$w$ rises: no augmentation")
        axis.set_ylim(bottom=bottom)
    add_legend(axis)
    axis.set_ylabel(r"$p_w = -(\mathrm{d}w/\mathrm{d}\lambda) / \max w$")


def _cap(axis: "Axes") -> None:
    # so that a spike doesn't flatten the other lines
    if peaks := [peak for line in axis.lines if (peak := np.nan_to_num(line.get_ydata()).max()) > 0]:
        axis.set_ylim(top=min(1.08 * max(peaks), 2.2 * median(peaks)))


def plot_fit(fitted: FittedSchedule, out: Path) -> None:
    """Plot a fitted schedule's errors and densities against λ."""
    error, se = fitted.error
    middle = bin_middles(fitted.edges)
    low = float(fitted.edges[0])
    high = float(fitted.edges[-1])
    sheet, axes = new_figure(["error", "density"], 7.4, 5.2)
    seen = error.isfinite()
    draw_band(axes["error"], middle[seen], error[seen], se[seen])
    axes["error"].set(yscale="log", ylabel=ERROR, title="measured error, ± 2 standard errors")
    label = f"share of the loss, {lettered(brief(fitted.report.weighting))}"
    axes["density"].fill_between(middle, fitted.share, color="0.85", label=label, step="mid")
    at = torch.linspace(low + 1e-9, high - 1e-9, POINTS, dtype=torch.float64)
    draw_densities(axes["density"], fitted.densities, at)
    finish(sheet, axes, low, high, out)
