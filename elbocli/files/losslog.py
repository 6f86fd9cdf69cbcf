"""Loss logs (JSONL), and tables (TSV).

Loss log: a LossLogHeader, then a LossLogRow per interval; logs may be concatenated.
Errors: ‖ε−ε̂‖²/D, summed in each bin of λ. Suffix _se: standard error.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from elbocli.core.plots import draw_curve
from elbocli.core.prediction import LIMIT
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.atomic import write_text, writing
from elbocli.files.reading import open_file, reading, whole_lines
from elbocli.files.recognise import expect
from elbocli.files.records import Count, ExtraKeys, Record, parse_json, stored

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BINS = 2000  # fitting builds matrices of bins × bins
MOST_STEPS = 10**15
LARGEST = 1e100  # largest accepted sum of errors, so that intervals can be added without overflow
LEAST = 1e-100  # least accepted sum of errors above 0, so that means don't underflow
Bins = Meta(min_length=1, max_length=MOST_BINS)
Edges = Annotated[list[Annotated[float, Meta(ge=-LIMIT, le=LIMIT)]], Meta(min_length=2, max_length=MOST_BINS + 1)]
Counts = Annotated[list[Count], Bins]
Sums = Annotated[list[Annotated[float, Meta(ge=0, le=LARGEST)]], Bins]


def check_edges(edges: list[float]) -> None:
    """Raise ValueError if the edges of bins don't increase."""
    if sorted(set(edges)) != edges:
        raise ValueError("edges don't increase from bin to bin; correct 'edges'")


HELD_OUT = "held_out"  # key of validation.jsonl's header: number of validation images
EVAL = "eval_"  # prefix of scores of --eval-every in metrics.jsonl


@stored("metrics.jsonl")
class MetricsRow(Record):
    """Metrics after a step. values: metrics by name; None: not finite."""

    step: Count
    images: Count
    values: ExtraKeys = {}


def read_metrics(path: Path) -> Iterator[MetricsRow]:
    """Yield the rows of metrics.jsonl; none if there is no such file. Raises FormatError, DataError."""
    if path.exists():
        with reading(path, kind=DataError), open_file(path) as file:
            for line in whole_lines(file):
                yield MetricsRow.of(parse_json(line, path), path)


@stored("losslog.jsonl, validation.jsonl: first line", "elbo-losslog")
class LossLogHeader(Record, kw_only=True):
    """First line of a loss log.

    edges: of the λ bins, increasing, [bins + 1]. dimensions: number of values per image. about: other keys.
    floor: least density of an adaptive schedule, as a fraction of the uniform density; None: other schedules.
    """

    dimensions: Count | None = None
    weighting: str | None = None
    schedule: str | None = None
    prediction: str | None = None
    floor: Annotated[float, Meta(ge=0, le=1)] | None = None
    about: ExtraKeys = {}
    edges: Edges

    def __post_init__(self) -> None:
        check_edges(self.edges)


@stored("losslog.jsonl, validation.jsonl: other lines", version=0)
class LossLogRow(Record):
    """Errors of one interval of a loss log, in each bin of λ.

    step, images: at the end of the interval.
    count, sum, sumsq: number, sum and sum of squares of each bin's errors, [bins].
    weight: learned w(λ) at the middle of each bin, [bins]; None: not learned.
    """

    step: Count
    images: Count
    count: Counts
    sum: Sums
    sumsq: Sums
    weight: Sums | None = None

    def __post_init__(self) -> None:
        if any(0 < total < LEAST for total in self.sum):
            raise ValueError(f"sum has a number between 0 and {LEAST:g}; delete the line")

    @property
    def sums(self) -> Tensor:
        """Count, sum and sum of squares of the errors, float64 [3, bins]."""
        return torch.tensor([self.count, self.sum, self.sumsq], dtype=torch.float64)


def text_line(record: Record) -> str:
    """Return a record as one line of JSON."""
    return json.dumps(record.json()) + "\n"


def header(edges: Tensor, **about: object) -> str:
    """Return the first line of a loss log.

    edges: [bins + 1]. about: other fields of LossLogHeader.
    """
    return text_line(LossLogHeader.of({**LossLogHeader.head(), **about, "edges": edges.tolist()}, "loss log"))


