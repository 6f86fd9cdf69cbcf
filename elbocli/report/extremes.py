"""The images of a dataset that a run finds likeliest and least likely, from a file of `elbo bound --per-image`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elbocli.errors import DataError, FormatError
from elbocli.files.dataset import Dataset
from elbocli.files.dataset_block import LATENTS
from elbocli.files.likelihood_file import NATS, ImageTable, read_table
from elbocli.report.thumbnails import ROW, Thumbnails, thumbnails_of

ROWS = 2
"""Rows of pictures at either end."""


@dataclass(frozen=True)
class Extremes:
    """Rows of pictures of both ends, sorted by the column `by`; count: images in the file."""

    path: Path
    by: str
    count: int
    likeliest: list[Thumbnails]
    least: list[Thumbnails]


def table_of(path: Path, named: str) -> Path:
    """The file of all images that a result at `path` names: beside it, or where it was written. Raises DataError."""
    for place in (path.parent / Path(named).name, Path(named)):
        if place.is_file():
            return place
    raise DataError(f"{path}: its file of likelihoods, {named}, is gone; keep it beside the result")


def read_extremes(path: Path, dataset: Path, digest: str | None) -> Extremes:
    """Pictures of both ends. dataset: the file that was measured; digest: of its images, where that is known.

    Raises FormatError and DataError when a file is damaged, or the dataset is not the one that was measured.
    """
    table = read_table(path)
    by = next((name for name in table.numbers if name.startswith(NATS)), None)
    if by is None:
        raise FormatError(f"{path}: holds no nats of images, but {', '.join(table.numbers)}")
    data = Dataset(dataset, latents=True)
    if data.kind == LATENTS:
        raise DataError(f"{path}: is of the latents in {dataset}, which have no pictures; the page shows pixels alone")
    _check(data, table, digest, path)
    order = np.argsort(table.numbers[by], kind="stable")
    some = min(ROWS * ROW, len(order) // 2) or 1
    return Extremes(
        path, by, len(order), _rows(data, table, by, order[:some]), _rows(data, table, by, order[-some:][::-1])
    )


def _check(data: Dataset, table: ImageTable, digest: str | None, path: Path) -> None:
    """Raise DataError where the dataset isn't the one that the table is of."""
    within = int(table.index.min()) >= 0 and int(table.index.max()) < len(data)
    same = within and bool((data.labels[table.index] == table.label).all())
    if not same or digest not in (None, data.attributes.payload_sha256):
        raise DataError(f"{data.path}: holds other images than {path} is of; measure again")


def _rows(data: Dataset, table: ImageTable, by: str, places: np.ndarray) -> list[Thumbnails]:
    images, values = data.batch(table.index[places]), table.numbers[by][places]
    rows = [slice(start, start + ROW) for start in range(0, len(places), ROW)]
    return [thumbnails_of(f"{values[row][0]:.4g} to {values[row][-1]:.4g} nats", list(images[row])) for row in rows]
