"""A run, or several, on one page: HTML that needs nothing but itself, with drawings whose colours are the page's own.

Strings from strangers are escaped by the template library. The page forbids itself scripts and any address
(Content-Security-Policy), so that what slips through does nothing. Same facts, same bytes.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from markupsafe import Markup
from torch import Tensor

from elbocli.cli.commands import visible_lines
from elbocli.cli.figure import DASHES, STYLE, brief
from elbocli.core.adaptive import ErrorMoments
from elbocli.evaluate.result import fill_template
from elbocli.evaluate.settings import PROTOCOLS
from elbocli.report.gather import ObjectiveFacts, RunExcess, RunFacts, differences, figures
from elbocli.report.log_history import LogHistory, curve
from elbocli.report.results import score_rows
from elbocli.report.thumbnails import Thumbnails

WIDTH, HEIGHT = 4.8, 3.1
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
LEVEL, ERROR = "noise  ←  λ  →  data", "‖ε − ε̂‖² / D"
MARGINS = {"left": 0.15, "right": 0.955, "bottom": 0.5 / HEIGHT, "top": 1 - 0.1 / HEIGHT}
"""The same in all drawings, so that axes stand under each other."""
RIGHT, BAR = 0.8, 0.03
"""Layout of a map: where it ends, and how wide the scale of its colours beside it is."""
BAND = {"alpha": 0.3, "linewidth": 0}
POINTS = 241
NATS, BITS = "loss, nats per dimension", "bits per dimension"
BARS = "With ± 2 standard errors."
MINIMISED = "The loss that training minimises."


class Picture(NamedTuple):
    """A drawing, SVG; its title, and a caption that says what to see."""

    title: str
    caption: str
    svg: str


class Line(NamedTuple):
    """A curve of a plot: x and y [N], colour, dash, label, and a band of two standard errors around y."""

    x: Tensor
    y: Tensor
    style: dict[str, Any]
    spread: Tensor | None = None


def line_style(color: str, dash: Any, label: str) -> dict[str, Any]:
    """The style of a line with a name in the drawing's legend."""
    return {"color": color, "linestyle": dash, "label": label}


TRAINING, HELD_OUT = line_style(ONE, "-", "training"), line_style(TWO, "--", "validation")


def numbered_style(index: int) -> dict[str, Any]:
    """The style of the line of that number, which a legend beside the drawing explains."""
    return {"color": LINES[index % len(LINES)], "linestyle": DASHES[index % len(DASHES)]}


def swatch(index: int) -> tuple[str, str]:
    """The look of the line of that number in a legend of the page: a variable of its style sheet, and an SVG's dashes."""
    style = numbered_style(index)
    lengths = () if style["linestyle"] == "-" else style["linestyle"][1]
    return INKS[style["color"]], " ".join(f"{length * LINE_WIDTH:g}" for length in lengths)


def new_panel() -> tuple[Any, Any]:
    """A figure of one panel, and the panel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT))
    figure.subplots_adjust(**MARGINS)
    return figure, figure.subplots()


def _svg(figure: Any, name: str) -> str:
    """The drawing to stand in a page, beside others: as wide as its place, and what it refers to by `name`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"\1", text, count=1)
    for color, variable in INKS.items():
        text = text.replace(f": {color}", f": var({variable})")
    return re.sub(r' id="|href="#|url\(#', rf"\g<0>{name}-", text)


def over_images(axis: Any) -> None:
    """The axis of a run: images that were trained on."""
    from matplotlib.ticker import EngFormatter

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("images trained on")
    axis.set_xlim(left=0)


