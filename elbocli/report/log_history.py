"""Read the logs of a run, which may be incomplete or damaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from elbocli.errors import DataError, FormatError
from elbocli.files.losslog import EVAL, LossLogHeader, LossLogRow, MetricsRow, entries
from elbocli.files.reading import open_file, reading, whole_lines
from elbocli.files.records import parse_json

POINTS = 400  # largest number of points in a curve; neighbouring points of longer curves are averaged
LATE = 0.2  # last fraction of the training images, for `LogHistory.late`
EARLY = 0.1  # first fraction of the training images, for `LogHistory.early`
Curve = list[float | None]


def read_curves(path: Path, missing: list[str]) -> dict[str, Curve]:
    """Return the columns of metrics.jsonl by name, each pooled to at most POINTS values; None where a value is missing.

    missing: list to which a message about damaged lines is appended.
    """
    rows = list[dict[str, float]]()
    damaged = 0
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

    edges: bin boundaries in λ. images: number of training images at each interval's end, increasing.
    sums: count, sum and sum of squares of the errors, [intervals, 3, bins].
    """

    edges: Tensor
    images: Tensor
    sums: Tensor

    def late(self) -> Tensor:
        """Add up `sums` over the last fraction LATE of the images, [3, bins]."""
        return self.sums[self.images > self.images[-1] * (1 - LATE)].sum(0)

    def early(self) -> Tensor:
        """Add up `sums` over the first fraction EARLY of the images, at least one interval, [3, bins]."""
        return self.sums[self.images <= max(self.images[-1] * EARLY, self.images[0])].sum(0)

    def last(self) -> Tensor:
        return self.sums[-1]

    def whole(self) -> Tensor:
        return self.sums.sum(0)


def read_log_history(path: Path, missing: list[str]) -> LogHistory | None:
    """Read a loss log; return None if it has no intervals.

    missing: list to which a message about a damaged line is appended.
    """
    edges = list[float]()
    rows = list[LossLogRow]()
    try:
        for entry in entries(path) if path.exists() and path.stat().st_size else ():
            if isinstance(entry, LossLogHeader):
                edges = entry.edges
            elif entry.images <= (rows[-1].images if rows else 0):
                raise FormatError(f"an interval ends at {entry.images} images, no more than before; remove the line")
            else:
                rows.append(entry)
    except FormatError as error:
        missing.append(f"{path}: shown only up to a line that can't be used ({error})")
    if not rows:
        return None
    images = torch.tensor([row.images for row in rows], dtype=torch.float64)
    return LogHistory(torch.tensor(edges, dtype=torch.float64), images, torch.stack([row.sums for row in rows]))
