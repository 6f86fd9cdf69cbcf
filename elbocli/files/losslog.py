"""losslog.jsonl: the unweighted ε error at each λ, over a run.

A LossLogHeader, then a LossLogRow per interval, of ‖ε−ε̂‖²/D. Logs may be concatenated.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, cast

import torch
from msgspec import Meta
from torch import Tensor

from elbocli.core.prediction import LIMIT
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.atomic import writing
from elbocli.files.reading import reading, whole_lines
from elbocli.files.recognise import instead, refuse_other
from elbocli.files.records import Count, Record, parse_json, stored

MOST_BINS = 2000
"""Fitting takes matrices of bins by bins."""
LARGEST = 1e100
"""Bound of a sum of errors, so that lines add up and a mean can be drawn on a logarithmic scale."""
Level = Annotated[float, Meta(ge=-LIMIT, le=LIMIT)]
Sum = Annotated[float, Meta(ge=0, le=LARGEST)]
Bins = Meta(min_length=1, max_length=MOST_BINS)


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
    edges: Annotated[list[Level], Meta(min_length=2, max_length=MOST_BINS + 1)]

    def __post_init__(self) -> None:
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must rise")


@stored("losslog.jsonl, validation.jsonl: other lines", version=0)
class LossLogRow(Record, frozen=True):
    """One interval: for each bin how many errors fell on it since the line before, their sum, and that of their squares.

    weight: where the weighting is learned, w in the middle of each bin, as the interval was trained with it.
    """

    step: Count
    images: Count
    count: Annotated[list[Count], Bins]
    sum: Annotated[list[Sum], Bins]
    sumsq: Annotated[list[Sum], Bins]
    weight: Annotated[list[Sum], Bins] | None = None


def header(edges: Tensor, **about: Any) -> str:
    """The first line."""
    named = set(LossLogHeader.__struct_fields__)
    more = {key: value for key, value in about.items() if key not in named}
    known = {key: value for key, value in about.items() if key in named}
    return json.dumps(LossLogHeader(**known, about=more, edges=edges.tolist()).json()) + "\n"


def line(step: int, images: int, sums: Tensor, weight: Tensor | None = None) -> str:
    """One interval. sums: [3, bins] count, sum, sum of squares. weight: [bins] w of a learned weighting."""
    count, total, squares = sums.tolist()
    row = LossLogRow(step, images, [int(c) for c in count], total, squares, None if weight is None else weight.tolist())
    return json.dumps(row.json()) + "\n"


@dataclass
class LossLog:
    """One or more logs added up. sums: [3, bins]. batch: images per step, as the last line says.

    cut: names of those whose last line is half written, and left out.
    """

    header: LossLogHeader
    edges: Tensor
    sums: Tensor
    images: int
    lines: int
    batch: int = 1
    cut: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Interval:
    """One line. sums: [3, bins] of the errors since the line before."""

    step: int
    images: int
    sums: Tensor


class Reader:
    """Adds up lines of any number of logs with the same bins.

    seen: takes each interval too. damaged: takes what is wrong with a line, which is then left out; without it a
    FormatError is raised.
    """

    def __init__(
        self,
        since: int = 0,
        seen: Callable[[Interval], None] = lambda interval: None,
        damaged: Callable[[FormatError], None] | None = None,
    ):
        self.since, self._seen, self._damaged = since, seen, damaged
        self.log: LossLog | None = None
        self._edges: list[float] = []

    def read(self, lines: Iterable[str | bytes] | IO[bytes], name: str) -> None:
        """Add up the lines of one log, or of an open file, whose last may be half written. Raises FormatError with the
        line's number.
        """
        started, cut = False, list[str]()
        read = lines
        if isinstance(lines, io.IOBase):
            read = whole_lines(cast(IO[bytes], lines), lambda: cut.append(name))
        for number, text in enumerate(read, 1):
            try:
                started |= self._line(text, f"{name}: line {number}", started)
            except FormatError as error:
                if self._damaged is None:
                    raise
                self._damaged(error)
        if not started:
            only = "only a part of its first line is written" if cut else "empty"
            raise FormatError(f"{name}: {only}; expected a loss log ('losslog.jsonl' of a run)")
        if self.log is not None:
            self.log.cut += cut

    def _line(self, text: str | bytes, where: str, started: bool) -> bool:
        """Add one line; return whether it was a header."""
        row = parse_json(text, where)
        if "format" in row:
            self._begin(LossLogHeader.of(row, where), where)
            return True
        if not started:
            raise FormatError(f"{where}: no header; a loss log begins with its 'format' line")
        self._add(LossLogRow.of(row, where), where)
        return False

    def _begin(self, found: LossLogHeader, where: str) -> None:
        edges = found.edges
        if self.log is None:
            at = torch.tensor(edges, dtype=torch.float64)
            self.log = LossLog(found, at, torch.zeros(3, len(at) - 1, dtype=torch.float64), 0, 0)
            self._edges = edges
        elif self._edges != edges:
            here, first = (f"({len(e) - 1} over {e[0]:g} to {e[-1]:g})" for e in (edges, self._edges))
            bins = f"its bins {here} differ from the first log's {first}"
            raise FormatError(f"{where}: {bins}; fit a schedule to each alone")

    def _add(self, row: LossLogRow, where: str) -> None:
        assert self.log is not None
        bins = self.log.sums.shape[1]
        if {len(row.count), len(row.sum), len(row.sumsq)} != {bins}:
            raise FormatError(f"{where}: count, sum and sumsq must be {bins} numbers each")
        if row.step > self.since:
            sums = torch.tensor([row.count, row.sum, row.sumsq], dtype=torch.float64)
            self._seen(Interval(row.step, row.images, sums))
            self.log.sums += sums
            self.log.images = max(self.log.images, row.images)
            self.log.lines += 1
            self.log.batch = max(1, row.images // max(1, row.step))


def read_logs(sources: Iterable[Path | IO[bytes]], since: int = 0) -> LossLog:
    """Add up runs, logs and streams. Raises FormatError."""
    reader = Reader(since)
    for source in sources:
        if not isinstance(source, Path):
            reader.read(source, "standard input")
            continue
        path = source / "losslog.jsonl" if source.is_dir() else source
        if not path.exists():
            raise FormatError(instead(source, "loss log"))
        refuse_other(path, "loss log")
        with reading(path, kind=DataError), open(path, "rb") as file:
            reader.read(file, str(path))
    if reader.log is None:
        raise UsageError("name a run, a loss log, or - for standard input")
    return reader.log


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
            about = {"weighting": weighting, "schedule": schedule, "prediction": prediction}
            self._append(header(edges, dimensions=dimensions, **about))

    def __repr__(self) -> str:
        return f"LossLogWriter({str(self.path)!r})"

    def write(self, step: int, images: int, sums: Tensor) -> None:
        """Append an interval. step, images: done and seen so far. sums: [3, bins] since the last interval."""
        self._append(line(step, images, sums))

    def _append(self, text: str) -> None:
        with writing(self.path), open(self.path, "ab") as file:
            file.write(text.encode())
