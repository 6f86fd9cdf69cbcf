"""Read the logs of a run, which may be incomplete or damaged."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from elbocli.errors import DataError, FormatError
from elbocli.files.losslog import EVAL, LossLogRow, MetricsRow, entries
from elbocli.files.reading import open_file, reading, whole_lines
from elbocli.files.records import parse_json

POINTS = 400  # largest number of points in a curve; neighbouring points of longer curves are averaged
CELLS = 48  # at 2·CELLS intervals, a LogHistory merges pairs of neighbouring intervals
LATE = 0.2  # last fraction of the training images, for `LogHistory.late`
EARLY = 0.1  # first fraction of the training images, for `LogHistory.early`
Curve = list[float | None]


def read_curves(path: Path, missing: list[str]) -> dict[str, Curve]:
    """Return the columns of metrics.jsonl by name, each pooled to at most POINTS values; None where a value is missing.

    missing: list to which a message about damaged lines is appended.
    """
    rows, damaged = list[dict[str, float]](), 0
    if path.exists():
        with reading(path, kind=DataError), open_file(path) as file:
            for text in whole_lines(file):
                try:
                    row = MetricsRow.of(parse_json(text, path), path).facts()
                    rows.append({key: float(value) for key, value in row.items() if type(value) in (int, float)})
                except FormatError:
                    damaged += 1
    if damaged:
        missing.append(f"{path}: damaged lines left out: {damaged}")
    size = -(-len(rows) // POINTS) or 1
    points = [rows[start : start + size] for start in range(0, len(rows), size)]
    return {
        name: [_pooled(name, [row[name] for row in point if name in row]) for point in points]
        for name in sorted(set[str]().union(*rows))
    }


def _pooled(name: str, values: Sequence[float]) -> float | None:
    if name in ("step", "images") or name.startswith(("val_", EVAL)):  # these are rare: show the last, not a mean
        return values[-1] if values else None
    return sum(value / len(values) for value in values) if values else None


def error_of(name: str) -> str:
    """Return the name of a column's standard errors, such as `eval_frechet_distance_se[elbo-tiny]`."""
    stem, bracket, network = name.partition("[")
    return f"{stem.removesuffix('_mean')}_se{bracket}{network}"


def score_columns(columns: dict[str, Curve]) -> dict[str, str]:
    """Return the columns that hold scores: name → title. columns: from `read_curves`."""
    scores = {}
    for name in columns:
        stem, _, network = name.removeprefix(EVAL).rstrip("]").partition("[")
        if name.startswith(EVAL) and stem not in ("samples", "s") and not stem.endswith("_se"):
            scores[name] = stem.removesuffix("_mean").replace("_", " ") + (network and f", {network}")
    return scores


def curve(columns: dict[str, Curve], name: str) -> tuple[list[float], list[float]]:
    """Return a column as (numbers of images, values), without None. columns: from `read_curves`."""
    pairs = zip(columns.get("images", []), columns.get(name, []))
    points = [(images, value) for images, value in pairs if images is not None and value is not None]
    return [images for images, _ in points], [value for _, value in points]


@dataclass
class LogHistory:
    """Errors of a run per bin of λ, in consecutive intervals of training.

    edges: bin boundaries in λ. images: number of training images at each interval's end.
    sums: count, sum and sum of squares of the errors, [3, bins] per interval.
    """

    edges: Tensor
    images: list[int] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)

    def add(self, images: int, sums: Tensor) -> None:
        """Append an interval. Raises FormatError if `images` doesn't increase.

        images: number of training images at the interval's end. sums: [3, bins].
        """
        before = (self.images or [0])[-1]
        if images <= before:
            raise FormatError(f"an interval ends at {images} images, the one before at {before}; remove the line")
        if len(self.images) == 2 * CELLS:
            self.images = self.images[1::2]
            self.sums = [first + second for first, second in zip(self.sums[::2], self.sums[1::2])]
        self.images.append(images)  # not merged yet, so that `last` is the log's last interval
        self.sums.append(sums)

    @property
    def error(self) -> Tensor:
        """Mean error ‖ε−ε̂‖²/D, [intervals, bins]; bins without draws: error of the previous interval, else NaN."""
        count, total, _ = torch.stack(self.sums).unbind(1)
        last = torch.where(count > 0, torch.arange(len(count))[:, None], -1).cummax(0).values
        return (total / count).gather(0, last.clamp(min=0)).where(last >= 0, torch.nan)

    @property
    def density(self) -> Tensor:
        count = torch.stack(self.sums)[:, 0]
        return count / count.sum(1, keepdim=True).clamp(min=1) / self.edges.diff()

    def between(self, start: float, end: float) -> Tensor:
        """Add up `sums` of intervals with start < images ≤ end, [3, bins]."""
        return torch.stack([sums for at, sums in zip(self.images, self.sums) if start < at <= end]).sum(0)

    def late(self) -> Tensor:
        """Add up `sums` over the last fraction LATE of the images, [3, bins]."""
        return self.between(self.images[-1] * (1 - LATE), self.images[-1])

    def early(self) -> Tensor:
        """Add up `sums` over the first fraction EARLY of the images, at least one interval, [3, bins]."""
        return self.between(0, max(self.images[-1] * EARLY, self.images[0]))

    def last(self) -> Tensor:
        return self.sums[-1]


def read_log_history(path: Path, missing: list[str]) -> LogHistory | None:
    """Read a loss log; return None if it has no intervals.

    missing: list to which a message about a damaged line is appended.
    """
    history = LogHistory(torch.empty(0))
    try:
        if path.exists() and path.stat().st_size:
            for entry in entries(path):
                if isinstance(entry, LossLogRow):
                    history.add(entry.images, entry.sums)
                else:
                    history.edges = torch.tensor(entry.edges, dtype=torch.float64)
    except FormatError as error:
        missing.append(f"{path}: shown only up to a line that can't be used ({error})")
    return history if history.images else None
