"""Likelihoods image by image: a table (TSV) or HDF5, by the file's ending.

Columns: `index` of the dataset's row and `label`, then numbers by name. HDF5 holds each as an array, and in attributes
`format`, `version` and `about`, JSON: of which run and dataset they are.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import FormatError, UsageError
from elbocli.files.atomic import writing
from elbocli.files.reading import check_format, encodable, read_text, refusing
from elbocli.files.recognise import HDF5_MAGIC

FORMAT = "elbo-likelihoods"
HDF5, TSV = (".h5", ".hdf5"), (".tsv", ".txt")
INDEX, LABEL, NATS = "index", "label", "nats"


@dataclass(frozen=True)
class ImageTable:
    """index, label: [N] int64. numbers: [N] float64 each, by name; the first is the one to sort by. about: run, dataset, …."""

    index: np.ndarray
    label: np.ndarray
    numbers: dict[str, np.ndarray]
    about: dict[str, Any] = field(default_factory=dict)

    def tsv(self) -> str:
        """A header, then a line for each image; numbers as they are read back."""
        rows = zip(self.index.tolist(), self.label.tolist(), *(each.tolist() for each in self.numbers.values()))
        lines = ["\t".join(map(str, row)) for row in rows]
        return "\n".join(["\t".join([INDEX, LABEL, *self.numbers]), *lines]) + "\n"


def check_ending(path: Path) -> None:
    """Raise UsageError for a name that says neither kind."""
    if path.suffix.lower() not in HDF5 + TSV:
        raise UsageError(f"{path}: likelihoods are written as {', '.join(TSV + HDF5)}; choose a name that ends so")


def write_table(path: Path, table: ImageTable) -> None:
    """Write it by the path's ending. Raises UsageError for another ending, DataError when it can't be written."""
    check_ending(path)
    if path.suffix.lower() in TSV:
        content = table.tsv().encode()
    else:
        held = io.BytesIO()
        with h5py.File(held, "w", track_order=True) as file:
            file.attrs.update(format=FORMAT, version=1, about=encodable(json.dumps(table.about, allow_nan=False)))
            for name, column in {INDEX: table.index, LABEL: table.label, **table.numbers}.items():
                file.create_dataset(name, data=column, track_times=False)
        content = held.getvalue()
    with writing(path) as out:
        out.write(content)


def is_table(path: Path) -> bool:
    """Whether a file is HDF5 that says that it holds likelihoods."""
    try:
        with open(path, "rb") as start:
            if start.read(len(HDF5_MAGIC)) != HDF5_MAGIC:
                return False
        with h5py.File(path, "r", locking=False) as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return False


def read_table(path: Path) -> ImageTable:
    """Read either kind. Raises FormatError for anything but columns of finite numbers that go together."""
    columns, about = _hdf5(path) if path.suffix.lower() in HDF5 else (_tsv(path), {})
    count = len(columns.get(INDEX, ()))
    if not {INDEX, LABEL} < set(columns) or not count or any(column.shape != (count,) for column in columns.values()):
        raise FormatError(
            f"{path}: has columns {', '.join(columns) or 'none'}; expected index, label and numbers of images"
        )
    for name, column in columns.items():
        if column.dtype.kind not in "iuf" or not np.isfinite(column).all():
            raise FormatError(f"{path}: {name} holds what is no finite number")
    numbers = {name: column.astype(np.float64) for name, column in columns.items() if name not in (INDEX, LABEL)}
    return ImageTable(columns[INDEX].astype(np.int64), columns[LABEL].astype(np.int64), numbers, about)


def _hdf5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with refusing(f"{path}: not usable as likelihoods"), h5py.File(path, "r", locking=False) as file:
        check_format(path, dict(file.attrs), FORMAT)
        about = json.loads(str(file.attrs["about"]))
        names = [INDEX, LABEL, *(name for name in file if name not in (INDEX, LABEL))]
        columns = {
            name: file[name][()] for name in names if isinstance(file.get(name), h5py.Dataset) and file[name].ndim == 1
        }
    return columns, about if isinstance(about, dict) else {}


def _tsv(path: Path) -> dict[str, np.ndarray]:
    head, *lines = read_text(path, "a table of likelihoods").splitlines() or [""]
    names, rows = head.split("\t"), [line.split("\t") for line in lines]
    if any(len(row) != len(names) for row in rows):
        raise FormatError(f"{path}: not usable as likelihoods: not all lines have {len(names)} columns")
    with refusing(f"{path}: not usable as likelihoods"):
        read = [[float(word) for word in row] for row in rows]
    columns = dict(zip(names, np.array(read, np.float64).reshape(-1, len(names)).T, strict=True))
    if any(not math.isfinite(value) for row in read for value in row):
        raise FormatError(f"{path}: holds what is no finite number")
    return columns
