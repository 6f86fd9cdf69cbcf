"""Pictures: weightings over λ, a fitted schedule against others. Same input, same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from elbocli.core.adaptive import Moments
from elbocli.core.objectives import FACTORS
from elbocli.core.prediction import PREDICTIONS
from elbocli.core.registry import plain
from elbocli.core.schedule import SCHEDULES, Schedule, parse_schedule
from elbocli.core.shape import likeness
from elbocli.core.weighting import WEIGHTINGS, Weighting
from elbocli.errors import UsageError
from elbocli.files.atomic import writing
from elbocli.loops.bound import Curve

SUFFIXES = (".svg", ".png", ".pdf")
# Okabe & Ito's colours without the yellow, which is too faint for a line, and with a brown; every line has a dash of
# its own as well, so that it can be told without colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (1.5, 1.2)), (0, (7, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "elbo",
    "font.size": 9,
    "mathtext.fontset": "cm",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "pdf.fonttype": 42,
    "legend.fontsize": 8,
    "legend.handlelength": 2.6,
    "figure.dpi": 160,
}
POINTS = 1201
MANY = 6
"""More weightings than this on one sheet are drawn in two columns: those whose loss is an ELBO, and the others."""
STEEP = 20.0
"""Weightings that grow by more than this from λ = 0 are drawn on a logarithmic scale: e^{−λ/2} would hide the rest."""
SAME = 1e-9
SHARE = 0.01
"""A point mass of p_w smaller than this is not worth a word."""
FITTED = "fitted"
ERROR = r"$\mathrm{E}\Vert\epsilon-\hat\epsilon\Vert^2/D$"
LAMBDA = r"$\lambda = \log(\alpha^2/\sigma^2)$     noise  $\longleftarrow\ \longrightarrow$  data"


def check_suffix(out: Path) -> None:
    """Raise UsageError for a picture format that isn't ours."""
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: unknown picture format {out.suffix!r}; use {', '.join(SUFFIXES)}")


def brief(spec: str) -> str:
    """A spec for a legend: without the parameters that have their defaults. `edm:monotone` → `edm (monotone)`."""

    def short(found: re.Match[str]) -> str:
        name, words = found.groups()
        declared = [r[name] for r in (WEIGHTINGS, SCHEDULES, FACTORS) if name in r]
        if name.endswith("-mse") and "=" in words:
            declared.append(PREDICTIONS[name.removesuffix("-mse")])
        if not declared:
            return found[0]
        defaults = {f"{key}={plain(value)}" for one in declared for key, value in one.params.items()}
        kept = [word for word in words.split(",") if word not in defaults]
        return name + (f" ({', '.join(kept)})" if kept else "")

    return re.sub(r"([\w+-]+):([^:@]*)(?=@|$)", short, spec)


def labels(specs: Sequence[str]) -> list[str]:
    """Legends of several specs: files by their names alone, unless two would then be called the same."""
    full = [brief(spec) for spec in specs]
    names = [re.sub(r"[^@:]*/", "", label) for label in full]
    return [name if names.count(name) == full.count(label) else label for name, label in zip(names, full)]


@dataclass(frozen=True)
class Line:
    """A weighting on a sheet: its values and p_w at each λ, both over its largest value; how it is drawn."""

    label: str
    value: Tensor
    slope: Tensor
    rises: bool
    style: dict[str, Any]

    @property
    def extremes(self) -> tuple[float, float]:
        """The least and the largest p_w."""
        known = self.slope[~self.slope.isnan()]
        return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)

    @property
    def last(self) -> float:
        """The point mass of p_w at the largest λ that has a weight."""
        return float(self.value[self.value > 0][-1:].sum())


