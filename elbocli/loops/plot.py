"""Pictures: weightings over λ, a fitted schedule against others. Same input, same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.core.adaptive import Moments
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError
from elbocli.files.atomic import writing

SUFFIXES = (".svg", ".png", ".pdf")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DASHES = ("-", (0, (5, 2)), (0, (2, 1)), (0, (6, 1, 1, 1)))
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "elbo",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 110,
}
POINTS = 1201


def check_suffix(out: Path) -> None:
    """Raise UsageError for a picture format that isn't ours."""
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: unknown picture format {out.suffix!r}; use {', '.join(SUFFIXES)}")


def _figure(rows: int) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update(STYLE)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, 1, figsize=(7.5, 2.6 * rows + 0.4), sharex=True, layout="constrained", squeeze=False
    )
    return figure, list(axes[:, 0])


def _save(figure: Any, out: Path) -> None:
    from matplotlib import pyplot

    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(out.suffix)
    with writing(out) as file:
        figure.savefig(file, format=out.suffix[1:], metadata=metadata)
    pyplot.close(figure)


def _line(index: int) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index // len(COLORS) % len(DASHES)],
        "linewidth": 1.6,
    }


def _legend(axis: Any) -> None:
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)


def plot_weights(weightings: list[Weighting], schedules: list[Schedule], low: float, high: float, out: Path) -> None:
    """Panels over λ: w scaled to its largest value; p_w = −dw/dλ, thick where w rises; p of the schedules.

    Raises UsageError for an unknown suffix.
    """
    check_suffix(out)
    at = torch.linspace(low, high, POINTS, dtype=torch.float64)
    figure, axes = _figure(3 if schedules else 2)
    for index, weighting in enumerate(weightings):
        value = weighting(at)
        slope = -weighting.slope(at) / value.max()
        rising = weighting.rising(low, high)
        label = weighting.spec + (" (rises)" if rising else "")
        axes[0].plot(at, value / value.max(), label=label, **_line(index))
        axes[1].plot(at, slope, label=weighting.spec, **_line(index))
        for start, end in rising:
            inside = (at >= start) & (at <= end)
            axes[1].fill_between(at[inside], slope[inside], color=COLORS[index % len(COLORS)], alpha=0.25, linewidth=0)
    axes[0].set_ylabel("w(λ) / max")
    axes[1].set_ylabel("p_w = −dw/dλ\n(shaded: w rises)")
    axes[1].axhline(0, color="black", linewidth=0.6)
    _legend(axes[0])
    if schedules:
        for index, schedule in enumerate(schedules):
            axes[2].plot(at, _masked(schedule.density(at)), label=schedule.base, **_line(index))
        axes[2].set_ylabel("p(λ) of schedule")
        _legend(axes[2])
    axes[-1].set_xlabel("λ = log(α²/σ²):   noise ←   → data")
    axes[-1].set_xlim(low, high)
    _save(figure, out)


def _masked(density: Tensor) -> Tensor:
    return density.where(density > 0, torch.nan)


def plot_fit(
    moments: Moments, weighting: Weighting, densities: dict[str, Callable[[Tensor], Tensor]], out: Path
) -> None:
    """Panels over λ: the measured ε error per dimension, and the densities of several schedules.

    Raises UsageError for an unknown suffix.
    """
    check_suffix(out)
    low, high = float(moments.edges[0]), float(moments.edges[-1])
    at = torch.linspace(low + 1e-9, high - 1e-9, POINTS, dtype=torch.float64)
    middle = 0.5 * (moments.edges[1:] + moments.edges[:-1])
    figure, axes = _figure(2)
    seen = moments.count > 0
    axes[0].plot(middle[seen], moments.mean[seen], label="‖ε−ε̂‖²/D measured", **_line(0))
    share = weighting(middle) * moments.smoothed().mean
    axes[0].plot(middle, share / share.max(), label=f"{weighting.spec} × error, / max", **_line(1))
    axes[0].set_ylabel("error")
    for index, (name, density) in enumerate(densities.items()):
        axes[1].plot(at, _masked(density(at)), label=name, **_line(index))
    axes[1].set_ylabel("p(λ) of schedule")
    axes[1].set_xlabel("λ = log(α²/σ²):   noise ←   → data")
    for axis in axes:
        _legend(axis)
    axes[1].set_xlim(low, high)
    _save(figure, out)


def text_plot(weightings: list[Weighting], low: float, high: float, columns: int, blocks: str) -> list[str]:
    """A row of block characters per weighting, w over λ scaled to its largest value."""
    names = [weighting.spec for weighting in weightings]
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
