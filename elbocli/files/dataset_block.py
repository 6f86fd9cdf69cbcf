"""The one large block of a dataset: its rows, where it lies on disk, and reading at random."""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import DataError, FormatError
from elbocli.files.reading import reading

IMAGES, ENCODED, LATENTS = "images", "encoded", "latents"
BLOCKS = {IMAGES, ENCODED, LATENTS}
SCAN_BYTES = 16 << 20


@dataclass(frozen=True)
class BlockLayout:
    """A block of rows of one shape, or (with row `()`) of runs of bytes of any length, told apart by `offsets`.

    name: of the dataset in HDF5. dtype: of its numbers. claim: bytes of disk to claim for each row beforehand.
    """

    name: str
    dtype: str
    row: tuple[int, ...]
    claim: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; 1 when rows are runs of bytes."""
        return math.prod(self.row) * np.dtype(self.dtype).itemsize


def plain(row: tuple[int, int, int]) -> BlockLayout:
    """Plain pixels, uint8 rows (H, W, C)."""
    return BlockLayout(IMAGES, "|u1", row, math.prod(row))


def encoded(claim: int) -> BlockLayout:
    """Encoded images."""
    return BlockLayout(ENCODED, "|u1", (), claim)


def latents(row: tuple[int, int, int]) -> BlockLayout:
    """Mean and standard deviation of a latent's distribution, float16 rows (2C, H, W)."""
    return BlockLayout(LATENTS, "<f2", row, 2 * math.prod(row))


State = tuple[int, int]


def state_of(file: Path | int) -> State:
    """The size of a file and when it was last written to, by which a change is noticed. Raises OSError."""
    status = file.stat() if isinstance(file, Path) else os.fstat(file)
    return status.st_size, status.st_mtime_ns


def refuse_changed(file: Path | int, before: State, path: Path) -> None:
    """Raise DataError when a file, by its path or descriptor, has changed since. path: what to call it."""
    with reading(path, kind=DataError):
        now = state_of(file)
    if now != before:
        sizes = f"{now[0]} bytes, {before[0]} at first"
        raise DataError(f"{path}: has changed while it was read ({sizes}); put it right, or pack it again")


class Block(ABC):
    """An array on disk, read row by row or run by run. Every read checks that nobody has changed the file."""

    shape: tuple[int, ...]
    nbytes: int

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def take(self, indices: np.ndarray) -> np.ndarray:
        """Copy the rows at those indices, [len(indices), …]. Raises DataError when the file has changed."""

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Copy elements start to stop. Raises DataError when the file has changed."""

    def scan(self) -> Iterator[np.ndarray]:
        """Yield the whole block in order, some megabytes at a time."""
        rows = max(1, SCAN_BYTES * len(self) // max(1, self.nbytes))
        for start in range(0, len(self), rows):
            yield self.read(start, min(start + rows, len(self)))


class Mapped(Block):
    """Rows in one run of bytes of a file, in mapped memory. Raises FormatError when the file is cut short."""

    def __init__(self, path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]):
        self.path, self.dtype, self.offset, self.shape = path, dtype, offset, shape
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self.nbytes = shape[0] * self.row_bytes
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self._state = state_of(self._handle)
        size, wanted = self._state[0], offset + self.nbytes
        if size < wanted:
            raise FormatError(f"{path}: cut short: {size} bytes, expected {wanted}; pack it again")

    def check(self) -> None:
        """Raise DataError when the file has changed.

        To touch what is mapped behind the end of a file that was cut short would end the process.
        """
        refuse_changed(self._handle, self._state, self.path)

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows in mapped memory, gathered in half the time of reading each. `check` before touching them, and after."""
        with open(self._handle, "rb", closefd=False) as file:
            return np.memmap(file, self.dtype, "r", self.offset, self.shape)

    def take(self, indices: np.ndarray) -> np.ndarray:
        self.check()
        taken = np.take(self.rows, indices, axis=0)
        self.check()
        return taken

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        left, at = out.reshape(-1).view(np.uint8).data, self.offset + start * self.row_bytes
        while left and (count := os.preadv(self._handle, [left], at)):
            left, at = left[count:], at + count
        self.check()
        if left:
            raise DataError(f"{self.path}: ends at {at} bytes, which was longer; put it right, or pack it again")
        return out


class Unmapped(Block):
    """Rows in a layout of HDF5's that is not one run of bytes, such as chunks. The file is opened for each read."""

    def __init__(self, member: h5py.Dataset, path: Path):
        self.path, self._name, self._state = path, member.name, state_of(path)
        self.shape, self.dtype, self.nbytes = member.shape, member.dtype, int(member.nbytes)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[h5py.Dataset]:
        refuse_changed(self.path, self._state, self.path)
        with h5py.File(self.path, "r", locking=False) as file:
            yield file[self._name]

    def take(self, indices: np.ndarray) -> np.ndarray:
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        with self._opened() as member:
            for k, index in enumerate(indices.tolist()):
                out[k] = member[index]
        return out

    def read(self, start: int, stop: int) -> np.ndarray:
        with self._opened() as member:
            return np.asarray(member[start:stop])


def open_block(member: h5py.Dataset, path: Path) -> Block:
    """Open the block of an HDF5 dataset in `path`. Raises FormatError when it is cut short."""
    offset = member.id.get_offset() if member.chunks is None else None
    return Unmapped(member, path) if offset is None else Mapped(path, member.dtype, offset, member.shape)