def draw_lines(
    name: str,
    title: str,
    caption: str,
    label: str,
    lines: Sequence[Line | None],
    over_levels: bool = False,
    log: bool = True,
) -> Picture | None:
    """A drawing of lines in one panel; None without any. label: of the vertical axis, which is logarithmic where it can be.

    over_levels: the horizontal axis is λ, not the images that were trained on.
    """
    from matplotlib.ticker import MaxNLocator

    known = [line for line in lines if line is not None]
    if not known:
        return None
    figure, axis = new_panel()
    for line in known:
        if line.spread is not None:
            low, high = (line.y - line.spread).maximum(0.5 * line.y), line.y + line.spread
            axis.fill_between(line.x, low, high, color=line.style["color"], **BAND)
        axis.plot(line.x, line.y, marker="" if len(line.y) > 1 else "o", **line.style)
    values = torch.cat([line.y for line in known])
    if log and float(values.min()) > 0:
        axis.set_yscale("log")
        if values.max() < 10 * values.min():
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_ylabel(label)
    if "label" in known[0].style:
        axis.legend()
    if not over_levels:
        over_images(axis)
    else:
        axis.margins(x=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axis.set_xlabel(LEVEL)
    return Picture(title, caption, _svg(figure, name))


def curve_line(facts: RunFacts, name: str, style: dict[str, Any]) -> Line | None:
    """A curve of metrics.jsonl over the images trained on, with its standard errors; None where it has no values."""
    at, values = curve(facts.report.curves, name)
    _, errors = curve(facts.report.curves, f"{name}_se")
    x, y, spread = (torch.tensor(each, dtype=torch.float64) for each in (at, values, errors))
    return Line(x, y, style, 2 * spread if len(spread) == len(y) else None) if values else None


def profile_line(edges: Tensor, sums: Tensor, style: dict[str, Any]) -> Line | None:
    """The error at each noise level, of sums [3, bins], with its standard errors where there are two; None without any."""
    moments = ErrorMoments.of_sums(edges, sums)
    seen = (moments.count > 0) & (moments.mean > 0)
    spread = (2 * moments.mean_se).where(moments.count > 1, torch.nan)
    return Line(moments.middle[seen], moments.mean[seen], style, spread[seen]) if bool(seen.any()) else None


def levels_of(objective: ObjectiveFacts) -> Tensor:
    """POINTS λ over the objective's range."""
    low, high = objective.report.logsnr
    return torch.linspace(low, high, POINTS, dtype=torch.float64)


def pictures(*runs: RunFacts) -> dict[str, list[Picture]]:
    """The drawings by the section of the page that they belong to, but for those that there is nothing for."""
    import matplotlib

    with matplotlib.rc_context({**STYLE, **OWN}):
        found = _pictures_of_one(runs[0]) if len(runs) == 1 else _pictures_of_several(runs)
    return {section: [each for each in drawn if each is not None] for section, drawn in found.items()}


def _pictures_of_one(facts: RunFacts) -> dict[str, list[Picture | None]]:
    objective, course = facts.objective, facts.course
    loss, val, bits = (
        curve_line(facts, name, style)
        for name, style in (("loss", TRAINING), ("val_loss", HELD_OUT), ("val_bpd", HELD_OUT))
    )
    return {
        "objective": [*_weighting(objective), _schedule(objective, course)] if objective else [],
        "training": [
            draw_lines("loss", "Weighted loss", f"{MINIMISED} {BARS}", NATS, [loss, val]),
            draw_lines("bits", "Bound on held-out images", BARS, BITS, [bits]),
        ],
        "errors": [_errors(course), _profiles(course, facts.held_out)] if course else [],
        "excess": [_excess(facts.excess)] if facts.excess else [],
    }


def _pictures_of_several(runs: Sequence[RunFacts]) -> dict[str, list[Picture | None]]:
    styled = [(facts, numbered_style(index)) for index, facts in enumerate(runs)]
    warning = ""
    if len({facts.settings.weighting for facts in runs}) > 1:
        warning = " Their weightings differ, so their losses can't be compared; errors by noise level and bits per dimension can."

    def curves(name: str, title: str, label: str, caption: str) -> Picture | None:
        return draw_lines(name, title, caption, label, [curve_line(facts, name, style) for facts, style in styled])

    def profiles(name: str, when: str, lines: list[Line | None]) -> Picture | None:
        return draw_lines(name, f"Error by noise level: {when}", BARS, ERROR, lines, over_levels=True)

    courses = [(facts.course, style) for facts, style in styled if facts.course]
    held_out = [(facts.held_out, style) for facts, style in styled if facts.held_out]
    weightings = []
    for facts, style in styled:
        if facts.objective:
            at = levels_of(facts.objective)
            value = facts.objective.weighting(at)
            weightings.append(Line(at, value / (float(value.max()) or 1.0), style))
    counts = "How much each noise level counts in the loss."
    return {
        "objective": [draw_lines("weightings", "Weightings", counts, "w(λ) / max w", weightings, True, log=False)],
        "training": [
            curves("loss", "Weighted loss of training", NATS, MINIMISED + warning),
            curves("val_loss", "Weighted loss of held-out images", NATS, BARS + warning),
            curves("val_bpd", "Bound on held-out images", BITS, BARS),
        ],
        "errors": [
            profiles("course", "training, last fifth", [profile_line(log.edges, log.late(), s) for log, s in courses]),
            profiles("held_out", "validation, last", [profile_line(log.edges, log.sums[-1], s) for log, s in held_out]),
        ],
    }


def _weighting(objective: ObjectiveFacts) -> list[Picture | None]:
    """w, and p_w = −dw/dλ, each over the largest w."""
    w, at = objective.weighting, levels_of(objective)
    value = w(at)
    top = float(value.max()) or 1.0
    rest = float(value[-1]) / top
    earlier = [each.weighting(at) for each in objective.effective[:-1]]
    lines = [Line(at, values / values.max(), {"color": MUTED, "linewidth": 0.5}) for values in earlier]
    lines.append(Line(at, value / top, {"color": ONE}))
    counts = "How much each noise level counts." + (" Thin: earlier, as it was learned." if earlier else "")
    noise = "p_w, the distribution of the noise that this weighting adds to the data."
    if objective.report.rising:
        noise += " Where w rises, p_w is negative, and the loss is not that of any noise augmentation."
    if rest > 0:
        noise += f" At the largest λ a point mass of {rest:.2g} is left."
    slope = [Line(at, -w.slope(at) / top, {"color": TWO})]
    return [
        draw_lines("weighting", f"Weighting {brief(w.spec)}", counts, "w(λ) / max w", lines, True, log=False),
        draw_lines("noise", "Noise that it adds", noise, "−dw/dλ over max w", slope, True, log=False),
    ]


def _schedule(objective: ObjectiveFacts, course: LogHistory | None) -> Picture | None:
    """p(λ) of a fixed schedule, beside the density that was drawn; of one that adapts, the latter over time."""
    if objective.schedule is None:
        if course is None:
            return None
        caption = "How often each noise level was drawn as the schedule followed the errors."
        scale = {"vmin": 0.0, "vmax": float(course.density.quantile(0.995))}
        return _map("schedule", "Schedule, adaptive", caption, course, course.density, "density p(λ)", **scale)
    at = levels_of(objective)
    density = objective.schedule.density(at)
    lines = [Line(at, density.where(density > 0, torch.nan), line_style(ONE, "-", "p(λ)"))]
    if course is not None:
        drawn = LogHistory(course.edges, [1], [course.late(1.0)]).density[0]
        lines.append(Line(course.middle, drawn, line_style(TWO, ":", "drawn")))
    caption = "How often each noise level is drawn. This changes the variance of the loss estimate, but not the loss."
    title = f"Schedule {brief(objective.schedule.base)}"
    return draw_lines("schedule", title, caption, "density", lines, True, log=False)


def _errors(course: LogHistory) -> Picture | None:
    """The error at each noise level over time."""
    from matplotlib.colors import LogNorm

    error = course.error
    seen = error[error.isfinite() & (error > 0)]
    if not len(seen):
        return None
    low = float(seen.min())
    caption = "The unweighted error of the network's ε̂ for each dimension, as it was last seen."
    norm = LogNorm(low, float(seen.max()))
    return _map("errors", "Error by noise level, over time", caption, course, error.clamp(min=low), ERROR, norm=norm)


def _map(name: str, title: str, caption: str, course: LogHistory, values: Tensor, label: str, **scale: Any) -> Picture:
    """Values [intervals, bins] as colours over images and λ. label, scale: of the colours."""
    figure, axis = new_panel()
    images = torch.tensor([0, *course.images], dtype=torch.float64)
    shown = axis.pcolorfast(images.numpy(), course.edges.numpy(), values.T.numpy(), cmap="viridis", **scale)
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
    return Picture(title, caption, _svg(figure, name))


def _profiles(course: LogHistory, held_out: LogHistory | None) -> Picture | None:
    """The error at each noise level: at first, at last, and of images held out."""
    lines = [
        profile_line(course.edges, course.early(), line_style(MUTED, ":", "training, first tenth")),
        profile_line(course.edges, course.late(), line_style(ONE, "-", "training, last fifth")),
    ]
    caption = BARS
    if held_out is not None:
        lines.append(profile_line(held_out.edges, held_out.sums[-1], line_style(TWO, "--", "validation, last")))
        caption += (
            " Validation uses the averaged weights, which lag behind early in training. If it stays above training later, the "
            "network is overfitting."
        )
    return draw_lines("profiles", "Error by noise level, now", caption, ERROR, lines, over_levels=True)


def _excess(found: RunExcess) -> Picture | None:
    """The error of training and of images held out, over the least one."""
    lines = [Line(found.own.middle, found.least, line_style(MUTED, "-", "least error on these images"))]
    for moments, style in ((found.own, TRAINING), (found.new, HELD_OUT)):
        if moments is not None:
            lines.append(Line(moments.middle[moments.seen], moments.mean[moments.seen], style))
    gain = found.report["excess"]["training"]
    caption = (
        "No network can be below the grey line on its training images. The rest is what training can still gain: "
        f"{gain['nats_per_dimension']:.4g} ± {2 * gain['se']:.2g} nats per dimension of the weighted loss."
    )
    return draw_lines("excess", "Error over the least one", caption, ERROR, lines, True, log=False)


def render(*runs: RunFacts) -> str:
    """The page of a run, or of several."""
    filters = {
        "number": number,
        "error": error,
        "source": source,
        "svg": Markup,
        "rows": score_rows,
    }
    name = "page.html" if len(runs) == 1 else "several.html"
    values = {
        "facts": runs[0],
        "runs": runs,
        "pictures": pictures(*runs),
        "swatches": [swatch(index) for index in range(len(runs))],
        "differences": differences(runs),
        "figures": figures(runs),
        "protocols": PROTOCOLS,
    }
    return visible_lines(fill_template(Path(__file__).with_name(name), filters, values))


def number(value: Any) -> str:
    """A number for people: 4 significant digits, whole ones with thousands apart; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return Markup(f"{value:,}".replace(",", "&thinsp;"))
    return _minus(f"{value:.4g}")


def error(value: float) -> str:
    """An error for people: 2 significant digits."""
    return _minus(f"{value:.2g}")


def _minus(text: str) -> str:
    """2.3e-05 → 2.3e−5."""
    return re.sub(r"e([+-])0*", r"e\1", text).replace("e+", "e").replace("-", "\u2212")


def source(strip: Thumbnails) -> str:
    """A row of pictures as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(strip.png).decode()
