"""Render runs as a self-contained HTML page with SVG plots, and a run as a model card for the Hugging Face Hub."""

# The template library escapes all text from files, and the page's Content-Security-Policy forbids scripts and external
# addresses. Equal runs give equal bytes.

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from markupsafe import Markup
from torch import Tensor

from elbocli.core.adaptive import ErrorMoments, bin_middles
from elbocli.core.schedule import Schedule
from elbocli.report.figure import STYLE, import_matplotlib, level_ticks, line_style
from elbocli.report.gather import RunFacts
from elbocli.report.log_history import LogHistory, curve, error_of, score_columns
from elbocli.report.results import score_rows
from elbocli.report.summary import BITS, NATS, differences, figures, headline, logged
from elbocli.runtime.text import visible, visible_lines
from elbocli.scoring.settings import PROTOCOLS
from elbocli.version import __version__

PAGE_STYLE: dict[Any, Any] = {
    "figure.figsize": (4.8, 3.1),  # inches, about the width of a telephone's screen
    # Margins of all plots are equal, so that the axes of plots are aligned.
    "figure.subplot.left": 0.15,
    "figure.subplot.right": 0.955,
    "figure.subplot.bottom": 0.16,
    "figure.subplot.top": 0.97,
    "svg.fonttype": "none",
    "font.size": 10,
    "savefig.transparent": True,
}
LEVEL = "noise  ←  λ  →  data"
ERROR = "‖ε − ε̂‖² / D"
WEIGHT = "w(λ) / max w"
POINTS = 241
LOSS = f"loss, {NATS}"
BOUND = f"bound, {BITS}"


class Line(NamedTuple):
    """A curve: points x and y, and the half-width `spread` of the band around y, [N] each."""

    x: Tensor
    y: Tensor
    spread: Tensor | None = None


def swatch(index: int) -> tuple[str, str]:
    """Return a line's legend style: (colour, SVG dash lengths)."""
    style = line_style(index)
    lengths = () if style["linestyle"] == "-" else style["linestyle"][1]
    return style["color"], " ".join(f"{length * style['linewidth']:g}" for length in lengths)


def _svg(figure: Any, name: str) -> str:
    # name: prefix of all ids, which must be unique on the page.
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    _, start, rest = buffer.getvalue().partition("<svg")
    return Markup(re.sub(r' id="|href="#|url\(#', rf"\g<0>{name}-", start + rest))


def over_images(axis: Any) -> None:
    """Format the horizontal axis as the number of training images."""
    from matplotlib.ticker import EngFormatter

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set(xlabel="images trained on", xlim=(0, None))


def over_levels(axis: Any) -> None:
    """Format the horizontal axis as noise levels λ."""
    axis.margins(x=0)
    level_ticks(axis.xaxis)
    axis.set_xlabel(LEVEL)


def draw_lines(label: str, lines: Sequence[tuple[str, Line | None]], over: Callable[[Any], None] = over_levels) -> Any:
    """Draw named lines in a new figure; return (Axes, legend: [(swatch, name)]), or None without lines.

    label: of the vertical axis. lines: (name in the legend; "": none, line). over: formats the horizontal axis.
    """
    drawn = [(index, name, line) for index, (name, line) in enumerate(lines) if line]
    if not drawn:
        return None
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    axis.set_ylabel(label)
    for index, _, line in drawn:
        _draw(axis, line, line_style(index))
    if over is over_images or label == ERROR:
        _scale_log(axis)
    over(axis)
    return axis, [(swatch(index), name) for index, name, _ in drawn if name]


def _draw(axis: Any, line: Any, style: dict[str, Any]) -> None:
    x, y, spread = line
    if spread is not None:
        below = (y - spread).maximum(0.5 * y)  # a logarithmic axis has no place for 0
        axis.fill_between(x, below, y + spread, color=style["color"], alpha=0.3, linewidth=0)
    axis.plot(x, y, marker="" if len(y) > 1 else "o", **style)


def _scale_log(axis: Any) -> None:
    # Makes the vertical axis logarithmic, unless it has values below 0.
    from matplotlib.ticker import LogLocator

    least, largest = axis.dataLim.intervaly
    if least <= 0:
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    if largest / 1000 < least:
        axis.yaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 5)), minor_formatter="")


