"""References to images that are rows of an array: in a file, in memory, in a dataset, or in what only unpacks in order."""

from __future__ import annotations

import math
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from elbocli.errors import DataError
from elbocli.files.dataset import Dataset
from elbocli.files.reading import refusing
from elbocli.images.image_refs import ImageRef, Shape, read_bytes


class Made(Sequence[ImageRef]):
    """References that are made when they are asked for, each of a number: a million of them take no memory."""

    def __init__(self, make: Callable[[int], ImageRef], numbers: range):
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> ImageRef: ...

    @overload
    def __getitem__(self, at: slice) -> Made: ...

    def __getitem__(self, at: int | slice) -> ImageRef | Made:
        return Made(self._make, self._numbers[at]) if isinstance(at, slice) else self._make(self._numbers[at])


@dataclass(frozen=True, slots=True)
class Pixels:
    """A row of uint8 pixels of a shape, at an offset of a file."""

    path: str
    offset: int
    shape: Shape

    def read(self) -> np.ndarray:
        """Read its pixels, uint8 [H, W, C]. Raises DataError."""
        return np.frombuffer(read_bytes(self.path, self.offset, math.prod(self.shape)), np.uint8).reshape(self.shape)

    @property
    def weight(self) -> int:
        """A byte a pixel and channel."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A row of an array in memory, uint8 [N, H, W, C]."""

    rows: np.ndarray
    index: int

    def read(self) -> np.ndarray:
        """Return its pixels, uint8 [H, W, C]."""
        return np.ascontiguousarray(self.rows[self.index])

    @property
    def weight(self) -> int:
        """A byte a pixel and channel."""
        return math.prod(self.shape)

    @property
    def shape(self) -> Shape:
        """The array's."""
        _, height, width, channels = self.rows.shape
        return height, width, channels


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """A row of an elbo-dataset."""

    dataset: Dataset
    index: int

    def read(self) -> np.ndarray:
        """Read its pixels, uint8 [H, W, C]. Raises DataError."""
        return self.dataset.batch(np.array([self.index]))[0]

    @property
    def weight(self) -> int:
        """A byte a pixel and channel."""
        return math.prod(self.shape)

    @property
    def shape(self) -> Shape:
        """The dataset's."""
        _, height, width, channels = self.dataset.shape
        return height, width, channels


class Unpacked:
    """Rows of a compressed array: only in order, one after another."""

    def __init__(self, archive: zipfile.ZipFile, name: str, offset: int, shape: Shape):
        self.offset, self.shape, self.size = offset, shape, math.prod(shape)
        self._lock, self._member = threading.Lock(), archive.open(name)

    def row(self, index: int) -> np.ndarray:
        """Read a row, uint8 [H, W, C]. Raises DataError."""
        with refusing("does not unpack", kind=DataError), self._lock:
            self._member.seek(self.offset + index * self.size)
            content = self._member.read(self.size)
        if len(content) < self.size:
            raise DataError(f"cut short: {len(content)} of {self.size} bytes are there")
        return np.frombuffer(content, np.uint8).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class UnpackedRow:
    """A row of a compressed array."""

    rows: Unpacked
    index: int

    def read(self) -> np.ndarray:
        """Read its pixels, uint8 [H, W, C]. Raises DataError."""
        return self.rows.row(self.index)

    @property
    def weight(self) -> int:
        """A byte a pixel and channel."""
        return self.rows.size

    @property
    def shape(self) -> Shape:
        """The array's."""
        return self.rows.shape


def read_rows(refs: Sequence[ImageRef]) -> np.ndarray | None:
    """Read rows of one array that follow each other in one go: uint8 [N, H, W, C]. None where that isn't what they are.

    Raises DataError, and FormatError for a damaged dataset.
    """
    first = refs[0]
    if isinstance(first, Pixels):
        path, shape, size = first.path, first.shape, math.prod(first.shape)
        offsets = range(first.offset, first.offset + len(refs) * size, size)
        if all(
            isinstance(r, Pixels) and (r.path, r.offset, r.shape) == (path, at, shape) for r, at in zip(refs, offsets)
        ):
            content = read_bytes(path, first.offset, len(refs) * size)
            return np.frombuffer(content, np.uint8).reshape(len(refs), *shape)
    if isinstance(first, DatasetRow):
        data, begin = first.dataset, first.index
        if all(isinstance(r, DatasetRow) and r.dataset is data and r.index == begin + k for k, r in enumerate(refs)):
            return data.batch(range(begin, begin + len(refs)))
    return None
