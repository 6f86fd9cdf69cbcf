"""elbo-dataset (HDF5): images or latents in one block, read through a memory map.

The block is `images` uint8 (N,H,W,C), or `encoded` bytes with `offsets` (N+1), or `latents` float16 (N,2C,H,W).
Beside it: `labels` int64 (N), `class_names` and `files` UTF-8 strings, and attributes that say how it was made.
Any HDF5 tool reads it; a random batch costs what a plain array file costs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import DataError, FormatError
from elbocli.files.dataset_block import (
    ENCODED,
    IMAGES,
    LATENTS,
    SCAN_BYTES,
    Block,
    BlockLayout,
    encoded,
    latents,
    open_block,
    plain,
)
from elbocli.files.encodings import ENCODINGS, RAW
from elbocli.files.latents import LatentSpace, read_space

FORMAT = "elbo-dataset"
VERSION = 1
PREPROCESSING = ("crop", "filter")
"""Attributes that say how images were made of those that they come from, where the size doesn't."""
LARGEST_SIDE = 8192
DIGESTS = "payload_sha256 contents_sha256"
"""Attribute `digests`: those that a file holds, so that none can vanish unnoticed. Older files don't say."""
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)
"""What h5py and numpy raise when the bytes of a file make no sense."""


class Dataset:
    """An opened dataset. latents: whether one of latents will do, too.

    Raises FormatError when the file is no dataset, or not whole, or holds latents where pixels are needed.
    """

    def __init__(self, path: Path | str, latents: bool = False):
        self.path = Path(path)
        try:
            self._file = h5py.File(self.path, "r", locking=False)
        except FileNotFoundError:
            raise FormatError(f"{path}: no such dataset; make one with 'elbo prep SRC {path}'") from None
        except DAMAGE as error:
            kind = "a folder" if self.path.is_dir() else "not a readable HDF5 file"
            raise FormatError(
                f"{path}: {kind}, expected an {FORMAT} made by 'elbo prep' ({' '.join(str(error).split())[:120]})"
            ) from error
        with self._damage():
            self._open()
        if self.kind == LATENTS and not latents:
            raise FormatError(
                f"{path}: holds latents, pixels are needed here; name the dataset of the images themselves"
            )

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """What HDF5 says of a damaged file, as a FormatError."""
        try:
            yield
        except DAMAGE as error:
            raise FormatError(f"{self.path}: damaged: {' '.join(str(error).split())[:160]}; pack it again") from error

    def _open(self) -> None:
        self.attributes = _attributes(self._file)
        found = self.attributes.get("format")
        if found != FORMAT:
            raise FormatError(f"{self.path}: format is {found!r}, expected {FORMAT!r}; make one with 'elbo prep'")
        if self.attributes.get("version") != VERSION:
            raise FormatError(
                f"{self.path}: version {self.attributes.get('version')!r} is not known to this elbo; it reads version {VERSION}"
            )
        kinds = [kind for kind in (IMAGES, ENCODED, LATENTS) if kind in self._file]
        self.kind: str = kinds[0] if kinds else IMAGES
        member = self._member(self.kind, virtual=True)
        self.shape: tuple[int, int, int, int] = self._shape(member)
        self.labels: np.ndarray = self._labels()
        self.class_names: list[str] = (
            [text(name) for name in self._member("class_names")[()]] if "class_names" in self._file else []
        )
        self.num_classes = max(len(self.class_names), int(self.labels.max()) + 1)
        self.block: Block = open_block(member, self.path)

    def _shape(self, member: h5py.Dataset) -> tuple[int, int, int, int]:
        """(N, H, W, C) of what comes out."""
        if self.kind == ENCODED:
            return self._encoded_shape(member)
        n, *row = member.shape if member.ndim == 4 else (0, 0, 0, 0)
        if self.kind == LATENTS:
            if member.dtype != np.float16 or n == 0 or row[0] % 2 or row[0] < 2:
                raise FormatError(
                    f"{self.path}: 'latents' is {member.dtype} {member.shape}, expected float16 (N, 2C, H, W) with N > 0"
                )
            return n, row[1], row[2], row[0] // 2
        if member.dtype != np.uint8 or n == 0 or row[2] not in (1, 3):
            raise FormatError(
                f"{self.path}: 'images' is {member.dtype} {member.shape}, expected uint8 (N, H, W, 1 or 3) with N > 0"
            )
        return n, row[0], row[1], row[2]

    def _encoded_shape(self, member: h5py.Dataset) -> tuple[int, int, int, int]:
        store, size, channels = (self.attributes.get(key) for key in ("store", "image_size", "channels"))
        if store not in ENCODINGS:
            raise FormatError(f"{self.path}: store is {store!r}, expected one of {', '.join(ENCODINGS)}")
        if not isinstance(size, int) or not 0 < size <= LARGEST_SIDE or channels not in (1, 3):
            raise FormatError(f"{self.path}: image_size is {size!r} and channels {channels!r}; pack it again")
        offsets = self._member("offsets")
        if member.dtype != np.uint8 or member.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
            raise FormatError(f"{self.path}: 'encoded' is {member.dtype} {member.shape}, expected uint8 with 'offsets'")
        self._offsets = offsets[()].astype(np.int64)
        ends = self._offsets
        if len(ends) < 2 or ends[0] != 0 or ends[-1] != len(member) or (np.diff(ends) <= 0).any():
            raise FormatError(f"{self.path}: damaged: its offsets are not those of {len(member)} bytes; pack it again")
        return len(ends) - 1, size, size, channels

    def _member(self, name: str, virtual: bool = False) -> h5py.Dataset:
        link = self._file.get(name, getlink=True)
        if link is None:
            raise FormatError(f"{self.path}: no dataset {name!r} inside")
        if not isinstance(link, h5py.HardLink):
            raise FormatError(f"{self.path}: {name!r} is a link to elsewhere; only self-contained files are read")
        member = self._file[name]
        if not isinstance(member, h5py.Dataset) or member.external or (member.is_virtual and not virtual):
            raise FormatError(f"{self.path}: {name!r} is not a self-contained dataset")
        return member

    def _labels(self) -> np.ndarray:
        member = self._member("labels")
        if member.shape != (len(self),) or member.dtype.kind not in "iu":
            raise FormatError(
                f"{self.path}: 'labels' is {member.dtype} {member.shape}, expected integers ({len(self)},)"
            )
        labels = member[()].astype(np.int64)
        if int(labels.min()) < 0:
            raise FormatError(f"{self.path}: a label is negative")
        return np.asarray(labels)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def store(self) -> str:
        """How the images are kept: raw, or the name of an encoding."""
        return str(self.attributes["store"]) if self.kind == ENCODED else RAW

    @property
    def image_size(self) -> int:
        """Side of the (square) images in pixels, or of the latents."""
        return self.shape[1]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB), or those of the latents."""
        return self.shape[3]

    @property
    def latent_space(self) -> LatentSpace | None:
        """What its latents are; None for pixels. Raises FormatError when its attributes don't say."""
        return read_space(self.attributes, self.channels, self.path) if self.kind == LATENTS else None

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Rows at those indices, copied: images uint8 [len(indices), H, W, C], or latents float16 [.., 2C, H, W].

        Raises FormatError when they are damaged.
        """
        with self._damage():
            return self._decoded(np.asarray(indices)) if self.kind == ENCODED else self.block.take(indices)

    def _decoded(self, indices: np.ndarray) -> np.ndarray:
        out = np.empty((len(indices), *self.shape[1:]), np.uint8)
        encoding = ENCODINGS[self.store]

        def decode(k: int) -> None:
            index = int(indices[k])
            start, stop = self._offsets[index], self._offsets[index + 1]
            try:
                encoding.decode(self.block.run(start, stop), out[k])
            except DataError as error:
                raise FormatError(f"{self.path}: damaged: row {index} is {error}; pack it again") from error

        for _ in _decoders().map(decode, range(len(indices))):
            pass
        return out

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All rows in order."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))

    def payload_digest(self) -> str:
        """sha256 of the block in order, to compare with the attribute `payload_sha256`."""
        with self._damage():
            return payload_digest(self.block.scan())

    def contents_digest(self) -> str:
        """sha256 of everything but the block, to compare with the attribute `contents_sha256`."""
        with self._damage():
            return contents_digest(self._file)

    def strings(self, name: str) -> list[str]:
        """A list of names, such as `files`; empty when it isn't there."""
        with self._damage():
            return [text(value) for value in self._member(name)[()]] if name in self._file else []

    def contents(self) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
        """Everything beside the block: arrays, and lists of names, as a writer takes them."""
        arrays, names = {}, {}
        with self._damage():
            for name in sorted(set(self._file) - {IMAGES, ENCODED, LATENTS}):
                member = self._member(name)
                if member.dtype.kind == "O":
                    names[name] = self.strings(name)
                else:
                    arrays[name] = np.asarray(member[()])
        return arrays, names

    def pieces(self) -> Iterator[np.ndarray | list[np.ndarray]]:
        """The block's rows in order as they are on disk, some megabytes at a time: arrays, or runs of encoded bytes."""
        if self.kind != ENCODED:
            yield from self.block.scan()
            return
        start = 0
        while start < len(self):
            stop = int(np.searchsorted(self._offsets, self._offsets[start] + SCAN_BYTES, side="right")) - 1
            stop = min(max(stop, start + 1), len(self))
            yield [self.block.run(self._offsets[k], self._offsets[k + 1]) for k in range(start, stop)]
            start = stop

    @property
    def self_contained(self) -> bool:
        """Whether the block is one run of bytes in this very file."""
        return not self._member(self.kind, virtual=True).is_virtual and isinstance(self.block.parts[0], np.memmap)

    @property
    def layout(self) -> BlockLayout:
        """How the block lies on disk."""
        if self.kind == ENCODED:
            return encoded(-(-self.block.nbytes // len(self)))
        height, width, channels = self.shape[1:]
        return latents((2 * channels, height, width)) if self.kind == LATENTS else plain((height, width, channels))

    def identity(self) -> dict[str, Any]:
        """What a run must find again when it resumes."""
        space = self.latent_space
        return {
            "path": str(self.path),
            "count": len(self),
            "image_size": self.image_size,
            "channels": self.channels,
            "num_classes": self.num_classes,
            "payload_sha256": self.attributes.get("payload_sha256"),
            "class_names": self.class_names,
            **{key: self.attributes[key] for key in PREPROCESSING if key in self.attributes},
            **({} if space is None else space.attributes()),
        }


@cache
def _decoders() -> ThreadPoolExecutor:
    """Threads that decode: Pillow lets go of the interpreter lock meanwhile."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="elbo-decode")


def payload_digest(batches: Iterator[np.ndarray]) -> str:
    """sha256 of rows of pixels."""
    digest = hashlib.sha256()
    for rows in batches:
        digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()


def contents_digest(file: h5py.File) -> str:
    """sha256 of an open dataset's labels, names and attributes, all but the block and the digest itself."""
    digest = hashlib.sha256()
    attributes = {key: value for key, value in _attributes(file).items() if key != "contents_sha256"}
    digest.update(json.dumps(attributes, sort_keys=True).encode())
    for name in sorted(set(file) - {IMAGES, ENCODED, LATENTS}):
        member = file[name]
        values = member[()]
        if member.dtype.kind == "O":
            content = json.dumps([text(value) for value in values]).encode()
        else:
            content = values.astype(values.dtype.newbyteorder("<")).tobytes()
        digest.update(json.dumps([name, str(member.dtype), list(member.shape), len(content)]).encode() + content)
    return digest.hexdigest()


def text(value: Any) -> str:
    """A string of HDF5's, whatever way it was stored."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _attributes(file: h5py.File) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key in file.attrs:
        value = file.attrs[key]
        plain[key] = (
            text(value)
            if isinstance(value, (bytes, str))
            else value.item()
            if np.ndim(value) == 0
            else np.asarray(value).tolist()
        )
    return plain


def find_dataset(folder: Path) -> Path:
    """The only elbo-dataset in a folder. Raises DataError, listing them, when there is none or more than one."""
    found = []
    for path in sorted(folder.glob("*.h5")):
        try:
            with h5py.File(path, "r", locking=False) as file:
                if _attributes(file).get("format") == FORMAT:
                    found.append(path)
        except OSError:
            continue
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} datasets here ({', '.join(p.name for p in found)})" if found else "no dataset here"
    raise DataError(f"{what}; name one, set ELBO_DATA, or make one with 'elbo prep SRC OUT.h5'")
