"""References to images: a file, a stretch of an archive, an entry of a zip, a row of an array.

Nothing is ever extracted to disk.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from elbocli.errors import DataError
from elbocli.files.dataset import Dataset
from elbocli.files.reading import open_file, reading

Shape = tuple[int, int, int]
DENSE = 3
"""A stretch is read whole when it is at most this many times as long as the files that are wanted of it."""


class ImageRef(Protocol):
    """A reference to one image."""

    def read(self, most: int = -1) -> bytes | np.ndarray:
        """Read an image file, or its first bytes; or pixels, uint8 [H, W, C]. Safe from any thread. Raises DataError."""

    @property
    def shape(self) -> Shape | None:
        """(H, W, C), where it is known without reading."""


def read_bytes(path: Path | str, offset: int = 0, size: int = -1, most: int = -1) -> bytes:
    """Read a regular file, `size` bytes of it, or the first `most` of these. Raises DataError for anything else."""
    try:
        with open_file(path) as file:
            wanted = os.fstat(file.fileno()).st_size - offset if size < 0 else size
            wanted = wanted if most < 0 else min(most, wanted)
            file.seek(offset)
            content = file.read(wanted)
    except OSError as error:
        dangling = isinstance(error, FileNotFoundError) and Path(path).is_symlink()
        raise DataError("a link to nothing" if dangling else f"can't be read: {error.strerror or error}") from error
    if len(content) < wanted:
        raise DataError(f"cut short: {len(content)} of {wanted} bytes are there")
    return content


@dataclass(frozen=True, slots=True)
class Span:
    """A file, or `size` bytes of it from `offset`."""

    path: str
    offset: int = 0
    size: int = -1
    shape = None

    def read(self, most: int = -1) -> bytes:
        return read_bytes(self.path, self.offset, self.size, most)


def will_need(refs: Sequence[ImageRef]) -> None:
    """Tell the kernel that these come next, so that it reads the stretch of an archive in which they lie in one go.

    Images are packed in the order of their names, and an archive may have another: it is still read once, from front to
    back, some thousand files at a time.
    """
    stretches: dict[str, tuple[int, int, int]] = {}
    for ref in refs:
        if isinstance(ref, Span) and ref.size >= 0:
            low, high, total = stretches.get(ref.path, (ref.offset, 0, 0))
            stretches[ref.path] = min(low, ref.offset), max(high, ref.offset + ref.size), total + ref.size
    for path, (low, high, total) in stretches.items():
        if high - low <= DENSE * total + (1 << 20):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), low, high - low, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """An entry of an open zip archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    shape = None

    def read(self, most: int = -1) -> bytes:
        with reading("does not unpack", kind=DataError), self.archive.open(self.info) as member:
            return member.read(most)


@dataclass(frozen=True, slots=True)
class Nowhere:
    """An entry of an archive that can't be an image (a link, a device, …)."""

    why: str
    shape = None

    def read(self, most: int = -1) -> bytes:
        raise DataError(self.why)


class FileRows(NamedTuple):
    """An array of uint8 images that lies plainly in a file, from `offset`. shape: (N, H, W, C)."""

    path: str
    offset: int
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> np.ndarray:  # type: ignore[override]
        """Read rows that follow each other. Raises DataError."""
        size = math.prod(self.shape[1:])
        content = read_bytes(self.path, self.offset + rows.start * size, (rows.stop - rows.start) * size)
        return np.frombuffer(content, np.uint8).reshape(-1, *self.shape[1:])


class DatasetRows(NamedTuple):
    """The images of an elbo-dataset, as an array."""

    dataset: Dataset

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return self.dataset.shape

    def __getitem__(self, rows: slice) -> np.ndarray:  # type: ignore[override]
        """Read rows that follow each other. Raises DataError, and FormatError for a damaged dataset."""
        return self.dataset.batch(range(rows.start, rows.stop))


class ArrayRow(NamedTuple):
    """A row of an array of uint8 images."""

    array: np.ndarray | FileRows | DatasetRows
    row: int

    def read(self, most: int = -1) -> np.ndarray:
        return np.ascontiguousarray(self.array[self.row : self.row + 1])[0]

    @property
    def shape(self) -> Shape:
        _, height, width, channels = self.array.shape
        return height, width, channels


def array_rows(array: np.ndarray | FileRows | DatasetRows) -> list[ArrayRow]:
    """References to all rows of an array."""
    return [ArrayRow(array, row) for row in range(array.shape[0])]


def read_rows(refs: Sequence[ImageRef]) -> np.ndarray | None:
    """Read rows of one array that follow each other in one go: uint8 [N, H, W, C]. None where that isn't what they are.

    Raises DataError, and FormatError for a damaged dataset.
    """
    first = refs[0]
    if isinstance(first, ArrayRow) and all(
        isinstance(ref, ArrayRow) and ref.array is first.array and ref.row == first.row + k
        for k, ref in enumerate(refs)
    ):
        return np.ascontiguousarray(first.array[first.row : first.row + len(refs)])
    return None
