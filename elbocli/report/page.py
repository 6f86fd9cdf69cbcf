"""One page of HTML about runs, loss logs, results and images; and the model card of a run."""

# Jinja escapes all text from files. Plots and pictures are data URLs, and the page's Content-Security-Policy forbids
# everything else. Equal inputs give equal bytes.

import io
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image

from elbocli.core.adaptive import ErrorMoments
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.errors import DataError, ElboError
from elbocli.files.atomic import write_text
from elbocli.files.contact_sheet import CELL, draw_contact_sheet
from elbocli.files.losslog import EVAL, read_losslog, read_metrics
from elbocli.files.reading import reading
from elbocli.files.recognise import RESULTS, recognise
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.report.describe import Description, describe, images_of, result_tables
from elbocli.report.figure import COLORS, STYLE, Values, draw_band, import_matplotlib, lettered, level_ticks, line_style
from elbocli.report.runs_table import is_score, progress_of_runs, table_of_runs
from elbocli.runs.config import read_run_config
from elbocli.runs.open import schedule_of, weighting_of_run
from elbocli.runs.train_settings import ADAPTIVE
from elbocli.runtime.table import Table
from elbocli.runtime.text import visible, visible_lines
from elbocli.version import __version__

if TYPE_CHECKING:
    from jinja2 import Template

POINTS = 400  # largest number of points in a curve; neighbouring points of longer curves are averaged
LATE = 0.8  # errors by noise level are those after this fraction of the steps
PREVIEWS = 6  # largest number of previews of a run
FEW = 20  # shorter curves have markers
LONGEST = 40  # letters of a name in a legend


class Panel(NamedTuple):
    """Axes of a plot. xlabel: IMAGES or LEVELS. scale: of the vertical axis, as matplotlib calls it."""

    title: str
    xlabel: str
    scale: str = "log"


IMAGES = "images trained on"
LEVELS = "noise  ←  λ  →  data"
LOSS = Panel("Weighted loss, nats per dimension", IMAGES)
EPS_MSE = Panel("Unweighted error ‖ε − ε̂‖² / D", IMAGES)
BOUND = Panel("Variational bound of validation images, bits per dimension", IMAGES, "linear")
ERROR = Panel("Error ‖ε − ε̂‖² / D by noise level, last fifth of training", LEVELS)
VALIDATION = Panel("Error ‖ε − ε̂‖² / D by noise level, last validation", LEVELS)
DENSITY = Panel("Density p(λ) of the noise levels", LEVELS, "linear")
WEIGHT = Panel("Weighting w(λ) / max w", LEVELS, "linear")
NO_FACTS = Description("", {})
METRICS = {"loss": (LOSS, "training"), "val_loss": (LOSS, "validation"), "val_bpd": (BOUND, "")}


class Curve(NamedTuple):
    """A line of a plot: points x and y, and standard errors of y, [N] each. name: in the legend."""

    name: str
    x: Values
    y: Values
    se: Values | None = None


class Picture(NamedTuple):
    """A plot or picture as a data URL."""

    title: str
    url: str


@dataclass
class Entry:
    """Content of the page about one source.

    facts: description of a run or loss log; without facts: another source. missing: messages about files of the run that can't be read.
    """

    name: str
    facts: Description = NO_FACTS
    verdict: str = ""
    curves: dict[Panel, list[Curve]] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @contextmanager
    def noting_errors(self) -> Iterator[None]:
        """Add the message of an ElboError in the block to `missing`."""
        try:
            yield
        except ElboError as error:
            self.missing.append(error.for_command_line)

    def add(self, panel: Panel, name: str, x: Values, y: Values, se: Values | None = None) -> None:
        self.curves.setdefault(panel, []).append(Curve(name, x, y, se))


def write_report(sources: Sequence[Path], out: Path | IO[bytes], card: bool = False) -> None:
    """Write a page of HTML about `sources`, or a run's model card.

    sources: runs, loss logs, results (JSON) and images; for a card, a single run.
    Raises FormatError or DataError: a source is of another kind, or damaged.
    """
    text = render_card(sources[0]) if card else render_page(sources)
    if isinstance(out, Path):
        write_text(out, text)
    else:
        out.write(text.encode(errors="backslashreplace"))


def render_page(sources: Sequence[Path]) -> str:
    """Return the page of `write_report`."""
    entries = [read_source(source) for source in sources]
    runs = [source for source in sources if recognise(source) == "a run"]
    summary = [table_of_runs(progress_of_runs(runs))] if runs else []
    template = _template("page.html")
    return visible_lines(
        template.render(entries=entries, summary=summary, training=_plots(entries, IMAGES), levels=_plots(entries, LEVELS))
    )


def read_source(path: Path) -> Entry:
    """Read a run, a loss log, a result (JSON) or images. Raises FormatError or DataError."""
    name = str(path)
    kind = recognise(path)
    if kind == "a loss log":
        entry = Entry(name, describe(path))
        _add_errors(entry, path)
        header = read_losslog(path).headers[0]
        low, *_, high = header.edges
        with entry.noting_errors():
            if header.weighting:
                schedule = None if header.schedule in (None, ADAPTIVE) else resolve_schedule(header.schedule, low, high)
                _add_objective(entry, resolve_weighting(header.weighting), schedule, low, high)
        return entry
    if kind in RESULTS:
        return Entry(name, tables=result_tables(path))
    if kind in ("a dataset", "samples", "a folder of images"):
        return Entry(name, pictures=[_picture(name, draw_contact_sheet(*images_of(path)))])
    return read_run(path)


