"""elbo-dataset (HDF5): uint8 images in one block, read through a memory map.

`images` (N,H,W,C) contiguous, `labels` int64 (N), `class_names` and `files` UTF-8 strings, and attributes that
say how it was made. Any HDF5 tool reads it; a random batch costs what a plain array file costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import DataError, FormatError

FORMAT = "elbo-dataset"
VERSION = 1


class Dataset:
    """An opened dataset. Raises FormatError when the file is not one, or not whole."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            self._file = h5py.File(self.path, "r", locking=False)
        except FileNotFoundError:
            raise FormatError(f"{path}: no such dataset; make one with 'elbo prep SRC {path}'") from None
        except OSError as error:
            kind = "a folder" if self.path.is_dir() else "not a readable HDF5 file"
            raise FormatError(
                f"{path}: {kind}, expected an {FORMAT} made by 'elbo prep' ({' '.join(str(error).split())[:120]})"
            ) from error
        try:
            self._open()
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise FormatError(f"{path}: damaged: {' '.join(str(error).split())[:160]}; pack it again") from error

    def _open(self) -> None:
        self.attributes = _attributes(self._file)
        found = self.attributes.get("format")
        if found != FORMAT:
            raise FormatError(f"{self.path}: format is {found!r}, expected {FORMAT!r}; make one with 'elbo prep'")
        if self.attributes.get("version") != VERSION:
            raise FormatError(
                f"{self.path}: version {self.attributes.get('version')!r} is not known to this elbo; it reads version {VERSION}"
            )
        images = self._member("images")
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3) or images.shape[0] == 0:
            raise FormatError(
                f"{self.path}: 'images' is {images.dtype} {images.shape}, expected uint8 (N, H, W, 1 or 3) with N > 0"
            )
        self.shape: tuple[int, int, int, int] = images.shape
        self.labels: np.ndarray = self._labels()
        self.class_names: list[str] = (
            [text(name) for name in self._member("class_names")[()]] if "class_names" in self._file else []
        )
        self.num_classes = max(len(self.class_names), int(self.labels.max()) + 1)
        self._images = self._map(images)

    def _member(self, name: str) -> h5py.Dataset:
        link = self._file.get(name, getlink=True)
        if link is None:
            raise FormatError(f"{self.path}: no dataset {name!r} inside")
        if not isinstance(link, h5py.HardLink):
            raise FormatError(f"{self.path}: {name!r} is a link to elsewhere; only self-contained files are read")
        member = self._file[name]
        if not isinstance(member, h5py.Dataset) or member.is_virtual or member.external:
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

    def _map(self, images: h5py.Dataset) -> Any:
        """The images as an array on disk; h5py itself for layouts that are not one block."""
        offset = images.id.get_offset() if images.chunks is None else None
        if offset is None:
            return images
        if self.path.stat().st_size < offset + images.nbytes:
            raise FormatError(
                f"{self.path}: cut short: {self.path.stat().st_size} bytes, expected {offset + images.nbytes}; pack it again"
            )
        return np.memmap(self.path, np.uint8, "r", offset, images.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def image_size(self) -> int:
        """Side of the (square) images in pixels."""
        return self.shape[1]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.shape[3]

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Images at those rows, uint8 [len(indices), H, W, C], copied."""
        if isinstance(self._images, np.memmap):
            return np.take(self._images, indices, axis=0)
        try:
            return np.stack([self._images[int(i)] for i in indices])
        except (OSError, RuntimeError) as error:
            raise FormatError(f"{self.path}: damaged: {' '.join(str(error).split())[:160]}; pack it again") from error

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All images in order."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))

    def payload_digest(self) -> str:
        """sha256 of the pixels in order, to compare with the attribute `payload_sha256`."""
        return payload_digest(self.batches(max(1, (16 << 20) // int(np.prod(self.shape[1:])))))

    def identity(self) -> dict[str, Any]:
        """What a run must find again when it resumes."""
        return {
            "path": str(self.path),
            "count": len(self),
            "image_size": self.image_size,
            "channels": self.channels,
            "num_classes": self.num_classes,
            "payload_sha256": self.attributes.get("payload_sha256"),
            "class_names": self.class_names,
        }


def holds_latents(path: Path) -> bool:
    """Whether an HDF5 file holds `latents` and no images. False for anything that isn't one."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return "latents" in file and "images" not in file
    except OSError:
        return False


def payload_digest(batches: Iterator[np.ndarray]) -> str:
    """sha256 of rows of pixels."""
    digest = hashlib.sha256()
    for rows in batches:
        digest.update(np.ascontiguousarray(rows).data)
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
