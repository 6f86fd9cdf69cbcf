"""Parquet files with images, as Hugging Face's `datasets` writes them. Needs pyarrow, the extra `parquet`.

The column of images is a struct with `bytes` (an image file) and `path`; that of labels holds numbers, whose names stand in
the schema's metadata under `huggingface`. Rows are read in their order, a few at a time.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.reading import check_file, reading
from elbocli.images.registry import Images, source

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MAGIC = b"PAR1"
ROWS_AT_A_TIME = 16
LABELS = ("label", "labels", "fine_label")
"""Columns that hold the labels, where more than one could."""


class _Group(NamedTuple):
    """A row group of a file: it is read from its beginning."""

    path: str
    number: int
    rows: int


class ParquetImages:
    """The images of some files, one after another, of which one row group is open. column: that of the images."""

    def __init__(self, groups: Sequence[_Group], column: str):
        self.groups, self.column = groups, column
        self.ends = list(accumulate(group.rows for group in groups))
        self._lock = threading.Lock()
        self._open, self._next = -1, 0
        self._rows: Iterator[Any] = iter(())

    def row(self, index: int) -> bytes:
        """Read an image file's bytes; fast in the order of the rows. Raises DataError."""
        with self._lock, reading("can't be read from its parquet file", kind=DataError):
            number = bisect_right(self.ends, index)
            wanted = index - (self.ends[number] - self.groups[number].rows)
            if number != self._open or wanted < self._next:
                self._open, self._next, self._rows = number, 0, self._read(self.groups[number])
            value = next(islice(self._rows, wanted - self._next, None))
            self._next = wanted + 1
            content = value.as_py()
        if content is None:
            raise DataError(
                "only a path, and no image, is in its parquet file; save the data set with its images in it"
            )
        return bytes(content)

    def _read(self, group: _Group) -> Iterator[Any]:
        """Yield the images' bytes of a row group."""
        with _opened(group.path) as file:
            columns = [f"{self.column}.bytes"]
            for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=[group.number], columns=columns):
                yield from batch.column(0).field("bytes")


class ParquetRow(NamedTuple):
    """An image of a parquet file."""

    images: ParquetImages
    row: int

    @property
    def shape(self) -> None:
        return None

    def read(self, most: int = -1) -> bytes:
        return self.images.row(self.row)


@source("parquet", magic=MAGIC)
def open_file(path: Path) -> Images:
    """Open one file."""
    return open_parquet([str(path)])


def open_parquet(paths: Sequence[str]) -> Images:
    """Open files of one data set, in their order.

    Raises UsageError without pyarrow; FormatError for a file that is damaged or holds no images, and for files that have
    other columns or classes than the first.
    """
    layout, groups, labels, names = None, [], [], []
    for path in paths:
        with reading(f"{path}: not a usable parquet file", "; get it again"), _opened(path) as file:
            own = _layout(file, path)
            layout = layout or own
            if own != layout:
                raise FormatError(f"{path}: has other columns or classes than {paths[0]}; name files of one data set")
            about = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            groups += [_Group(path, number, group.num_rows) for number, group in enumerate(about)]
            if layout.labels:
                labels += file.read(columns=[layout.labels]).column(0).to_pylist()
            names += [f"{Path(path).stem}/{index}" for index in range(file.metadata.num_rows)]
    if layout is None or not names:
        raise FormatError(f"{paths[0]}: holds no rows; get it again")
    for label in labels:
        if type(label) is not int or not 0 <= label < len(layout.names or labels):
            raise FormatError(
                f"{paths[0]}: column {layout.labels} has the label {label!r}, which is none of its classes"
            )
    images = ParquetImages(groups, layout.images)
    refs = [ParquetRow(images, row) for row in range(len(names))]
    return Images(names, labels if layout.labels else None, refs, layout.names, in_order=True)


class _Layout(NamedTuple):
    """The columns of images and of labels ('' without), and the classes' names where they have some."""

    images: str
    labels: str
    names: Sequence[str]


def _layout(file: ParquetFile, path: str) -> _Layout:
    """Find the columns. Raises FormatError when there is none with images."""
    from pyarrow import types

    def holds_files(kind: Any) -> bool:
        field = kind.get_field_index("bytes") if types.is_struct(kind) else -1
        return field >= 0 and (types.is_binary(kind.field(field).type) or types.is_large_binary(kind.field(field).type))

    schema = file.schema_arrow
    images = [column.name for column in schema if holds_files(column.type)]
    if not images:
        raise FormatError(
            f"{path}: no column of images among {', '.join(schema.names[:5])}; expected one with their bytes"
        )
    said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = said.get("info", {}).get("features", {})
    classes = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    numbers = [column.name for column in schema if types.is_integer(column.type)]
    likely = [name for name in (*LABELS, *classes) if name in numbers]
    labels = likely[0] if likely else ""
    return _Layout(images[0], labels, tuple(map(str, classes.get(labels, ()))))


def _opened(path: str) -> ParquetFile:
    """Open a file. Raises UsageError without pyarrow, and pyarrow's errors."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError(f"{path}: parquet files need pyarrow; pip install 'elbocli[parquet]'") from error
    check_file(path)
    return ParquetFile(path)