def curve_line(facts: RunFacts, name: str) -> Line | None:
    """Return column `name` of metrics.jsonl against the number of training images; None without values."""
    at, values = curve(facts.curves, name)
    _, errors = curve(facts.curves, error_of(name))
    x, y, spread = (torch.tensor(column, dtype=torch.float64) for column in (at, values, errors))
    return Line(x, y, 2 * spread if len(spread) == len(y) else None) if values else None


def scores(runs: Sequence[RunFacts]) -> dict[str, str]:
    """Return the scores of --eval-every: column of metrics.jsonl → title."""
    return {name: title for facts in runs for name, title in score_columns(facts.curves).items()}


def profile_line(log: LogHistory | None, sums: Callable[[LogHistory], Tensor]) -> Line | None:
    """Return the mean error against λ; None without a log or positive errors. sums: LogHistory → sums of errors, [3, bins]."""
    if log is None:
        return None
    moments = ErrorMoments.of_sums(log.edges, sums(log))
    seen = (moments.count > 0) & (moments.mean > 0)
    return Line(moments.middle[seen], moments.mean[seen], 2 * moments.mean_se[seen]) if seen.any() else None


def drawn_line(log: LogHistory | None, sums: Callable[[LogHistory], Tensor]) -> Line | None:
    """Return the density of the drawn λ; None without a log. sums: as in `profile_line`."""
    if log is None:
        return None
    count = sums(log)[0]
    return Line(bin_middles(log.edges), count / count.sum().clamp(min=1) / log.edges.diff())


def weighting_line(facts: RunFacts, place: int = -1) -> Line | None:
    """Return a run's weighting, scaled to maximum 1; None if unknown. place: index in the list of weightings over time."""
    if facts.objective is None:
        return None
    value = facts.objective.effective[place].weighting(at := levels_of(facts))
    return Line(at, value / (float(value.max()) or 1.0))


def levels_of(facts: RunFacts) -> Tensor:
    """Return POINTS evenly spaced λ over a run's range."""
    return torch.linspace(facts.settings.logsnr_min, facts.settings.logsnr_max, POINTS, dtype=torch.float64)


def pictures(*runs: RunFacts) -> dict[str, tuple[str, Any]]:
    """Return the plots that have data: name in the templates → (SVG, legend)."""
    with import_matplotlib().rc_context({**STYLE, **PAGE_STYLE}):
        panels = _panels_of_several(runs) if len(runs) > 1 else _panels_of_one(runs[0])
        for place, (column, title) in enumerate(scores(runs).items()):
            panels[f"score{place}"] = _draw_curve(title, column, runs)
        return {name: (_svg(panel[0].figure, name), panel[1]) for name, panel in panels.items() if panel}


def _draw_curve(label: str, column: str, runs: Sequence[RunFacts]) -> Any:
    named = [(facts.name if len(runs) > 1 else "", curve_line(facts, column)) for facts in runs]
    return draw_lines(label, named, over_images)


def _panels_of_several(runs: Sequence[RunFacts]) -> dict[str, Any]:
    def draw(label: str, line: Callable[[RunFacts], Line | None]) -> Any:
        return draw_lines(label, [(facts.name, line(facts)) for facts in runs])

    return {
        "weighting": draw(WEIGHT, weighting_line),
        **{name: _draw_curve(label, name, runs) for name, label in (("loss", LOSS), ("val_loss", LOSS), ("val_bpd", BOUND))},
        "profiles": draw(ERROR, lambda facts: profile_line(facts.training, LogHistory.late)),
        "held_out": draw(ERROR, lambda facts: profile_line(facts.validation, LogHistory.last)),
    }


def _panels_of_one(facts: RunFacts) -> dict[str, Any]:
    profiles = [
        ("training, last fifth", profile_line(facts.training, LogHistory.late)),
        ("validation, last", profile_line(facts.validation, LogHistory.last)),
        ("training, first tenth", profile_line(facts.training, LogHistory.early)),
    ]
    losses = [("training", curve_line(facts, "loss")), ("validation", curve_line(facts, "val_loss"))]
    return {
        **_objective_panels(facts),
        "loss": draw_lines(LOSS, losses, over_images),
        "bits": _draw_curve(BOUND, "val_bpd", [facts]),
        "profiles": draw_lines(ERROR, profiles),
    }


