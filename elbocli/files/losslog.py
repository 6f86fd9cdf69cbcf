"""losslog.jsonl: the unweighted ε error at each λ, over a run.

First line: format, version, edges of the λ bins, dimensions, weighting, schedule, prediction. Then a line per
interval: step, images, and for each bin count, sum and sum of squares of ‖ε−ε̂‖²/D; where the weighting is learned, weight:
w in the middle of each bin, as the interval was trained with it. Logs may be concatenated.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from elbocli.core.logsnr import LIMIT
from elbocli.errors import FormatError, UsageError
from elbocli.files import strict_json
from elbocli.files.atomic import told
from elbocli.files.opening import open_stream
from elbocli.files.reading import check_format, lines_of, one_line
from elbocli.files.recognise import instead, refuse_other

FORMAT = "elbo-losslog"
MOST_BINS = 2000
"""Fitting takes matrices of bins by bins."""
MOST_IMAGES = 10**15
LARGEST = 1e100
"""Bound of a sum of errors, so that lines add up and a mean can be drawn on a logarithmic scale."""


def header(edges: Tensor, **about: Any) -> str:
    """The first line."""
    return json.dumps({"format": FORMAT, "version": 1, **about, "edges": edges.tolist()}) + "\n"


def line(step: int, images: int, sums: Tensor, weight: Tensor | None = None) -> str:
    """One interval. sums: [3, bins] count, sum, sum of squares. weight: [bins] w of a learned weighting."""
    count, total, squares = sums.tolist()
    row = {"step": step, "images": images, "count": [int(c) for c in count], "sum": total, "sumsq": squares}
    row |= {} if weight is None else {"weight": weight.tolist()}
    return json.dumps(row) + "\n"


@dataclass
class LossLog:
    """One or more logs added up. sums: [3, bins]. batch: images per step, as the last line says."""

    header: dict[str, Any]
    edges: Tensor
    sums: Tensor
    images: int
    lines: int
    batch: int = 1


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
        """Add up the lines of one log, or of an open file. Raises FormatError with the line's number."""
        started = False
        read = lines_of(cast(IO[bytes], lines), name) if isinstance(lines, io.IOBase) else lines
        for number, text in enumerate(read, 1):
            try:
                started |= self._line(text, f"{name}: line {number}", started)
            except FormatError as error:
                if self._damaged is None:
                    raise
                self._damaged(error)
        if not started:
            raise FormatError(f"{name}: empty; expected a loss log ('losslog.jsonl' of a run)")

    def _line(self, text: str | bytes, where: str, started: bool) -> bool:
        """Add one line; return whether it was a header."""
        try:
            row = strict_json.parse(text)
        except ValueError as error:
            raise FormatError(
                f"{where}: not JSON ({one_line(error)}); is it a loss log ('losslog.jsonl' of a run)?"
            ) from error
        if not isinstance(row, dict):
            raise FormatError(f"{where}: expected a JSON object")
        if "format" in row:
            self._begin(row, where)
            return True
        if not started:
            raise FormatError(f"{where}: no header; a loss log begins with its 'format' line")
        self._add(row, where)
        return False

    def _begin(self, row: dict[str, Any], where: str) -> None:
        check_format(where, row, FORMAT)
        edges = row.get("edges")
        if not isinstance(edges, list) or len(edges) < 2 or not all(isinstance(e, (int, float)) for e in edges):
            raise FormatError(f"{where}: 'edges' must be a list of numbers")
        if len(edges) > MOST_BINS + 1:
            raise FormatError(f"{where}: {len(edges) - 1} bins; at most {MOST_BINS} can be fitted")
        try:
            at = torch.tensor(edges, dtype=torch.float64)
        except OverflowError as error:
            raise FormatError(f"{where}: 'edges' must be finite") from error
        if not bool((at.abs() <= LIMIT).all()) or not bool((at.diff() > 0).all()):
            raise FormatError(f"{where}: 'edges' must be finite, within -{LIMIT:g} and {LIMIT:g}, and rise")
        if self.log is None:
            self.log = LossLog(row, at, torch.zeros(3, len(at) - 1, dtype=torch.float64), 0, 0)
            self._edges = edges
        elif self._edges != edges:
            here, first = (f"({len(e) - 1} over {e[0]:g} to {e[-1]:g})" for e in (edges, self._edges))
            bins = f"its bins {here} differ from the first log's {first}"
            raise FormatError(f"{where}: {bins}; fit a schedule to each alone")

    def _add(self, row: dict[str, Any], where: str) -> None:
        assert self.log is not None
        try:
            sums = torch.tensor([row["count"], row["sum"], row["sumsq"]], dtype=torch.float64)
            step, images = row["step"], row["images"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"{where}: expected step, images, count, sum and sumsq") from error
        if not all(type(each) is int and 0 <= each <= MOST_IMAGES for each in (step, images)):
            raise FormatError(f"{where}: expected step and images to be whole numbers from 0 to {MOST_IMAGES}")
        if sums.shape != self.log.sums.shape or not bool(((sums >= 0) & (sums <= LARGEST)).all()):
            numbers = f"{self.log.sums.shape[1]} finite numbers, none negative, or above {LARGEST:g}"
            raise FormatError(f"{where}: count, sum and sumsq must be {numbers}")
        if bool((sums[0] != sums[0].round()).any()):
            raise FormatError(f"{where}: count must be whole numbers")
        if step > self.since:
            self._seen(Interval(step, images, sums))
            self.log.sums += sums
            self.log.images = max(self.log.images, images)
            self.log.lines += 1
            self.log.batch = max(1, images // max(1, step))


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
        with told(path, "read"), open_stream(path) as file:
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

    def write(self, step: int, images: int, sums: Tensor) -> None:
        """Append an interval. step, images: done and seen so far. sums: [3, bins] since the last interval."""
        self._append(line(step, images, sums))

    def _append(self, text: str) -> None:
        with told(self.path), open(self.path, "ab") as file:
            file.write(text.encode())
