"""Parquet files with images, as written by Hugging Face's `datasets`.

Image column: struct of `bytes` (an image file) and `path`. Class names: in the schema's metadata.
"""

from __future__ import annotations

import json
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from elbocli.data.registry import ImageRef, Images, SourceFile, source
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.reading import reading

if TYPE_CHECKING:
    from pyarrow import BinaryArray
    from pyarrow.parquet import ParquetFile

LABELS = ("label", "labels", "fine_label")  # names of the label column, most preferred first
LOCK = threading.Lock()


@lru_cache(2)
def _row_group(path: str, number: int, column: str) -> BinaryArray:
    # The image files of a row group, as a pyarrow array of bytes.
    with _opened(path) as file:
        return file.read_row_group(number, columns=[f"{column}.bytes"]).column(0).combine_chunks().field("bytes")


class ParquetRow(NamedTuple):
    """Reference to an image in a parquet file.

    group: (path, number of the row group, image column). row: index in the group.
    """

    group: tuple[str, int, str]
    row: int

    def read(self, most: int = -1) -> bytes:
        # The lock keeps threads from reading the same row group twice.
        with LOCK, reading("can't be read from its parquet file", kind=DataError):
            return bytes(_row_group(*self.group)[self.row].as_py())


@source("a parquet file")
def open_parquet(*files: SourceFile) -> Images:
    """Open the images in the parquet files of one data set.

    Raises UsageError without pyarrow.
    Raises FormatError if a file is damaged, in an archive, without images, or unlike the first file.
    """
    _row_group.cache_clear()
    layout = None
    labels = []
    names = []
    refs = list[ImageRef]()
    for path in files:
        if not isinstance(path, Path):
            raise FormatError(f"{path.name}: a parquet file in an archive can't be read; unpack the archive first")
        with reading(f"{path}: not a usable parquet file", "; get it again"), _opened(str(path)) as file:
            images, column, classes = found = _layout(file)
            layout = layout or found
            if layout != found:
                raise FormatError(f"has other columns or classes than {files[0].name}; give files of one data set")
            for number in range(file.metadata.num_row_groups):
                count = file.metadata.row_group(number).num_rows
                refs += [ParquetRow((str(path), number, images), row) for row in range(count)]
            if column:
                labels += file.read(columns=[column]).column(0).to_pylist()
            names += [f"{path.stem}/{row}" for row in range(file.metadata.num_rows)]
    for name, label in zip(names, labels):
        if type(label) is not int or not 0 <= label < len(classes or labels):
            raise FormatError(f"{name}: label {label!r} is not from 0 to {len(classes or labels) - 1}; get the file again")
    return Images(names, labels or None, refs, classes)


def _layout(file: ParquetFile) -> tuple[str, str, list[str]]:
    # (image column, label column or '', class names).
    from pyarrow import types

    schema = file.schema_arrow
    images = [field.name for field in schema if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0]
    if not images:
        raise FormatError(f"no column of images (with image bytes) among {', '.join(schema.names[:5])}; give other files")
    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = written.get("info", {}).get("features", {})
    classes = {name: feature["names"] for name, feature in features.items() if "names" in feature}
    numbers = [column.name for column in schema if types.is_integer(column.type)]
    labels = next((name for name in (*LABELS, *classes) if name in numbers), "")
    return images[0], labels, list(map(str, classes.get(labels, ())))


def _opened(path: str) -> ParquetFile:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError(f"{path}: parquet files need pyarrow; pip install 'elbocli[parquet]'") from error
    return ParquetFile(path)
