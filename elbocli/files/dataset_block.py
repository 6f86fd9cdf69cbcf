"""The one large block of a dataset: its rows, where it lies on disk, and reading at random.

A block may be spread over the blocks of several files (a virtual dataset of HDF5); reading is the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import FormatError
from elbocli.files.reading import refusing

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


class Block:
    """An array on disk, in one part or several that follow each other."""

    def __init__(self, parts: list[Any]):
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self._starts = self._ends - [len(part) for part in parts]
        mapped = all(isinstance(part, np.memmap) for part in parts)
        self._views = [memoryview(part).cast("B") for part in parts] if mapped else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(int(part.nbytes) for part in self.parts)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Copy the rows at those indices, [len(indices), …]."""
        first = self.parts[0]
        if len(self.parts) == 1 and isinstance(first, np.memmap):
            return np.take(first, indices, axis=0)
        rows = np.asarray(indices)
        owners = np.searchsorted(self._ends, rows, side="right")
        places = rows - self._starts[owners]
        if self._views is None:
            out = np.empty((len(rows), *first.shape[1:]), first.dtype)
            for k, (owner, place) in enumerate(zip(owners.tolist(), places.tolist(), strict=True)):
                out[k] = self.parts[owner][place]
            return out
        # Each row copied once: gathering part by part would copy twice. Joining takes 0.85 of the time that
        # assigning row by row does.
        size = first[:1].nbytes
        starts = places * size
        runs = zip(owners.tolist(), starts.tolist(), (starts + size).tolist(), strict=True)
        joined = bytearray().join([self._views[owner][start:stop] for owner, start, stop in runs])
        return np.frombuffer(joined, first.dtype).reshape(len(rows), *first.shape[1:])

    def run(self, start: int, stop: int) -> Any:
        """Read elements start to stop, which must lie in one part: a view of a mapped file."""
        owner = int(np.searchsorted(self._ends, start, side="right")) if start < stop else 0
        begin = int(self._starts[owner])
        return self.parts[owner][start - begin : stop - begin]

    def scan(self) -> Iterator[np.ndarray]:
        """Yield the whole block in order, some megabytes at a time."""
        for part in self.parts:
            rows = max(1, SCAN_BYTES // max(1, int(part.nbytes) // max(1, len(part))))
            for start in range(0, len(part), rows):
                yield np.ascontiguousarray(part[start : start + rows])


def open_block(member: h5py.Dataset, path: Path) -> Block:
    """Open the block of an HDF5 dataset in `path`. Raises FormatError when it is cut short or leaves its folder."""
    if member.is_virtual:
        return Block([_mapped_source(source, member, path) for source in _in_order(member, path)])
    return Block([_mapped(member, path)])


def _mapped(member: h5py.Dataset, path: Path) -> Any:
    """Map the array on disk; layouts that are not one run of bytes are left to h5py."""
    offset = member.id.get_offset() if member.chunks is None else None
    if offset is None:
        return member
    size = path.stat().st_size
    if size < offset + member.nbytes:
        raise FormatError(f"{path}: cut short: {size} bytes, expected {offset + member.nbytes}; pack it again")
    return np.memmap(path, member.dtype, "r", offset, member.shape)


def _in_order(member: h5py.Dataset, path: Path) -> list[Any]:
    """The sources of a virtual dataset, which must follow each other without holes along the first axis."""
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
    if not isinstance(block, np.memmap):
        raise FormatError(f"{part}: its rows are not one block; pack it again")
    return block