def line(step: int, images: int, sums: Tensor, weight: Tensor | None = None) -> str:
    """Return the line of one interval of a loss log.

    sums: [3, bins], count, sum and sum of squares of the errors. weight: as in LossLogRow.
    """
    count, total, squares = sums.tolist()
    learned = None if weight is None else weight.tolist()
    return text_line(LossLogRow(step, images, [*map(int, count)], total, squares, learned))


@dataclass(frozen=True)
class LossLog:
    """Headers and rows of one or more loss logs, in the order of their lines; the first entry is a header."""

    entries: list[LossLogHeader | LossLogRow]

    @property
    def headers(self) -> list[LossLogHeader]:
        return [entry for entry in self.entries if isinstance(entry, LossLogHeader)]

    @property
    def rows(self) -> list[LossLogRow]:
        return [entry for entry in self.entries if isinstance(entry, LossLogRow)]

    @property
    def edges(self) -> Tensor:
        """Edges of the bins of λ, increasing, float64 [bins + 1]."""
        return torch.tensor(self.headers[0].edges, dtype=torch.float64)

    @property
    def sums(self) -> Tensor:
        """Count, sum and sum of squares of all errors, float64 [3, bins]."""
        return sum((row.sums for row in self.rows), torch.zeros(3, len(self.edges) - 1, dtype=torch.float64))

    @property
    def images(self) -> int:
        """Largest number of images after which an interval ends."""
        return max((row.images for row in self.rows), default=0)

    @property
    def batch(self) -> int:
        """Images per step."""
        return max((1, *(row.images // max(1, row.step) for row in self.rows[-1:])))

    def chosen(self, *, after: int = -1, last: int = MOST_STEPS) -> "LossLog":
        """Return the log with the intervals that end after step `after`, and at most at step `last`, alone."""
        return LossLog([entry for entry in self.entries if isinstance(entry, LossLogHeader) or after < entry.step <= last])

    def arrays(self) -> "LossLogArrays":
        """Return the intervals as arrays, with the mean error of each."""
        rows = self.rows
        edges = self.edges.numpy()
        sums = np.array([[row.count, row.sum, row.sumsq] for row in rows], float).reshape(len(rows), 3, len(edges) - 1)
        count, total, squares = sums.transpose(1, 0, 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = total / count
            variance = (squares / count - mean**2).clip(min=0) / (count - 1)
        error = np.sqrt(np.where(count > 1, variance, np.nan))
        step = np.array([row.step for row in rows], int)
        images = np.array([row.images for row in rows], int)
        return LossLogArrays(step, images, edges, (edges[:-1] + edges[1:]) / 2, count, mean, error)


def read_losslog(*sources: Path | IO[bytes]) -> LossLog:
    """Read loss logs: run folders, files or streams.

    Raises FormatError: a line is damaged, steps don't increase below a header, or headers don't fit together.
    Raises DataError: a log can't be read. UsageError: no sources, or a log is named twice.
    """
    entries = list[LossLogHeader | LossLogRow]()
    first: LossLogHeader | None = None
    paths = set[Path]()
    for source in sources:
        with _opened(source) as (file, name):
            if isinstance(name, Path):
                if name.resolve() in paths:
                    raise UsageError(f"{name}: named twice; name each loss log once")
                paths.add(name.resolve())
            before = len(entries)
            for number, text in enumerate(whole_lines(file), 1):
                where = f"{name}: line {number}"
                content = parse_json(text, where)
                if "format" in content:
                    header = LossLogHeader.of(content, where)
                    first = first or header
                    _check_header(header, first, name)
                    entries.append(header)
                elif len(entries) == before:
                    break
                else:
                    row = LossLogRow.of(content, where)
                    _check_row(row, header, entries[-1], where)
                    entries.append(row)
            if len(entries) == before:
                raise FormatError(f"{name}: lacks the header of a loss log; name a loss log, such as losslog.jsonl of a run")
    if not entries:
        raise UsageError("no loss log is given; name a run, a loss log, or - for standard input")
    return LossLog(entries)


def _check_header(header: LossLogHeader, first: LossLogHeader, name: object) -> None:
    if header.edges != first.edges:
        raise FormatError(f"{name}: the bins of logsnr in one header differ from those in the first; use each log alone")
    if (HELD_OUT in header.about) != (HELD_OUT in first.about):
        raise FormatError(f"{name}: validation errors can't be added to training errors; use each log alone")


def _check_row(row: LossLogRow, header: LossLogHeader, before: LossLogHeader | LossLogRow, where: str) -> None:
    bins = len(header.edges) - 1
    if {len(row.count), len(row.sum), len(row.sumsq)} != {bins}:
        raise FormatError(f"{where}: count, sum or sumsq lacks a number for each of {bins} bins; delete the line")
    if isinstance(before, LossLogRow) and row.step <= before.step:
        raise FormatError(
            f"{where}: step {row.step} follows step {before.step}, as if two trainings wrote the log; keep one of them"
        )


@contextmanager
def _opened(source: Path | IO[bytes]) -> Iterator[tuple[IO[bytes], Path | str]]:
    if not isinstance(source, Path):
        yield source, "standard input"
        return
    path = source / "losslog.jsonl" if source.is_dir() else source
    expect(path, "a loss log")
    with reading(path, kind=DataError), open(path, "rb") as file:
        yield file, path


@dataclass(frozen=True)
class LossLogArrays:
    """A loss log as arrays of S intervals and B bins of λ.

    step, images: optimizer updates and images at the end of each interval, [S]. edges: of the bins, [B + 1].
    logsnr: middles of the bins, [B]. count: number of errors, [S, B].
    eps_mse, eps_mse_se: mean ‖ε−ε̂‖²/D and its standard error, [S, B]; NaN for fewer than one or two errors.
    """

    step: np.ndarray
    images: np.ndarray
    edges: np.ndarray
    logsnr: np.ndarray
    count: np.ndarray
    eps_mse: np.ndarray
    eps_mse_se: np.ndarray

    def plot(self, axis: "Axes | None" = None, interval: int = -1) -> "Axes":
        """Draw an interval's error by λ, ± 2 standard errors; axis: matplotlib's, by default the current one. Return the axis."""
        name = f"step {self.step[interval]}"
        return draw_curve(self.logsnr, self.eps_mse[interval], name, "E‖ε−ε̂‖²/D", axis, self.eps_mse_se[interval])


class LossLogWriter:
    """Writer of a loss log, which `elbo adapt` can fit a schedule to.

    path: a new file, or a log with the same bins to append to.
    edges: limits of the λ bins, increasing, [bins + 1].
    dimensions: number of values per example, such as C·H·W of an image.
    step: `loss.step` of the DiffusionLoss. Later intervals are removed from an existing log, so that a loop which resumes from a
        checkpoint, or begins again, writes each step once. None: all intervals stay.
    specs: weighting, schedule and prediction to store, such as schedule="edm:mean=-0.4".
    Raises FormatError if the file is not a loss log with the same bins. Raises DataError if it can't be written.
    """

    def __init__(self, path: Path | str, edges: Tensor, *, dimensions: int, step: int | None = None, **specs: str):
        self.path = Path(path)
        self._last = -1
        lines = [header(edges, dimensions=dimensions, **specs)]
        new = not self.path.exists()
        if not new:
            log = read_losslog(self.path)
            if not torch.equal(log.edges, edges.double()):
                raise FormatError(f"{path}: its bins of logsnr differ from those of this loss; name a new file")
            if step is not None:
                log = log.chosen(last=step)
            lines += map(text_line, log.entries[1:])
            self._last = log.rows[-1].step if log.rows else -1
        if new or step is not None:
            write_text(self.path, "".join(lines))

    def write(self, step: int, images: int, sums: Tensor) -> None:
        """Append an interval.

        step, images: optimizer updates done and images seen so far.
        sums: [3, bins], count, sum and sum of squares of the errors since the last interval.
        Raises UsageError if the log already goes up to `step`. Raises DataError if the file can't be written.
        """
        if step <= self._last:
            raise UsageError(
                f"{self.path}: already goes up to step {self._last}, so step {step} can't follow; "
                "give LossLogWriter step=loss.step, which removes later steps, or another file"
            )
        with writing(self.path), open(self.path, "ab") as file:
            file.write(line(step, images, sums).encode())
        self._last = step


def table_text(table: Mapping[str, Tensor | np.ndarray]) -> str:
    """Return columns as TSV. table: name of a column → array or tensor."""
    rows = zip(*(column.tolist() for column in table.values()))
    return "".join("\t".join(map(str, row)) + "\n" for row in [table, *rows])