def read_run(path: Path) -> Entry:
    """Read a run, which may be unfinished. Messages about its damaged files go to `missing`. Raises FormatError: not a run."""
    read_run_config(path)
    entry = Entry(str(path))
    with entry.noting_errors():
        entry.facts = describe(path)
    readers = {"losslog.jsonl": _add_errors, "metrics.jsonl": _add_metrics, "validation.jsonl": _add_validation}
    for name, add in readers.items():
        if (path / name).exists():
            with entry.noting_errors():
                add(entry, path / name)
    with entry.noting_errors():
        settings, weightings = weighting_of_run(path)
        _add_objective(entry, weightings[-1].weighting, schedule_of(settings), settings.logsnr_min, settings.logsnr_max)
    sheets = sorted(path.glob("previews/step-*.png"))
    for sheet in reversed(sheets[:: -(len(sheets) // PREVIEWS + 1)]):  # the last, and others at equal intervals
        with entry.noting_errors():
            entry.pictures.append(_read_preview(sheet))
    for file in sorted(path.glob("*.json")):
        if recognise(file) in RESULTS:
            with entry.noting_errors():
                entry.tables += result_tables(file)
    return entry


def _add_metrics(entry: Entry, path: Path) -> None:
    columns = dict[str, list[tuple[int, float]]]()
    for row in read_metrics(path):
        for name, value in row.values.items():
            if isinstance(value, float) and (name in METRICS or is_score(name)):
                columns.setdefault(name, []).append((row.images, value))
    for name, points in columns.items():
        panel, label = METRICS.get(name) or (Panel(name.removeprefix(EVAL).replace("_", " "), IMAGES, "linear"), "")
        images, values = np.array(points, float).T
        entry.add(panel, label, _pooled(images), _pooled(values))


def _pooled(values: np.ndarray) -> np.ndarray:
    return np.array([part.mean() for part in np.array_split(values, min(len(values), POINTS))])


def _add_errors(entry: Entry, path: Path) -> None:
    log = read_losslog(path)
    intervals = log.arrays()
    if not log.rows:
        return
    total = np.nansum(intervals.eps_mse * intervals.count, 1)
    entry.add(EPS_MSE, "", _pooled(intervals.images), _pooled(total / intervals.count.sum(1).clip(1)))
    late = log.chosen(after=int(log.rows[-1].step * LATE))
    moments = ErrorMoments.of_sums(late.edges, late.sums)
    seen = moments.seen
    entry.add(ERROR, "", moments.middle[seen], moments.mean[seen], moments.mean_se[seen])
    drawn = late.sums[0]
    entry.add(DENSITY, "drawn", moments.middle, drawn / drawn.sum() / late.edges.diff())


def _add_validation(entry: Entry, path: Path) -> None:
    log = read_losslog(path).arrays()
    if len(log.step):
        entry.add(VALIDATION, "", log.logsnr, log.eps_mse[-1], log.eps_mse_se[-1])


def _add_objective(entry: Entry, weighting: Weighting, schedule: Schedule | None, low: float, high: float) -> None:
    levels = torch.linspace(low, high, POINTS, dtype=torch.float64)
    value = weighting(levels)
    entry.add(WEIGHT, "", levels, value / (float(value.max()) or 1))
    entry.verdict = f"The weighting {weighting.spec} {weighting.verdict(*weighting.within_support(low, high))}."
    if schedule:
        entry.add(DENSITY, f"schedule {schedule.base}", levels, schedule.density(levels))


# Pictures


def _picture(title: str, image: Image.Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return Picture(title, f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}")


def _read_preview(path: Path) -> Picture:
    with reading(path, kind=DataError), Image.open(path, formats=["PNG"]) as sheet:
        sheet.thumbnail((4 * CELL, 4 * CELL))
        return _picture(f"step-{int(path.stem[5:]):08}", sheet)


def _plots(entries: Sequence[Entry], xlabel: str) -> list[Picture]:
    panels = dict.fromkeys(panel for entry in entries for panel in entry.curves if panel.xlabel == xlabel)
    import_matplotlib()
    import matplotlib

    with matplotlib.rc_context({**STYLE, "svg.fonttype": "none"}):
        return [Picture(panel.title, _plot(panel, entries)) for panel in panels]


def _plot(panel: Panel, entries: Sequence[Entry]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.2))
    axis = figure.subplots()
    several = sum(panel in entry.curves for entry in entries) > 1
    for number, entry in enumerate(entries):
        for index, curve in enumerate(entry.curves.get(panel, [])):
            style = line_style(index)
            style["color"] = COLORS[(number if several else index) % len(COLORS)]
            style["marker"] = "." if len(curve.x) < FEW else ""
            style["label"] = lettered(", ".join(filter(None, [entry.name[-LONGEST:] * several, curve.name])))
            draw_band(axis, curve.x, curve.y, curve.se, **style)
    axis.set(yscale=panel.scale, xlabel=panel.xlabel)
    if panel.xlabel == LEVELS:
        level_ticks(axis.xaxis)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(bbox_to_anchor=(0, -0.2))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{b64encode(buffer.getvalue()).decode()}"


# Text


def _template(name: str) -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("elbocli.report", ""),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["code"] = code
    return environment.get_template(name)


def code(value: str) -> str:
    """Return a value as a Markdown code span on one line."""
    text = visible(" ".join(value.split()))
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text or '-'}`"


def render_card(run: Path) -> str:
    """Return a run's model card: Markdown for the Hugging Face Hub, with metadata in YAML. Raises FormatError: not a run."""
    # The template puts text from files into code spans alone, and leaves out paths of this machine.
    entry = read_run(run)
    return _template("model_card.md").render(title=run.resolve().name, entry=entry, version=__version__)
