"""Errors by noise level, and numbers by image: logs of a run, the least error (elbo-optimum, JSON), likelihoods (TSV).

losslog.jsonl is a LossLogHeader, then a LossLogRow per interval, of ‖ε−ε̂‖²/D in each bin of λ. Logs may be concatenated.
metrics.jsonl has numbers by step, an optimum the mean error in each bin; _se is a standard error.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from elbocli.core.prediction import LIMIT
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.atomic import write_text, writing
from elbocli.files.reading import read_text, reading, whole_lines
from elbocli.files.recognise import expect
from elbocli.files.records import Count, Record, parse_json, read_json, stored

MOST_BINS = 2000
"""Fitting takes matrices of bins by bins."""
LARGEST = 1e100
"""Bound of a sum of errors, so that lines add up and a mean can be drawn on a logarithmic scale."""
Bins = Meta(min_length=1, max_length=MOST_BINS)
Edges = Annotated[list[Annotated[float, Meta(ge=-LIMIT, le=LIMIT)]], Meta(min_length=2, max_length=MOST_BINS + 1)]
Counts = Annotated[list[Count], Bins]
Sums = Annotated[list[Annotated[float, Meta(ge=0, le=LARGEST)]], Bins]


def check_edges(edges: list[float]) -> None:
    """Raise ValueError for edges of bins that don't rise."""
    if sorted(set(edges)) != edges:
        raise ValueError("edges must rise")


@stored("metrics.jsonl")
class MetricsRow(Record, frozen=True):
    """Numbers by name at a step; None for one that is not finite."""

    REST: ClassVar[str] = "values"

    step: Count
    images: Count
    values: dict[str, Any] = {}


@stored("losslog.jsonl, validation.jsonl: first line", "elbo-losslog")
class LossLogHeader(Record, frozen=True, kw_only=True):
    """The first line: what the errors are of, and the edges of the λ bins, which rise. floor: of an adaptive schedule, the
    least density that it ever had, relative to a uniform one. about: the images of a validation.
    """

    REST: ClassVar[str] = "about"

    dimensions: Count | None = None
    weighting: str | None = None
    schedule: str | None = None
    prediction: str | None = None
    floor: Annotated[float, Meta(ge=0, le=1)] | None = None
    about: dict[str, Any] = {}
    edges: Edges

    def __post_init__(self) -> None:
        check_edges(self.edges)


@stored("losslog.jsonl, validation.jsonl: other lines", version=0)
class LossLogRow(Record, frozen=True):
    """One interval: for each bin how many errors fell on it since the line before, their sum, and that of their squares.

    weight: where the weighting is learned, w in the middle of each bin, as the interval was trained with it.
    """

    step: Count
    images: Count
    count: Counts
    sum: Sums
    sumsq: Sums
    weight: Sums | None = None

    @property
    def sums(self) -> Tensor:
        """Count, sum, sum of squares, float64 [3, bins]."""
        return torch.tensor([self.count, self.sum, self.sumsq], dtype=torch.float64)


def text_line(record: Record) -> str:
    """The line of a log that holds a record."""
    return json.dumps(record.json()) + "\n"


def header(edges: Tensor, **about: Any) -> str:
    """The first line."""
    return text_line(LossLogHeader.of({**LossLogHeader.head(), **about, "edges": edges.tolist()}, "loss log"))


def line(step: int, images: int, sums: Tensor, weight: Tensor | None = None) -> str:
    """One interval. sums: [3, bins] count, sum, sum of squares. weight: [bins] w of a learned weighting."""
    count, total, squares = sums.tolist()
    learned = None if weight is None else weight.tolist()
    return text_line(LossLogRow(step, images, [*map(int, count)], total, squares, learned))


