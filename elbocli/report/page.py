"""Render one run, or several, as a self-contained HTML page, with SVG plots in the colours of the page's style sheet.

The template library escapes all text from files. The page's Content-Security-Policy also forbids scripts and external
addresses. The same facts give the same bytes.
"""

import base64
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from markupsafe import Markup
from torch import Tensor

from elbocli.cli.commands import visible_lines
from elbocli.cli.figure import DASHES, STYLE
from elbocli.core.adaptive import ErrorMoments
from elbocli.evaluate.result import fill_template
from elbocli.evaluate.settings import PROTOCOLS
from elbocli.report.gather import RunFacts, differences, figures
from elbocli.report.log_history import LogHistory, curve
from elbocli.report.results import score_rows
from elbocli.report.thumbnails import Thumbnails

WIDTH, HEIGHT = 4.8, 3.1
"""Size of a plot in inches, about the width of a telephone's screen."""
NAMES = ("ink", "muted", "rule", "one", "two", "three", "four", "five", "six")
INKS = {f"#0{place}0{place}0{place}": f"--{name}" for place, name in enumerate(NAMES, 1)}
"""Placeholder colours in plots, and the CSS variables of the page that replace them."""
INK, MUTED, RULE, *_ = INKS
LINES = tuple(INKS)[3:]
"""Colours of lines; each line also has its own dash pattern."""
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
LEVEL, ERROR, WEIGHT = "noise  ←  λ  →  data", "‖ε − ε̂‖² / D", "w(λ) / max w"
MARGINS = {"left": 0.15, "right": 0.955, "bottom": 0.5 / HEIGHT, "top": 1 - 0.1 / HEIGHT}
"""Margins of all plots, equal so that the axes of plots are aligned."""
RIGHT, BAR = 0.8, 0.03
"""Layout of a colour map, as shares of the figure's width: right edge of the map, and width of the colour bar."""
POINTS = 241
NATS, BITS = "loss, nats per dimension", "bits per dimension"


class Line(NamedTuple):
    """A curve of a plot: x and y, [N] each. spread: half-width of the band around y, two standard errors, [N]."""

    x: Tensor
    y: Tensor
    spread: Tensor | None = None


def numbered_style(index: int) -> dict[str, Any]:
    """Return the colour and dash pattern of line number `index`, for matplotlib."""
    return {"color": LINES[index % len(LINES)], "linestyle": DASHES[index % len(DASHES)]}


def swatch(index: int) -> tuple[str, str]:
    """Return the style of line number `index` for an HTML legend: CSS variable of its colour, and SVG dash lengths."""
    style = numbered_style(index)
    lengths = () if style["linestyle"] == "-" else style["linestyle"][1]
    return INKS[style["color"]], " ".join(f"{length * LINE_WIDTH:g}" for length in lengths)


def new_panel(label: str) -> Any:
    """Make a figure with one plot, and return its matplotlib Axes. label: label of the vertical axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT))
    figure.subplots_adjust(**MARGINS)
    axis = figure.subplots()
    axis.set_ylabel(label)
    return axis


def _svg(figure: Any, name: str) -> str:
    """Return a figure as inline SVG: as wide as its container, with `name` as the prefix of all ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"\1", text, count=1)
    for color, variable in INKS.items():
        text = text.replace(f": {color}", f": var({variable})")
    return Markup(re.sub(r' id="|href="#|url\(#', rf"\g<0>{name}-", text))


def over_images(axis: Any) -> None:
    """Format the horizontal axis as the number of training images."""
    from matplotlib.ticker import EngFormatter

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("images trained on")
    axis.set_xlim(left=0)