def _style(index: int) -> dict[str, Any]:
    dash = DASHES[index % len(DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": dash, "linewidth": 1.5}


def _lines(weightings: Sequence[Weighting], at: Tensor) -> list[Line]:
    """A line per weighting; those that are the same up to a constant share one."""
    low, high = float(at[0]), float(at[-1])
    alike: list[tuple[Weighting, list[str]]] = []
    for weighting, label in zip(weightings, labels([w.spec for w in weightings])):
        for other, names in alike:
            if likeness(other, weighting, low, high, POINTS).deviation < SAME:
                names += [label] if label not in names else []
                break
        else:
            alike.append((weighting, [label]))
    found = []
    for index, (weighting, names) in enumerate(alike):
        value = weighting(at)
        top = float(value.max()) or 1.0
        left, right = max(low, weighting.support[0]), min(high, weighting.support[1])
        rises = left < right and bool(weighting.rising(left, right))
        slope = (-weighting.slope(at) / top).where(value > 0, torch.nan)
        found.append(Line(" = ".join(names), value / top, slope, rises, _style(index)))
    return found


def _figure(layout: list[Any], width: float, height: float) -> tuple[Any, dict[str, Any]]:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update(STYLE)
    from matplotlib import pyplot

    return pyplot.subplot_mosaic(layout, figsize=(width, height), layout="constrained")


def _finish(figure: Any, axes: dict[str, Any], last: list[str], low: float, high: float, out: Path) -> None:
    """The axis of λ, the same in all panels and named under the last row; then the file."""
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    for axis in axes.values():
        axis.set_xlim(low, high)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for name in last:
        axes[name].set_xlabel(LAMBDA)
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(out.suffix)
    with writing(out) as file:
        figure.savefig(file, format=out.suffix[1:], metadata=metadata)
    pyplot.close(figure)


def plot_weights(weightings: list[Weighting], schedules: list[Schedule], low: float, high: float, out: Path) -> None:
    """Panels over λ: w, p_w = −dw/dλ, and p of the schedules; many weightings in two columns, monotone ones left.

    Raises UsageError for an unknown suffix.
    """
    check_suffix(out)
    at = torch.linspace(low, high, POINTS, dtype=torch.float64)
    lines = _lines(weightings, at)
    columns = [[line for line in lines if line.rises == rises] for rises in (False, True)]
    if len(lines) <= MANY or not all(columns):
        columns = [lines]
    rows = [[f"{row}{column}" for column in range(len(columns))] for row in ("w", "p")]
    rows += [["density"] * len(columns)] if schedules else []
    figure, axes = _figure(rows, 7.5 if len(columns) > 1 else 6.0, 2.4 * len(rows) + 0.3)
    for column, chosen in enumerate(columns):
        chosen = _restyled(chosen)
        _draw_weightings(axes[f"w{column}"], chosen, at)
        _draw_noise(axes[f"p{column}"], chosen, at)
        if len(columns) > 1:
            axes[f"w{column}"].set_title(("monotone: the loss is an ELBO", "not monotone")[column])
    if schedules:
        names = labels([schedule.base for schedule in schedules])
        _draw_densities(axes["density"], dict(zip(names, [s.density for s in schedules])), at)
    _finish(figure, axes, rows[-1], low, high, out)


def _restyled(lines: list[Line]) -> list[Line]:
    return [replace(line, style=_style(index)) for index, line in enumerate(lines)]


def _draw_weightings(axis: Any, lines: list[Line], at: Tensor) -> None:
    zero = int(at.abs().argmin())
    steep = any(float(line.value[zero]) * STEEP < 1 for line in lines)
    tallest = 1e4
    for line in lines:
        value = line.value / line.value[zero] if steep and line.value[zero] > 0 else line.value
        tallest = max(tallest, float(value.max()))
        axis.plot(at, value.where(value > 0, torch.nan) if steep else value, label=line.label, **line.style)
    if steep:
        axis.set_yscale("log")
        axis.set_ylim(1e-4, tallest * 10 ** max(0, len(lines) - 4))  # room for the legend
        axis.set_ylabel(r"$w(\lambda) / w(0)$")
    else:
        axis.set_ylabel(r"$w(\lambda) / \max w$")
    axis.legend()


def _draw_noise(axis: Any, lines: list[Line], at: Tensor) -> None:
    """p_w, the distribution of the noise added to the data; below zero, where w rises, it is none."""
    for line in lines:
        axis.plot(at, line.slope, **line.style)
    handles = [
        axis.plot([], [], label=rf"{line.last:.2g} at $\lambda_{{\max}}$: {line.label}", **line.style)[0]
        for line in lines
        if not line.rises and line.last > SHARE
    ]
    peaks = [peak for line in lines if (peak := line.extremes[1]) > 0]
    if peaks:  # a spike, as of a kink, shall not flatten the others
        axis.set_ylim(top=min(1.08 * max(peaks), 2.2 * median(peaks)))
    if any(line.rises for line in lines):
        bottom = 1.15 * min(line.extremes[0] for line in lines)
        handles.append(axis.axhspan(bottom, 0, color="0.92", zorder=0, label="$w$ rises: no augmentation"))
        axis.set_ylim(bottom=bottom)
    if handles:
        axis.legend(handles=handles)
    axis.set_ylabel(r"$p_w = -(\mathrm{d}w/\mathrm{d}\lambda) / \max w$")


def _draw_densities(axis: Any, densities: dict[str, Callable[[Tensor], Tensor]], at: Tensor) -> None:
    for index, (name, density) in enumerate(densities.items()):
        value = density(at)
        style = {"color": "black", "linewidth": 2} if name == FITTED else _style(index)
        axis.plot(at, value.where(value > 0, torch.nan), label=name, **style)
    axis.set_ylim(bottom=0)
    axis.set_ylabel(r"$p(\lambda)$ of schedules")
    axis.legend()


def plot_fit(
    moments: Moments, weighting: Weighting, densities: dict[str, Callable[[Tensor], Tensor]], out: Path
) -> None:
    """Panels over λ: the measured ε error per dimension ± 2 standard errors; the share of the weighted loss that each
    λ has, and the densities of several schedules, EDM's among them.

    Raises UsageError for an unknown suffix.
    """
    check_suffix(out)
    low, high = float(moments.edges[0]), float(moments.edges[-1])
    at = torch.linspace(low + 1e-9, high - 1e-9, POINTS, dtype=torch.float64)
    middle = 0.5 * (moments.edges[1:] + moments.edges[:-1])
    figure, axes = _figure([["error"], ["density"]], 6.0, 5.2)
    seen = moments.count > 1
    mean = moments.mean[seen]
    spread = 2 * moments.mean_se[seen]
    axes["error"].fill_between(
        middle[seen], (mean - spread).clamp(min=1e-12), mean + spread, color=COLORS[0], alpha=0.3, linewidth=0
    )
    axes["error"].plot(middle[seen], mean, color=COLORS[0], linewidth=1.5)
    axes["error"].set_yscale("log")
    axes["error"].set_ylabel(ERROR)
    axes["error"].set_title("measured error, ± 2 standard errors")
    share = weighting(middle) * moments.smoothed().mean
    share = share / (share * moments.edges.diff()).sum()
    axes["density"].fill_between(
        middle, share, color="0.85", label=f"share of the loss, {brief(weighting.spec)}", step="mid"
    )
    _draw_densities(axes["density"], densities | _edm(low, high, densities), at)
    _finish(figure, axes, ["density"], low, high, out)


def _edm(low: float, high: float, densities: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor]]:
    """EDM's density, unless it is there already or has nothing in the range."""
    try:
        return {} if "edm" in densities else {"edm": parse_schedule("edm", low, high).density}
    except UsageError:
        return {}


def text_plot(weightings: list[Weighting], low: float, high: float, columns: int, blocks: str) -> list[str]:
    """A row of block characters per weighting, w over λ scaled to its largest value."""
    names = labels([weighting.spec for weighting in weightings])
    margin = max(map(len, names))
    wide = max(20, columns - margin - 2)
    at = torch.linspace(low, high, wide, dtype=torch.float64)
    rows = []
    for name, weighting in zip(names, weightings):
        share = weighting(at) / weighting(at).max()
        rows.append(
            f"{name:>{margin}}  "
            + "".join(blocks[min(len(blocks) - 1, int(part * len(blocks)))] for part in share.tolist())
        )
    ends = f"{low:g}", f"{high:g}"
    rows.append(" " * (margin + 2) + ends[0] + "logsnr".center(wide - len(ends[0]) - len(ends[1])) + ends[1])
    return rows


def plot_curve(curve: Curve, out: Path) -> None:
    """Panels over λ: the ε error per dimension and L(t;x) in nats, each ± 2 standard errors.

    Raises UsageError for an unknown suffix.
    """
    check_suffix(out)
    edges, seen = curve.moments.edges, curve.moments.count > 1
    figure, axes = _figure([["error"], ["bound"]], 6.0, 5.2)
    middle = 0.5 * (edges[1:] + edges[:-1])
    rows = {
        "error": (middle[seen], curve.moments.mean[seen], curve.moments.mean_se[seen]),
        "bound": (edges[1:], curve.bound, curve.bound_se),
    }
    for name, (at, value, error) in rows.items():
        low = (value - 2 * error).clamp(min=1e-12)
        axes[name].fill_between(at, low, value + 2 * error, color=COLORS[0], alpha=0.3, linewidth=0)
        axes[name].plot(at, value, color=COLORS[0], linewidth=1.5)
    axes["error"].set_yscale("log")
    axes["error"].set_ylabel(ERROR)
    axes["error"].set_title("error, and bound on data as noisy as λ, ± 2 standard errors")
    axes["bound"].set_ylabel(r"$L(\lambda; x)$ in nats")
    axes["bound"].set_ylim(bottom=0)
    _finish(figure, axes, ["bound"], float(edges[0]), float(edges[-1]), out)