def read_losslog(file: IO[Any], name: object) -> Iterator[LossLogHeader | LossLogRow]:
    """Yield the headers and intervals of a loss log, one line at a time. Raises FormatError with the line's number."""
    bins = 0
    for number, text in enumerate(whole_lines(file), 1):
        where = f"{name}: line {number}"
        content = parse_json(text, where)
        if "format" in content:
            first = LossLogHeader.of(content, where)
            bins = len(first.edges) - 1
            yield first
            continue
        if not bins:
            break
        row = LossLogRow.of(content, where)
        if {len(row.count), len(row.sum), len(row.sumsq)} != {bins}:
            raise FormatError(f"{where}: count, sum and sumsq must be {bins} numbers each, as the header before says")
        yield row
    if not bins:
        raise FormatError(f"{name}: no header in it; expected a loss log ('losslog.jsonl' of a run)")


@dataclass
class LossLog:
    """One or more logs added up. sums: [3, bins]. batch: images per step, as the last line says."""

    header: LossLogHeader
    edges: Tensor
    sums: Tensor
    images: int = 0
    lines: int = 0
    batch: int = 1


def read_logs(sources: Iterable[Path | IO[bytes]], since: int = 0) -> LossLog:
    """Add up runs, logs and streams, without the intervals up to step `since`. Raises FormatError."""
    total: LossLog | None = None
    for source in sources:
        for entry in _entries(source):
            if isinstance(entry, LossLogHeader):
                edges = torch.tensor(entry.edges, dtype=torch.float64)
                total = total or LossLog(entry, edges, torch.zeros(3, len(edges) - 1, dtype=torch.float64))
                if entry.edges != total.header.edges:
                    raise FormatError(
                        f"{source}: has other bins of logsnr than the log before; fit a schedule to each alone"
                    )
            elif total and entry.step > since:
                total.sums += entry.sums
                total.images = max(total.images, entry.images)
                total.lines += 1
                total.batch = max(1, entry.images // max(1, entry.step))
    if total is None:
        raise UsageError("name a run, a loss log, or - for standard input")
    return total


def _entries(source: Path | IO[bytes]) -> Iterator[LossLogHeader | LossLogRow]:
    if not isinstance(source, Path):
        yield from read_losslog(source, "standard input")
        return
    path = source / "losslog.jsonl" if source.is_dir() else source
    expect(path, "loss log")
    with reading(path, kind=DataError), open(path, "rb") as file:
        yield from read_losslog(file, path)


class LossLogWriter:
    """Writes a loss log as `elbo train` does, one interval after the other, for `elbo adapt` to fit a schedule to.

    path: a new file, or an earlier log with the same bins, which it continues. edges: [bins + 1] rising λ. dimensions:
    of an example. weighting, schedule, prediction: SPECs, for whoever reads it. Raises DataError when it can't be
    written.
    """

    def __init__(self, path: Path | str, edges: Tensor, *, dimensions: int, **specs: str):
        self.path = Path(path)
        if not self.path.exists():
            self._append(header(edges, dimensions=dimensions, **specs))

    def write(self, step: int, images: int, sums: Tensor) -> None:
        """Append an interval. step, images: done and seen so far. sums: [3, bins] since the last interval."""
        self._append(line(step, images, sums))

    def _append(self, text: str) -> None:
        with writing(self.path), open(self.path, "ab") as file:
            file.write(text.encode())


CLOSE = 1e-9
"""Part of a bin by which ranges may differ and be the same."""
ENDINGS = (".tsv", ".txt")
NATS = "nats"
Values = Annotated[list[Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]], Bins]
Positive = Annotated[int, Meta(ge=1, le=10**15)]


class LeastCurve(Record, frozen=True):
    """The least error in each bin of λ, [bins] each."""

    eps_mse: Values
    eps_mse_se: Sums


class SampleCheck(Record, frozen=True):
    """The check of an optimum that a sample of images was asked for.

    images: of the sample. sources: those for which all images were asked, too. bias: how much too large the sample's
    least error is on these, which has been taken off.
    """

    images: Positive
    sources: Positive
    bias: Values
    bias_se: Sums