def _objective_panels(facts: RunFacts) -> dict[str, Any]:
    if facts.objective is None:
        return {}
    w = facts.objective.last.weighting
    at = levels_of(facts)
    panels = {
        "weighting": draw_lines(WEIGHT, [("", weighting_line(facts))]),
        "noise": draw_lines("−dw/dλ over max w", [("", Line(at, -w.slope(at) / (float(w(at).max()) or 1.0)))]),
        "schedule": draw_lines("density p(λ)", _density_lines(facts.objective.schedule, facts)),
    }
    for place in range(len(facts.objective.effective) - 1):
        _draw(panels["weighting"][0], weighting_line(facts, place), {"color": "grey", "linewidth": 0.5, "zorder": 1})
    return panels


def _density_lines(schedule: Schedule | None, facts: RunFacts) -> list[tuple[str, Line | None]]:
    log = facts.training
    if schedule is None:
        return [
            ("drawn, last fifth", drawn_line(log, LogHistory.late)),
            ("drawn, first tenth", drawn_line(log, LogHistory.early)),
        ]
    at = levels_of(facts)
    density = schedule.density(at)
    return [
        ("schedule", Line(at, density.where(density > 0, torch.nan))),
        ("drawn", drawn_line(log, LogHistory.whole)),
    ]


UNKNOWN = "*not known*"


def fill_template(path: Path, filters: dict[str, Any], values: dict[str, Any]) -> str:
    """Render a Jinja template. filters: functions by name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=path.suffix == ".html",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(filters)
    return environment.get_template(path.name).render(**values)


def code(value: Any) -> str:
    """Return a Markdown code span on one line; UNKNOWN for empty text."""
    text = visible(" ".join(str(value).split()))
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else UNKNOWN


def said(value: Any) -> str:
    """Format a value for the model card; UNKNOWN for None and empty values."""
    if value in (None, "", {}):
        return UNKNOWN
    if isinstance(value, dict):
        return ", ".join(f"{code(key)} {said(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(said, value))
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value) if type(value) is int else code(value)


def render(*runs: RunFacts) -> str:
    """Return the HTML page of one run, or of several."""
    filters = {"number": number, "rows": score_rows}
    values = {
        "facts": runs[0],
        "runs": runs,
        "pictures": pictures(*runs),
        "swatch": swatch,
        "scores": scores(runs).values(),
        "differences": differences(runs),
        "figures": figures(runs),
        "headline": headline(runs[0]),
        "protocols": PROTOCOLS,
    }
    template = Path(__file__).with_name("page.html" if len(runs) == 1 else "several.html")
    return visible_lines(fill_template(template, filters, values))


def number(value: Any, digits: int = 4) -> str:
    """Format a number for HTML. digits: significant digits of a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return Markup(f"{value:,}".replace(",", "&#8239;"))
    return re.sub(r"e([+-])0*", r"e\1", f"{value:.{digits}g}").replace("e+", "e").replace("-", "\u2212")


PREVIEW = re.compile(r"step-[0-9]+\.png")
PLAIN = re.compile(r"[A-Za-z][\w.-]*")  # a name that YAML takes without quotes


def model_card(facts: RunFacts) -> str:
    """Return a run's model card: Markdown that begins with metadata in YAML."""
    family = str(facts.network.get("family"))
    metrics = {row.name.replace(" ", "_") for result in facts.results["scores"] for row in score_rows(result.record)}
    figures = logged(facts)
    if any(row.unit.startswith(BITS) for row in figures):
        metrics.add("bits_per_dimension")
    preview = facts.sheets[-1].name if facts.sheets else ""
    values = {
        "facts": facts,
        "figures": figures,
        "version": __version__,
        "metrics": sorted(filter(PLAIN.fullmatch, metrics)),
        "family": family if PLAIN.fullmatch(family) else "",
        "name": PurePath(facts.name).name,  # no path of the machine is published
        "environment": {key: PurePath(value).name if key == "init_run" else value for key, value in facts.environment.items()},
        "file": PurePath(str(facts.data.get("path") or "")).name,
        "picture": f"previews/{preview}" if PREVIEW.fullmatch(preview) else "",
    }
    # Text from files must appear only in code spans, and in YAML.
    filters = {"code": code, "said": said, "rows": score_rows}
    return fill_template(Path(__file__).with_name("model_card.md"), filters, values)
