"""Parquet files with images, as Hugging Face's `datasets` writes them. Needs pyarrow, the extra `parquet`.

The column of images is a struct with `bytes` (an image file) and `path`; that of labels holds numbers, whose names stand in
the schema's metadata under `huggingface`. Rows are read in their order, a few at a time.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files import strict_json
from elbocli.files.opening import check_file
from elbocli.files.reading import refusing
from elbocli.images.arrays import ArrayImages
from elbocli.images.image_refs import LARGEST_FILE, TOO_LARGE

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MAGIC = b"PAR1"
ROWS_AT_A_TIME = 16
LABELS = ("label", "labels", "fine_label")
"""Columns that hold the labels, where more than one could."""


@dataclass(frozen=True)
class _Group:
    """A row group of a file: it is read from its beginning."""

    path: str
    number: int
    rows: int


class ParquetImages:
    """The images of some files, one after another, of which one row group is open. column: that of the images."""

    def __init__(self, groups: Sequence[_Group], column: str, weight: int):
        self.groups, self.column, self.weight = groups, column, weight
        self.ends = list(accumulate(group.rows for group in groups))
        self._lock = threading.Lock()
        self._open, self._next = -1, 0
        self._rows: Iterator[Any] = iter(())

    def row(self, index: int) -> bytes:
        """Read an image file's bytes; fast in the order of the rows. Raises DataError."""
        with self._lock, refusing("can't be read from its parquet file", kind=DataError):
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
        if len(content) > LARGEST_FILE:
            raise DataError(TOO_LARGE)
        return content

    def _read(self, group: _Group) -> Iterator[Any]:
        """Yield the images' bytes of a row group."""
        with _opened(group.path) as file:
            columns = [f"{self.column}.bytes"]
            for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=[group.number], columns=columns):
                yield from batch.column(0).field("bytes")


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """An image of a parquet file."""

    images: ParquetImages
    index: int
    shape = None

    def read(self) -> bytes:
        """Read its bytes. Raises DataError."""
        return self.images.row(self.index)

    @property
    def weight(self) -> int:
        """The bytes of a row on average."""
        return self.images.weight


def open_parquet(paths: Sequence[str]) -> ArrayImages:
    """Open files of one data set, in their order.

    Raises UsageError without pyarrow; FormatError for a file that is damaged or holds no images, and for files that have
    other columns or classes than the first.
    """
    layout, groups, labels, files, size = None, [], [], [], 0
    for path in paths:
        with refusing(f"{path}: not a usable parquet file", "; get it again"), _opened(path) as file:
            own = _layout(file, path)
            layout = layout or own
            if own != layout:
                raise FormatError(f"{path}: has other columns or classes than {paths[0]}; name files of one data set")
            about = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            groups += [_Group(path, number, group.num_rows) for number, group in enumerate(about)]
            size += sum(group.total_byte_size for group in about)
            if layout.labels:
                labels += file.read(columns=[layout.labels]).column(0).to_pylist()
            stem = path.rpartition("/")[2].removesuffix(".parquet")
            files += [f"{stem}/{index}" for index in range(file.metadata.num_rows)]
    if layout is None or not files:
        raise FormatError(f"{paths[0]}: holds no rows; get it again")
    wrong = next(
        (label for label in labels if type(label) is not int or not 0 <= label < len(layout.names or labels)), 0
    )
    if wrong != 0:
        raise FormatError(f"{paths[0]}: column {layout.labels} has the label {wrong!r}, which is none of its classes")
    images = ParquetImages(groups, layout.images, size // len(files))
    refs = [ParquetRow(images, index) for index in range(len(files))]
    return ArrayImages(refs, labels if layout.labels else None, layout.names, files, in_order=True)


@dataclass(frozen=True)
class _Layout:
    """The columns of images and of labels ('' without), and the classes' names where they have some."""

    images: str
    labels: str
    names: Sequence[str]


def _layout(file: ParquetFile, path: str) -> _Layout:
    """Find the columns. Raises FormatError when there is none with images."""
    from pyarrow import types

    schema = file.schema_arrow
    structs = {column.name: column.type for column in schema if types.is_struct(column.type)}
    images = [name for name, kind in structs.items() if kind.get_field_index("bytes") >= 0]
    if not images:
        raise FormatError(
            f"{path}: no column of images among {', '.join(schema.names[:5])}; expected one with their bytes"
        )
    said = strict_json.parse((schema.metadata or {}).get(b"huggingface", b"{}"))
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
