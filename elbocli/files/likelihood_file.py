"""Likelihoods image by image: a table (TSV) whose columns are `index` of the dataset's row and `label`, then numbers by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elbocli.errors import FormatError
from elbocli.files.atomic import new_file
from elbocli.files.reading import read_text, reading

ENDINGS = (".tsv", ".txt")
INDEX, LABEL, NATS = "index", "label", "nats"


@dataclass(frozen=True)
class ImageTable:
    """index, label: [N] int64. numbers: [N] float64 each, by name; the first is the one to sort by."""

    index: np.ndarray
    label: np.ndarray
    numbers: dict[str, np.ndarray]

    def tsv(self) -> str:
        """A header, then a line for each image; numbers as they are read back."""
        rows = zip(self.index.tolist(), self.label.tolist(), *(each.tolist() for each in self.numbers.values()))
        lines = ["\t".join(map(str, row)) for row in rows]
        return "\n".join(["\t".join([INDEX, LABEL, *self.numbers]), *lines]) + "\n"


def is_table(path: Path) -> bool:
    """Whether a name says that it is a table."""
    return path.suffix.lower() in ENDINGS


def write_table(path: Path, table: ImageTable) -> None:
    """Write it. Raises DataError when it can't be written."""
    with new_file(path) as out:
        out.write(table.tsv().encode())


def read_table(path: Path) -> ImageTable:
    """Read one. Raises FormatError for anything but columns of finite numbers that go together."""
    columns = _tsv(path)
    count = len(columns.get(INDEX, ()))
    if not {INDEX, LABEL} < set(columns) or not count:
        raise FormatError(
            f"{path}: has columns {', '.join(columns) or 'none'}; expected index, label and numbers of images"
        )
    numbers = {name: column for name, column in columns.items() if name not in (INDEX, LABEL)}
    return ImageTable(columns[INDEX].astype(np.int64), columns[LABEL].astype(np.int64), numbers)


def _tsv(path: Path) -> dict[str, np.ndarray]:
    head, *lines = read_text(path).splitlines() or [""]
    names, rows = head.split("\t"), [line.split("\t") for line in lines]
    if any(len(row) != len(names) for row in rows):
        raise FormatError(f"{path}: not usable as likelihoods: not all lines have {len(names)} columns")
    with reading(f"{path}: not usable as likelihoods"):
        read = [[float(word) for word in row] for row in rows]
    columns = dict(zip(names, np.array(read, np.float64).reshape(-1, len(names)).T, strict=True))
    if any(not math.isfinite(value) for row in read for value in row):
        raise FormatError(f"{path}: holds what is no finite number")
    return columns
