"""Logs of a run, a JSON object a line: losslog.jsonl, the unweighted ε error at each λ, and numbers in metrics.jsonl.

A loss log is a LossLogHeader, then a LossLogRow per interval, of ‖ε−ε̂‖²/D. Logs may be concatenated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from elbocli.core.prediction import LIMIT
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.atomic import writing
from elbocli.files.reading import reading, whole_lines
from elbocli.files.recognise import instead, refuse_other
from elbocli.files.records import Count, Record, convert, parse_json, stored
from elbocli.runtime.progress import log

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

    def line(self) -> str:
        """It as a line of the file."""
        return json.dumps(self.json()) + "\n"


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


def header(edges: Tensor, **about: Any) -> str:
    """The first line."""
    return json.dumps(convert({**about, "edges": edges.tolist()}, LossLogHeader, "loss log").json()) + "\n"


def line(step: int, images: int, sums: Tensor, weight: Tensor | None = None) -> str:
    """One interval. sums: [3, bins] count, sum, sum of squares. weight: [bins] w of a learned weighting."""
    count, total, squares = sums.tolist()
    row = LossLogRow(step, images, [int(c) for c in count], total, squares, None if weight is None else weight.tolist())
    return json.dumps(row.json()) + "\n"


def read_losslog(file: IO[Any], name: object) -> Iterator[LossLogHeader | LossLogRow]:
    """Yield the headers and intervals of a loss log, one line at a time. Raises FormatError with the line's number."""
    bins, cut = 0, partial(log.warning, f"{name}: its last line is half written, and left out")
    for number, text in enumerate(whole_lines(file, cut), 1):
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
            if isinstance(entry, LossLogRow):
                assert total is not None
                if entry.step > since:
                    total.sums += entry.sums
                    total.images = max(total.images, entry.images)
                    total.lines += 1
                    total.batch = max(1, entry.images // max(1, entry.step))
            elif total is None:
                edges = torch.tensor(entry.edges, dtype=torch.float64)
                total = LossLog(entry, edges, torch.zeros(3, len(edges) - 1, dtype=torch.float64))
            elif entry.edges != total.header.edges:
                raise FormatError(
                    f"{source}: has other bins of logsnr than the log before; fit a schedule to each alone"
                )
    if total is None:
        raise UsageError("name a run, a loss log, or - for standard input")
    return total


def _entries(source: Path | IO[bytes]) -> Iterator[LossLogHeader | LossLogRow]:
    if not isinstance(source, Path):
        yield from read_losslog(source, "standard input")
        return
    path = source / "losslog.jsonl" if source.is_dir() else source
    if not path.exists():
        raise FormatError(instead(source, "loss log"))
    refuse_other(path, "loss log")
    with reading(path, kind=DataError), open(path, "rb") as file:
        yield from read_losslog(file, path)


class LossLogWriter:
    """Writes a loss log as `elbo train` does, one interval after the other, for `elbo adapt` to fit a schedule to.

    path: a new file, or an earlier log with the same bins, which it continues. edges: [bins + 1] rising λ. dimensions:
    of an example. weighting, schedule, prediction: SPECs, for whoever reads it. Raises DataError when it can't be
    written.
    """

    def __init__(
        self,
        path: Path | str,
        edges: Tensor,
        *,
        dimensions: int,
        weighting: str = "",
        schedule: str = "",
        prediction: str = "",
    ):
        self.path = Path(path)
        if not self.path.exists():
            specs = {"weighting": weighting, "schedule": schedule, "prediction": prediction}
            self._append(header(edges, dimensions=dimensions, **specs))

    def __repr__(self) -> str:
        return f"LossLogWriter({str(self.path)!r})"

    def write(self, step: int, images: int, sums: Tensor) -> None:
        """Append an interval. step, images: done and seen so far. sums: [3, bins] since the last interval."""
        self._append(line(step, images, sums))

    def _append(self, text: str) -> None:
        with writing(self.path), open(self.path, "ab") as file:
            file.write(text.encode())
