"""elbo-dataset (HDF5): images or latents in one block, read through a memory map.

The block is `images` uint8 (N,H,W,C), or `encoded` bytes with `offsets` (N+1), or `latents` float16 (N,2C,H,W).
Beside it: `labels` int64 (N), `class_names` and `files` UTF-8 strings, and attributes that say how it was made.
Any HDF5 tool reads it; a random batch costs no more than one of a plain array file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import h5py
import numpy as np

from elbocli.errors import DataError, FormatError
from elbocli.files import dataset_block as blocks
from elbocli.files.checkpoint import RunData
from elbocli.files.dataset_block import ENCODED, IMAGES, LATENTS, SCAN_BYTES, Block, BlockLayout, open_block
from elbocli.files.dataset_file import DatasetFile
from elbocli.files.encodings import ENCODINGS, RAW
from elbocli.files.latents import LatentSpace, read_space

PREPROCESSING = ("crop", "filter")
"""Attributes that say how images were made of their originals, besides the size."""


class Dataset(DatasetFile):
    """A dataset to read from. latents: whether one of latents will do, too.

    Raises FormatError when the file is no dataset, or not whole, or holds latents where pixels are needed.
    """

    def __init__(self, path: Path | str, latents: bool = False):
        super().__init__(path)
        with self.parsing():
            self.kind: str = next((kind for kind in (IMAGES, ENCODED, LATENTS) if kind in self._file), IMAGES)
            member = self.member(self.kind)
            self.shape: tuple[int, int, int, int] = self._shape(member)
            self.block: Block = open_block(member, self.path)
            self.class_names: list[str] = self.strings("class_names")
            classes = len(self.class_names) or self.attributes.num_classes or 0
            self.labels: np.ndarray = self.read_labels(len(self), classes)
            self.num_classes = classes or int(self.labels.max()) + 1
        if self.kind == LATENTS and not latents:
            remedy = "name the dataset of the images themselves"
            raise FormatError(f"{path}: holds latents, pixels are needed here; {remedy}")

    def _shape(self, member: h5py.Dataset) -> tuple[int, int, int, int]:
        """Check the block; return the shape (N, H, W, C) of its images. Raises FormatError."""
        if self.kind == ENCODED:
            return self._encoded_shape(member)
        found = f"{self.path}: {self.kind!r} is {member.dtype} {member.shape}"
        n, *row = member.shape if member.ndim == 4 else (0, 0, 0, 0)
        if self.kind == LATENTS:
            if member.dtype != np.float16 or n == 0 or row[0] % 2 or min(row) < 1:
                raise FormatError(f"{found}, expected float16 (N, 2C, H, W) with N > 0")
            return n, row[1], row[2], row[0] // 2
        if member.dtype != np.uint8 or n == 0 or row[2] not in (1, 3) or min(row) < 1:
            raise FormatError(f"{found}, expected uint8 (N, H, W, 1 or 3) with N > 0")
        return n, row[0], row[1], row[2]

    def _encoded_shape(self, member: h5py.Dataset) -> tuple[int, int, int, int]:
        known = self.attributes
        store, size, channels = known.store, known.image_size, known.channels
        if store not in ENCODINGS:
            raise FormatError(f"{self.path}: store is {store!r}, expected one of {', '.join(ENCODINGS)}")
        if not size or channels not in (1, 3):
            raise FormatError(f"{self.path}: image_size is {size!r} and channels {channels!r}; pack it again")
        offsets = self.member("offsets")
        if member.dtype != np.uint8 or member.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
            raise FormatError(f"{self.path}: 'encoded' is {member.dtype} {member.shape}, expected uint8 with 'offsets'")
        ends = self._offsets = offsets[()].astype(np.int64)
        if len(ends) < 2 or ends[0] != 0 or ends[-1] != len(member) or (np.diff(ends) <= 0).any():
            raise FormatError(f"{self.path}: damaged: its offsets are not those of {len(member)} bytes; pack it again")
        return len(ends) - 1, size, size, channels

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """(image uint8 [C, H, W], or the stored moments of a latent float16 [2C, H, W]; label), as a DataLoader takes them."""
        row = range(len(self))[index]
        (image,) = self.batch(range(row, row + 1))
        return image if self.kind == LATENTS else np.ascontiguousarray(image.transpose(2, 0, 1)), int(self.labels[row])

    def __reduce__(self) -> tuple[type[Dataset], tuple[Path, bool]]:
        return Dataset, (self.path, self.kind == LATENTS)

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, {len(self)} {self.kind}, {self.num_classes} classes)"

    @property
    def store(self) -> str:
        """The way in which images are kept: raw, or the name of an encoding."""
        return str(self.attributes.store) if self.kind == ENCODED else RAW

    @property
    def image_size(self) -> int:
        """Side of the (square) images in pixels, or of the latents."""
        return self.shape[1]

    def check_square(self) -> None:
        """Raise FormatError where its images, which a network is to see, are not square."""
        _, height, width, _ = self.shape
        if height != width:
            size = f"{width} x {height} {'latents' if self.kind == LATENTS else 'pixels'}"
            raise FormatError(f"{self.path}: its images are {size}, and networks see squares; pack it with 'elbo prep'")

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB), or those of the latents."""
        return self.shape[3]

    @property
    def latent_space(self) -> LatentSpace | None:
        """The space of its latents; None for pixels. Raises FormatError when its attributes don't say."""
        return read_space(self.attributes.more, self.channels, self.path) if self.kind == LATENTS else None

    def batch(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Rows at those indices, copied: images uint8 [len(indices), H, W, C], or latents float16 [.., 2C, H, W].

        Raises FormatError when they are damaged, DataError when somebody has changed the file meanwhile.
        """
        with self.damage():
            rows = np.asarray(indices)
            if self.kind == ENCODED:
                return self._decoded(rows)
            if isinstance(indices, range) and indices.step == 1:
                return self.block.read(indices.start, indices.stop)
            return self.block.take(rows)

    def _decoded(self, indices: np.ndarray) -> np.ndarray:
        out = np.empty((len(indices), *self.shape[1:]), np.uint8)
        encoding = ENCODINGS[self.store]

        def decode(k: int) -> None:
            index = int(indices[k])
            content = self.block.read(self._offsets[index], self._offsets[index + 1])
            try:
                encoding.decode(content, out[k])
            except DataError as error:
                raise FormatError(f"{self.path}: damaged: row {index} is {error}; pack it again") from error

        for _ in _decoders().map(decode, range(len(indices))):
            pass
        return out

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yield all rows in order, `size` at a time. Raises FormatError when they are damaged."""
        for start in range(0, len(self), size):
            yield self.batch(range(start, min(start + size, len(self))))

    def pieces(self) -> Iterator[np.ndarray | list[np.ndarray]]:
        """Yield the block's rows in order as they are on disk, some megabytes at a time: arrays, or runs of encoded bytes."""
        if self.kind != ENCODED:
            rows = self.block.scan()
            while (piece := self._next(rows)) is not None:
                yield piece
            return
        start = 0
        while start < len(self):
            stop = int(np.searchsorted(self._offsets, self._offsets[start] + SCAN_BYTES, side="right")) - 1
            stop = min(max(stop, start + 1), len(self))
            ends = self._offsets[start + 1 : stop] - self._offsets[start]
            yield np.split(self.block.read(self._offsets[start], self._offsets[stop]), ends)
            start = stop

    def _next(self, rows: Iterator[np.ndarray]) -> np.ndarray | None:
        with self.damage():
            return next(rows, None)

    @property
    def layout(self) -> BlockLayout:
        """The layout of the block on disk."""
        if self.kind == ENCODED:
            return blocks.encoded(-(-self.block.nbytes // len(self)))
        height, width, channels = self.shape[1:]
        return blocks.latents((2 * channels, height, width)) if self.kind == LATENTS else blocks.plain(self.shape[1:])

    def identity(self) -> RunData:
        """Facts that a run must find again when it resumes."""
        space, known = self.latent_space, self.attributes
        return RunData(
            path=str(self.path),
            count=len(self),
            image_size=self.image_size,
            channels=self.channels,
            num_classes=self.num_classes,
            payload_sha256=known.payload_sha256,
            class_names=self.class_names,
            crop=known.crop,
            filter=known.filter,
            more={} if space is None else space.attributes(),
        )


@cache
def _decoders() -> ThreadPoolExecutor:
    """Threads that decode: Pillow lets go of the interpreter lock meanwhile."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="elbo-decode")


os.register_at_fork(after_in_child=_decoders.cache_clear)  # a DataLoader's forked workers have none of these threads


def find_dataset(folder: Path) -> Path:
    """Find the only elbo-dataset in a folder. Raises DataError when there is none, or more than one."""
    found = []
    for path in sorted(folder.glob("*.h5")):
        with contextlib.suppress(FormatError):
            DatasetFile(path)
            found.append(path)
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} datasets here ({', '.join(p.name for p in found)})" if found else "no dataset here"
    raise DataError(f"{what}; name one, set ELBO_DATA, or make one with 'elbo prep SRC OUT.h5'")
