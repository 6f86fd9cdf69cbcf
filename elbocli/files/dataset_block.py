"""The one large block of a dataset: its rows, where it lies on disk, and reading at random.

A block may be spread over the blocks of several files (a virtual dataset of HDF5); reading is the same.
"""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import DataError, FormatError
from elbocli.files.opening import NO_WAITING
from elbocli.files.reading import refusing, unreadable
from elbocli.runtime.memory_bound import bounded_memory

IMAGES, ENCODED, LATENTS = "images", "encoded", "latents"
BLOCKS = {IMAGES, ENCODED, LATENTS}
SCAN_BYTES = 16 << 20
LARGEST_CHUNK = 64 << 20
MOST_PARTS = 4096


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
        return int(np.prod(self.row, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def plain(row: tuple[int, int, int]) -> BlockLayout:
    """Plain pixels, uint8 rows (H, W, C)."""
    return BlockLayout(IMAGES, "|u1", row, int(np.prod(row)))


def encoded(claim: int) -> BlockLayout:
    """Encoded images."""
    return BlockLayout(ENCODED, "|u1", (), claim)


def latents(row: tuple[int, int, int]) -> BlockLayout:
    """Mean and standard deviation of a latent's distribution, float16 rows (2C, H, W)."""
    return BlockLayout(LATENTS, "<f2", row, 2 * int(np.prod(row)))


State = tuple[int, int]


def state_of(file: Path | int) -> State:
    """The size of a file and when it was last written to, by which a change is noticed. Raises OSError."""
    status = file.stat() if isinstance(file, Path) else os.fstat(file)
    return status.st_size, status.st_mtime_ns


def refuse_changed(file: Path | int, before: State, path: Path) -> None:
    """Raise DataError when a file, by its path or descriptor, has changed since. path: what to call it."""
    with unreadable(path, DataError):
        now = state_of(file)
    if now != before:
        sizes = f"{now[0]} bytes, {before[0]} at first"
        raise DataError(f"{path}: has changed while it was read ({sizes}); put it right, or pack it again")


class Mapped:
    """Rows in one run of bytes of a file. Whoever changes the file in place meanwhile is noticed.

    Raises FormatError when the file is cut short.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]):
        self.path, self.dtype, self.offset, self.shape = path, dtype, offset, shape
        self.row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        self.nbytes = shape[0] * self.row_bytes
        self._handle = os.open(path, NO_WAITING)
        weakref.finalize(self, os.close, self._handle)
        self._state = state_of(self._handle)
        size, wanted = self._state[0], offset + self.nbytes
        if size < wanted:
            raise FormatError(f"{path}: cut short: {size} bytes, expected {wanted}; pack it again")

    def __len__(self) -> int:
        return self.shape[0]

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

    @cached_property
    def bytes(self) -> memoryview:
        """Their bytes, to be touched in the same way."""
        return self.rows.data.cast("B")

    def __getitem__(self, wanted: slice) -> np.ndarray:
        """Read rows that follow each other. Raises DataError when the file has changed."""
        start, stop, _ = wanted.indices(len(self))
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        left, at = out.reshape(-1).view(np.uint8).data, self.offset + start * self.row_bytes
        while left and (count := os.preadv(self._handle, [left], at)):
            left, at = left[count:], at + count
        self.check()
        if left:
            raise DataError(f"{self.path}: ends at {at} bytes, which was longer; put it right, or pack it again")
        return out


class Unmapped:
    """Rows in a layout of HDF5's that is not one run of bytes, such as chunks, which may be packed.

    The file is opened for each read. Raises FormatError for chunks of absurd size.
    """

    def __init__(self, member: h5py.Dataset, path: Path):
        self.path, self._name, self._state = path, member.name, state_of(path)
        self.shape, self.dtype, self.nbytes = member.shape, member.dtype, int(member.nbytes)
        chunk = math.prod(member.chunks or ()) * member.dtype.itemsize
        if chunk > LARGEST_CHUNK:
            raise FormatError(f"{path}: its chunks have {chunk} bytes, more than {LARGEST_CHUNK}; pack it again")

    def __len__(self) -> int:
        return int(self.shape[0])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[h5py.Dataset]:
        refuse_changed(self.path, self._state, self.path)
        with bounded_memory(), h5py.File(self.path, "r", locking=False) as file:
            yield file[self._name]

    def __getitem__(self, wanted: slice) -> np.ndarray:
        """Read rows that follow each other. Raises h5py's errors, also where a chunk unpacks to much more; and DataError."""
        with self._opened() as member:
            return np.asarray(member[wanted])

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Copy the rows at those indices. Raises as reading does."""
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        with self._opened() as member:
            for k, index in enumerate(indices.tolist()):
                out[k] = member[index]
        return out


class Block:
    """An array on disk, in one part or several that follow each other.

    parts: mapped, or one that is unmapped.
    """

    def __init__(self, parts: list[Any]):
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self._starts = self._ends - [len(part) for part in parts]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(int(part.nbytes) for part in self.parts)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Copy the rows at those indices, [len(indices), …]. Raises DataError when a file has changed."""
        first = self.parts[0]
        if not isinstance(first, Mapped):
            taken: np.ndarray = first.take(indices)
            return taken
        if len(self.parts) == 1:
            first.check()
            taken = np.take(first.rows, indices, axis=0)
            first.check()
            return taken
        owners = np.searchsorted(self._ends, indices, side="right")
        starts = (indices - self._starts[owners]) * first.row_bytes
        runs = zip(owners.tolist(), starts.tolist(), (starts + first.row_bytes).tolist(), strict=True)
        parts = {owner: self.parts[owner] for owner in set(owners.tolist())}
        views = {owner: part.bytes for owner, part in parts.items()}
        for part in parts.values():
            part.check()
        # Each row copied once: gathering part by part would copy twice. Joining takes 0.85 of the time that
        # assigning row by row does.
        joined = bytearray().join([views[owner][start:stop] for owner, start, stop in runs])
        for part in parts.values():
            part.check()
        return np.frombuffer(joined, first.dtype).reshape(len(indices), *first.shape[1:])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Copy elements start to stop. Raises DataError when a file has changed."""
        first, last = np.searchsorted(self._ends, [start, max(start, stop - 1)], side="right").tolist()
        owners = zip(self.parts[first : last + 1], self._starts[first : last + 1].tolist(), strict=True)
        found = [part[max(0, start - at) : stop - at] for part, at in owners]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def scan(self) -> Iterator[np.ndarray]:
        """Yield the whole block in order, some megabytes at a time."""
        rows = max(1, SCAN_BYTES * len(self) // max(1, self.nbytes))
        for start in range(0, len(self), rows):
            yield self.read(start, min(start + rows, len(self)))


def open_block(member: h5py.Dataset, path: Path) -> Block:
    """Open the block of an HDF5 dataset in `path`. Raises FormatError when it is cut short or leaves its folder."""
    if member.is_virtual:
        return Block([_mapped_source(source, member, path) for source in _in_order(member, path)])
    return Block([_mapped(member, path)])


def _mapped(member: h5py.Dataset, path: Path) -> Any:
    """Map the array on disk, or leave a layout that is not one run of bytes to HDF5. Raises FormatError."""
    offset = member.id.get_offset() if member.chunks is None else None
    if offset is None:
        return Unmapped(member, path)
    return Mapped(path, member.dtype, offset, member.shape)


def _in_order(member: h5py.Dataset, path: Path) -> list[Any]:
    """The sources of a virtual dataset, which must follow each other without holes along the first axis."""
    count = member.id.get_create_plist().get_virtual_count()
    if count > MOST_PARTS:
        raise FormatError(f"{path}: {count} parts; a virtual dataset has at most {MOST_PARTS}")
    sources = sorted(member.virtual_sources(), key=lambda source: source.vspace.get_select_bounds()[0][0])
    end = 0
    for source in sources:
        low, high = source.vspace.get_select_bounds()
        whole = low[1:] == (0,) * (member.ndim - 1) and high[1:] == tuple(side - 1 for side in member.shape[1:])
        count = (high[0] + 1 - low[0]) * int(np.prod(member.shape[1:], dtype=np.int64))
        if low[0] != end or not whole or source.vspace.get_select_npoints() != count:
            raise FormatError(f"{path}: its parts do not follow each other; make it again with 'elbo merge'")
        end = high[0] + 1
    if end != len(member):
        raise FormatError(f"{path}: parts for {end} rows, expected {len(member)}; make it again with 'elbo merge'")
    return sources


def _mapped_source(source: Any, member: h5py.Dataset, path: Path) -> Any:
    name = source.file_name
    if Path(name).is_absolute() or ".." in Path(name).parts or os.fspath(name) in ("", "."):
        raise FormatError(f"{path}: a part is {name!r}; only files beside or below it are read")
    part = path.parent / name
    if not part.is_file():
        raise FormatError(f"{part}: no such file, but it is a part of {path}; keep both in place")
    with refusing(f"{part}: a part of {path}, can't be read"), h5py.File(part, "r", locking=False) as file:
        link = file.get(source.dset_name, getlink=True)
        found = file[source.dset_name] if isinstance(link, h5py.HardLink) else None
        low, high = source.vspace.get_select_bounds()
        if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
            raise FormatError(f"{part}: {source.dset_name!r} is not a self-contained dataset; {path} needs it")
        if found.shape != (high[0] + 1 - low[0], *member.shape[1:]) or found.dtype != member.dtype:
            raise FormatError(f"{part}: {found.dtype} {found.shape} is not what {path} was made of; merge it again")
        block = _mapped(found, part)
    if not isinstance(block, Mapped):
        raise FormatError(f"{part}: its rows are not one block; pack it again")
    return block
