"""Drawings for a page, as SVG whose colours are the page's own: light or dark is the reader's choice.

Text stays text, so that it can be read out, searched, and costs little. What belongs together shares an axis: λ, or
the images that were trained on.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elbocli.cli.figure import DASHES, STYLE
from elbocli.report.log_history import LogHistory

WIDTH = 4.8
"""Inches of a drawing that a telephone shows at about its own size."""
NAMES = ("ink", "muted", "rule", "one", "two", "three", "four", "five", "six")
INKS = {f"#0{place}0{place}0{place}": f"--{name}" for place, name in enumerate(NAMES, 1)}
"""Colours that stand for variables of the page's style sheet."""
INK, MUTED, RULE, ONE, TWO, *_ = INKS
LINES = tuple(INKS)[3:]
"""Colours of lines; each has a dash of its own as well."""
LINE_WIDTH = 1.6
OWN: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    "grid.color": RULE,
    "grid.alpha": 1.0,
    "grid.linewidth": 0.6,
    "lines.linewidth": LINE_WIDTH,
}
LEVEL = "noise  ←  λ  →  data"
MARGINS = {"left": 0.15, "right": 0.955, "hspace": 0.08}
"""The same in all drawings, so that axes stand under each other."""
RIGHT, BAR = 0.8, 0.03
"""Layout of a map: where it ends, and how wide the scale of its colours beside it is."""


@dataclass(frozen=True)
class Picture:
    """A drawing, SVG; its title, and a caption that says what to see."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Swatch:
    """The look of a line in a legend that the page has itself: a variable of its style sheet, and an SVG's dashes."""

    variable: str
    dashes: str


def line_of(color: str, dash: Any, label: str) -> dict[str, Any]:
    """The style of a line with a name in the drawing's legend."""
    return {"color": color, "linestyle": dash, "label": label}


def numbered_line(index: int) -> dict[str, Any]:
    """The style of the line of that number, which a legend beside the drawing explains."""
    return {"color": LINES[index % len(LINES)], "linestyle": DASHES[index % len(DASHES)]}


def swatch(index: int) -> Swatch:
    """The look of the line of that number."""
    style = numbered_line(index)
    lengths = () if style["linestyle"] == "-" else style["linestyle"][1]
    return Swatch(INKS[style["color"]], " ".join(f"{length * LINE_WIDTH:g}" for length in lengths))


@contextmanager
def drawing(name: str, rows: int = 1, height: float = 3.1) -> Iterator[tuple[Any, list[Any], Callable[[], str]]]:
    """A figure, its panels from top to bottom, and what makes it SVG. name: its own on the page. height: inches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({**STYLE, **OWN}):
        figure, axes = pyplot.subplots(rows, sharex=True, squeeze=False, figsize=(WIDTH, height))
        figure.subplots_adjust(**MARGINS, bottom=0.5 / height, top=1 - 0.1 / height)
        try:
            yield figure, [axis for (axis,) in axes], lambda: _svg(figure, name)
        finally:
            pyplot.close(figure)


def _svg(figure: Any, name: str) -> str:
    """The drawing to stand in a page, beside others: as wide as its place, and what it refers to by `name`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"\1", text.replace("\n ", " "), count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for color, variable in INKS.items():
        text = text.replace(f": {color}", f": var({variable})")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'href="#|url\(#', rf"\g<0>{name}-", text)
    return re.sub(r"\n\s*", "\n", text)


def plain(value: Tensor) -> str:
    """A number of a caption."""
    return f"{float(value):.2g}".replace("-", "−")


def over_images(axis: Any) -> None:
    """The axis of a run: images that were trained on."""
    from matplotlib.ticker import EngFormatter

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("images trained on")
    axis.set_xlim(left=0)


def over_levels(axis: Any, low: float, high: float) -> None:
    """The axis of λ, from low to high."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlabel(LEVEL)


def draw_map(figure: Any, axis: Any, course: LogHistory, values: Tensor, label: str, norm: Any) -> None:
    """Show values [intervals, bins] as colours over images and λ. label: of the colours; norm: their scale, None is
    linear.
    """
    images = torch.tensor([0, *course.images], dtype=torch.float64)
    seen = values[values.isfinite()]
    limits = {} if norm is not None else {"vmin": 0.0, "vmax": float(seen.quantile(0.995)) if len(seen) else 1.0}
    shown = axis.pcolorfast(images.numpy(), course.edges.numpy(), values.T.numpy(), cmap="viridis", norm=norm, **limits)
    axis.grid(False)
    figure.subplots_adjust(right=RIGHT)
    place = axis.get_position()
    bar = figure.colorbar(shown, figure.add_axes((RIGHT + BAR / 2, place.y0, BAR, place.height)))
    bar.ax.grid(False)
    bar.solids.set_rasterized(True)
    bar.outline.set_visible(False)
    bar.set_label(label)
    axis.set_ylabel(LEVEL)
    over_images(axis)


def logarithmic(axis: Any, values: list[float]) -> None:
    """Give the axis a logarithmic scale with plain numbers, where the values are positive."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if min(values) <= 0:
        return
    axis.set_yscale("log")
    fine = max(values) / min(values) < 5
    axis.yaxis.set_major_locator(LogLocator(subs=range(1, 10) if fine else (1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