@stored("result of elbo optimum (JSON)", "elbo-optimum", remedy="; make one with 'elbo optimum'")
class Optimum(Record, frozen=True, kw_only=True):
    """The least error of a denoiser that knows a set of images, and what it was found from.

    edges: of the bins of λ, which rise, [bins + 1]. eps_mse, eps_mse_se: [bins]. classes: of a denoiser that is told the
    class; 0 without. label_dropout: the share of a run's images that it saw without their class; without_class: the least
    error there. nats: ½∫e* dλ over the range, which is log_images where the range holds all of it. images: the set, mirror
    images counted where `flip`. sources: images whose noise was looked through, `draws` times each. about: what else is
    known.
    """

    REST: ClassVar[str] = "about"

    edges: Edges
    eps_mse: Values
    eps_mse_se: Sums
    classes: Count
    nats: float
    nats_se: float
    log_images: float
    images: Positive
    flip: bool
    sources: Positive
    draws: Positive
    dimensions: Positive
    label_dropout: Annotated[float, Meta(ge=0, le=1)] = 0.0
    without_class: LeastCurve | None = None
    sample: SampleCheck | None = None
    dataset: str | None = None
    payload_sha256: str | None = None
    n_dataset: Count | None = None
    seed: int | None = None
    elbo_version: str | None = None
    about: dict[str, Any] = {}

    def __post_init__(self) -> None:
        check_edges(self.edges)
        bins = len(self.edges) - 1
        blind = self.without_class
        curves = [self.eps_mse, self.eps_mse_se, *([blind.eps_mse, blind.eps_mse_se] if blind else [])]
        if {*map(len, curves)} != {bins}:
            raise ValueError(f"eps_mse and eps_mse_se must be {bins} numbers each, as there are bins")

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.json(), indent=1, allow_nan=False) + "\n"

    def least(self, edges: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """(e*, standard error) in other bins, float64 [bins] each. edges: [bins + 1].

        training: of what training sees, which drops some labels. Raises UsageError where the file doesn't cover them.
        """
        own = torch.tensor(self.edges, dtype=torch.float64)
        slack = CLOSE * float(own.diff().min())
        if float(edges[0]) < own[0] - slack or float(edges[-1]) > own[-1] + slack:
            raise UsageError(
                f"the optimum covers logsnr {own[0]:g} to {own[-1]:g}, and {edges[0]:g} to {edges[-1]:g} is needed; "
                f"find it again with --logsnr-min {edges[0]:g} --logsnr-max {edges[-1]:g}"
            )
        curves = torch.tensor([self.eps_mse, self.eps_mse_se], dtype=torch.float64)
        if training and (other := self.without_class) is not None:
            blind = torch.tensor([other.eps_mse, other.eps_mse_se], dtype=torch.float64)
            curves = curves.lerp(blind, self.label_dropout)
        # The mean in other bins of what is constant in each bin.
        integral = torch.nn.functional.pad((curves * own.diff()).cumsum(1), (1, 0))
        right = torch.searchsorted(own, edges.contiguous()).clamp(1, len(own) - 1)
        part = ((edges - own[right - 1]) / own.diff()[right - 1]).clamp(0, 1)
        value, se = integral[:, right - 1].lerp(integral[:, right], part).diff() / edges.diff()
        return value, se


def read_optimum(path: Path) -> Optimum:
    """Read the file. Raises FormatError."""
    expect(path, "optimum")
    return Optimum.of(read_json(path), path)


Columns = dict[str, np.ndarray]
"""Numbers of images: index (the dataset's row) and label [N] int64, then others by name, [N] float64; by the first one sorts."""


def is_table(path: Path) -> bool:
    """Tell whether a name says that it is a table."""
    return path.suffix.lower() in ENDINGS


def write_table(path: Path, table: Columns) -> None:
    """Write a header, then a line for each image; numbers as they are read back. Raises DataError."""
    rows = zip(*(column.tolist() for column in table.values()))
    write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in [table, *rows]))


def read_table(path: Path) -> Columns:
    """Read a table. Raises FormatError for anything but columns of finite numbers that go together."""
    with reading(f"{path}: not usable as likelihoods"):
        names, *lines = [line.split("\t") for line in read_text(path).splitlines()]
        values = np.array(lines, np.float64)
        table = dict(zip(names, values.T, strict=True))
        if len(table) < 3 or not np.isfinite(values).all():
            raise ValueError("not all columns are finite numbers of images")
        return {**table, "index": table["index"].astype(np.int64), "label": table["label"].astype(np.int64)}