def over_levels(axis: Any) -> None:
    """Format the horizontal axis as noise levels λ."""
    from matplotlib.ticker import MaxNLocator

    axis.margins(x=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlabel(LEVEL)


def draw_lines(
    label: str,
    lines: Sequence[Line | None],
    names: Sequence[str] = (),
    over: Callable[[Any], None] = over_levels,
    log: bool = False,
) -> Any:
    """Draw lines in a new figure, and return its axes; None without lines.

    label: label of the vertical axis. names: legend entries. over: function that formats the horizontal axis. log: use a
    logarithmic vertical axis if all values are positive.
    """
    styled = [(line, numbered_style(index)) for index, line in enumerate(lines) if line is not None]
    if not styled:
        return None
    axis = new_panel(label)
    for (x, y, spread), style in styled:
        if spread is not None:
            axis.fill_between(x, (y - spread).maximum(0.5 * y), y + spread, color=style["color"], alpha=0.3, linewidth=0)
        axis.plot(x, y, marker="" if len(y) > 1 else "o", **style)
    values = torch.cat([line.y for line, _ in styled])
    if log and float(values.min()) > 0:
        axis.set_yscale("log")
        if values.max() < 10 * values.min():
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
    if names:
        axis.legend(axis.lines, [name for name, line in zip(names, lines) if line is not None])
    over(axis)
    return axis


def draw_map(label: str, course: LogHistory, values: Tensor, **scale: Any) -> Any:
    """Draw values [intervals, bins] as colours over training images and λ. label: of the colours. scale: norm of the colours."""
    axis = new_panel(LEVEL)
    images = torch.tensor([0, *course.images], dtype=torch.float64)
    shown = axis.pcolorfast(images.numpy(), course.edges.numpy(), values.T.numpy(), cmap="viridis", **scale)
    axis.grid(False)
    axis.figure.subplots_adjust(right=RIGHT)
    place = axis.get_position()
    bar = axis.figure.colorbar(shown, axis.figure.add_axes((RIGHT + BAR / 2, place.y0, BAR, place.height)))
    bar.ax.grid(False)
    bar.solids.set_rasterized(True)
    bar.outline.set_visible(False)
    bar.set_label(label)
    over_images(axis)
    return axis


def curve_line(facts: RunFacts, name: str) -> Line | None:
    """Return a column of metrics.jsonl over the number of training images, with standard errors; None without values."""
    at, values = curve(facts.report.curves, name)
    _, errors = curve(facts.report.curves, f"{name}_se")
    x, y, spread = (torch.tensor(each, dtype=torch.float64) for each in (at, values, errors))
    return Line(x, y, 2 * spread if len(spread) == len(y) else None) if values else None


def profile_line(log: LogHistory | None, sums: Callable[[LogHistory], Tensor]) -> Line | None:
    """Return the mean error at each noise level; None without errors. sums: function that adds up a part of the log."""
    if log is None:
        return None
    moments = ErrorMoments.of_sums(log.edges, sums(log))
    seen = (moments.count > 0) & (moments.mean > 0)
    spread = (2 * moments.mean_se).where(moments.count > 1, torch.nan)
    return Line(moments.middle[seen], moments.mean[seen], spread[seen]) if bool(seen.any()) else None


def weighting_line(facts: RunFacts) -> Line | None:
    """Return a run's current weighting, divided by its largest value."""
    if not facts.effective:
        return None
    value = facts.effective[-1].weighting(at := levels_of(facts))
    return Line(at, value / (float(value.max()) or 1.0))


def levels_of(facts: RunFacts) -> Tensor:
    """Return POINTS evenly spaced λ over a run's range."""
    return torch.linspace(facts.settings.logsnr_min, facts.settings.logsnr_max, POINTS, dtype=torch.float64)


def pictures(*runs: RunFacts) -> dict[str, str]:
    """Draw the plots of one run, or of several, as SVG, by their names in the templates; plots without data are left out."""
    import matplotlib

    with matplotlib.rc_context({**STYLE, **OWN}):
        panels = _panels_of_one(runs[0]) if len(runs) == 1 else _panels_of_several(runs)
        return {name: _svg(axis.figure, name) for name, axis in panels.items() if axis is not None}


def _panels_of_several(runs: Sequence[RunFacts]) -> dict[str, Any]:
    late = [profile_line(facts.course, LogHistory.late) for facts in runs]
    held_out = [profile_line(facts.held_out, LogHistory.last) for facts in runs]
    return {
        "weighting": draw_lines(WEIGHT, [weighting_line(facts) for facts in runs]),
        **{
            name: draw_lines(label, [curve_line(facts, name) for facts in runs], over=over_images, log=True)
            for name, label in (("loss", NATS), ("val_loss", NATS), ("val_bpd", BITS))
        },
        "profiles": draw_lines(ERROR, late, log=True),
        "held_out": draw_lines(ERROR, held_out, log=True),
    }


def _panels_of_one(facts: RunFacts) -> dict[str, Any]:
    course, held_out = facts.course, facts.held_out
    loss, val_loss, bits = (curve_line(facts, name) for name in ("loss", "val_loss", "val_bpd"))
    profiles = [profile_line(course, LogHistory.late), profile_line(held_out, LogHistory.last)]
    names = ["training, last fifth", "validation, last"]
    panels = {
        **_objective_panels(facts),
        "loss": draw_lines(NATS, [loss, val_loss], ["training", "validation"], over_images, log=True),
        "bits": draw_lines(BITS, [bits], over=over_images, log=True),
    }
    if course:
        early = profile_line(course, LogHistory.early)
        panels["errors"] = _errors(course)
        panels["profiles"] = draw_lines(ERROR, [*profiles, early], [*names, "training, first tenth"], log=True)
        if facts.report.excess:
            least = Line(course.middle, torch.tensor(facts.report.excess["least"], dtype=torch.float64))
            panels["excess"] = draw_lines(ERROR, [*profiles, least], [*names, "least error on these images"])
    return panels


def _objective_panels(facts: RunFacts) -> dict[str, Any]:
    """Draw w and p_w = −dw/dλ, both divided by the largest w, and the density p(λ): for a fixed schedule with the density of
    the draws, for an adaptive schedule as a map over time.
    """
    if not facts.effective:
        return {}
    w, at, course = facts.effective[-1].weighting, levels_of(facts), facts.course
    slope = Line(at, -w.slope(at) / (float(w(at).max()) or 1.0))
    weighting, noise = draw_lines(WEIGHT, [weighting_line(facts)]), draw_lines("−dw/dλ over max w", [slope])
    for earlier in facts.effective[:-1]:
        value = earlier.weighting(at)
        weighting.plot(at, value / value.max(), color=MUTED, linewidth=0.5, zorder=1)
    panels = {"weighting": weighting, "noise": noise}
    if facts.schedule:
        density, drawn = facts.schedule.density(at), None
        if course:
            drawn = Line(course.middle, LogHistory(course.edges, [1], [course.late(1.0)]).density[0])
        lines = [Line(at, density.where(density > 0, torch.nan)), drawn]
        panels["schedule"] = draw_lines("density", lines, ["p(λ)", "drawn"])
    elif course:
        top = float(course.density.quantile(0.995))
        panels["schedule"] = draw_map("density p(λ)", course, course.density, vmin=0.0, vmax=top)
    return panels


def _errors(course: LogHistory) -> Any:
    """Draw a map of the error at each noise level over time."""
    error = course.error
    seen = error[error.isfinite() & (error > 0)]
    if not len(seen):
        return None
    low, high = float(seen.min()), float(seen.max())
    return draw_map(ERROR, course, error.clamp(min=low), norm="log", vmin=low, vmax=high)


def render(*runs: RunFacts) -> str:
    """Return the HTML page of one run, or of several."""
    filters = {"number": number, "source": source, "rows": score_rows}
    values = {
        "facts": runs[0],
        "runs": runs,
        "pictures": pictures(*runs),
        "swatches": [swatch(index) for index in range(len(runs))],
        "differences": differences(runs),
        "figures": figures(runs),
        "protocols": PROTOCOLS,
    }
    template = Path(__file__).with_name("page.html" if len(runs) == 1 else "several.html")
    return visible_lines(fill_template(template, filters, values))


def number(value: Any, digits: int = 4) -> str:
    """Format a number: floats with `digits` significant digits, integers with thousands separated; other values as str."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return Markup(f"{value:,}".replace(",", "&thinsp;"))
    return re.sub(r"e([+-])0*", r"e\1", f"{value:.{digits}g}").replace("e+", "e").replace("-", "\u2212")


def source(strip: Thumbnails) -> str:
    """Return a row of pictures as a data URL."""
    return "data:image/png;base64," + base64.b64encode(strip.png).decode()
