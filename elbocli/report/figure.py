"""Figures over log-SNR λ, in one style. Equal input gives equal bytes."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from elbocli.core.registry import Declaration
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting import FACTORS
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.files.atomic import new_file
from elbocli.files.contact_sheet import matplotlib_data
from elbocli.runtime.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType
    from numpy.typing import ArrayLike

Dashes: TypeAlias = str | tuple[int, tuple[float, ...]]
Values: TypeAlias = np.ndarray | Tensor  # [N]


class LineStyle(TypedDict, total=False):
    """Matplotlib's keywords of a line."""

    color: str
    linestyle: Dashes
    linewidth: float
    marker: str
    label: str | None


# Okabe & Ito's colours, with brown instead of yellow, which is too faint for a line. Each line also has its own dash
# pattern, so that readers can identify it without colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DASHES: tuple[Dashes, ...] = ("-", (0, (6, 1.5)), (0, (1.5, 1.2)), (0, (7, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
STYLE: dict["RcKeyType", str | float] = {
    "svg.hashsalt": "elbo",
    "font.size": 9,
    "mathtext.fontset": "cm",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.loc": "upper left",
    "pdf.fonttype": 42,
    "legend.fontsize": 8,
    "legend.handlelength": 2.6,
    "figure.dpi": 160,
}
POINTS = 1201
FITTED = "fitted"
ERROR = r"$\mathrm{E}\Vert\epsilon-\hat\epsilon\Vert^2/D$"
LAMBDA = r"$\lambda = \log(\alpha^2/\sigma^2)$     noise  $\longleftarrow\ \longrightarrow$  data"


def import_matplotlib() -> None:
    """Import matplotlib with its default settings."""
    # On import, matplotlib reads the file matplotlibrc of the working directory, which may be a stranger's. Matplotlib's own
    # folder has the default settings under that name. O_PATH opens a directory that may not be listed.
    old_folder = os.open(".", os.O_PATH)
    os.chdir(matplotlib_data())
    try:
        import matplotlib  # noqa: F401
    finally:
        os.fchdir(old_folder)
        os.close(old_folder)


def brief(spec: str) -> str:
    """Leave out default parameters: `edm:mean=-1.2,std=1.2,monotone` → `edm:monotone`."""
    known: list[Declaration[..., object]] = [*WEIGHTINGS.values(), *SCHEDULES.values(), *FACTORS.values()]
    for declared in known:
        full = rf"\b{re.escape(declared.spec)}"
        spec = re.sub(rf"{full}(?=@|$)", declared.name, re.sub(f"{full},", f"{declared.name}:", spec))
    return spec


def lettered(name: str) -> str:
    """Escape control characters, and $, which begins a formula in matplotlib."""
    return visible(name).replace("$", r"\$")


def line_style(index: int) -> LineStyle:
    """Return matplotlib's keywords for the style of line number `index`."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.5}


def new_figure(panels: Sequence[str], width: float, height: float) -> "tuple[Figure, dict[str, Axes]]":
    """Return a figure of width × height inches, and its panels by name. panels: names, from top to bottom."""
    import_matplotlib()
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update(STYLE)
    from matplotlib import pyplot

    return pyplot.subplot_mosaic([[name] for name in panels], figsize=(width, height), layout="constrained")


def finish(figure: "Figure", axes: "dict[str, Axes]", low: float, high: float, out: Path) -> None:
    """Format the λ axes, label the lowest, and write the figure. low, high: limits of λ."""
    from matplotlib import pyplot

    for axis in axes.values():
        axis.set_xlim(low, high)
        level_ticks(axis.xaxis)
    axis.set_xlabel(LAMBDA)
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(out.suffix)
    with new_file(out) as file:
        figure.savefig(file, format=out.suffix[1:], metadata=metadata)
    pyplot.close(figure)


def level_ticks(axis: "XAxis") -> None:
    """Put the ticks of a λ axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def draw_band(axis: "Axes", at: Values, value: Values, se: Values | None = None, **style: Unpack[LineStyle]) -> None:
    """Draw a curve with a band of ± 2 standard errors. at, value, se: [N]; se None: no band."""
    line: LineStyle = {"color": COLORS[0], "linewidth": 1.5, **style}
    if se is not None:
        middle = np.asarray(value)
        spread = 2 * np.asarray(se)
        low = np.maximum(middle - spread, middle / 10)  # so that the band fits on a logarithmic axis
        axis.fill_between(at, low, middle + spread, color=line["color"], alpha=0.3, linewidth=0)
    axis.plot(at, value, **line)


def draw_densities(axis: "Axes", densities: dict[str, Callable[[Tensor], Tensor]], at: Tensor) -> None:
    """Draw schedules' densities against λ. densities: schedule's name → p(λ). at: λ to draw at."""
    for index, (name, density) in enumerate(densities.items()):
        value = density(at)
        label = lettered(name)
        value = value.where(value > 0, torch.nan)
        twins = [line for line in axis.lines if same(line.get_ydata(), value)]
        for line in twins:
            line.set_label(f"{line.get_label()}\n= {label}")
        if not twins:
            style: LineStyle = {"color": "black", "linewidth": 2} if name == FITTED else line_style(index)
            axis.plot(at, value, label=label, **style)
    axis.set_ylim(bottom=0)
    axis.set_ylabel(r"$p(\lambda)$ of schedules")
    add_legend(axis)


def same(a: "ArrayLike", b: "ArrayLike") -> bool:
    """Return whether two arrays are equal up to rounding; NaN equals NaN."""
    return np.allclose(a, b, rtol=1e-9, atol=0, equal_nan=True)


def add_legend(axis: "Axes") -> None:
    """Add a legend to the right of a panel."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(bbox_to_anchor=(1, 1.05))
