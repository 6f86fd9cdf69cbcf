"""The HDF5 file of an elbo-dataset: its attributes, and the arrays and lists of names beside the block.

It is open only while something is read of it, so that nobody has to close it. Members must lie in the file itself; a link to elsewhere is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import FormatError
from elbocli.files.dataset_attributes import DatasetAttributes
from elbocli.files.dataset_block import BLOCKS, refuse_changed, state_of
from elbocli.files.reading import check_file, one_line, reading
from elbocli.files.recognise import instead, recognise

NAMES_AT_ONCE = 1 << 14
DIGESTS = "payload_sha256 contents_sha256"
"""Attribute `digests`: names of those that the file holds, so that none can vanish unnoticed."""


DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)
"""Errors of h5py and numpy when the bytes of a file make no sense."""
Arrays = dict[str, np.ndarray]
Names = dict[str, list[str]]


class DatasetFile:
    """A file that was looked into. Raises FormatError when it is no dataset, or one of another version."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            check_file(self.path)
            self._state = state_of(self.path)
            self._file = h5py.File(self.path, "r", locking=False)
        except DAMAGE as error:
            if recognise(self.path) != "a dataset":
                raise FormatError(instead(self.path, "dataset")) from error
            raise FormatError(
                f"{path}: not a readable HDF5 file ({one_line(error, 120)}); make it again with 'elbo prep'"
            ) from error
        with self.damage(), self._file:
            said = attributes_of(self._file)
        self.attributes = DatasetAttributes.of(said, path)

    def damage(self) -> contextlib.AbstractContextManager[None]:
        """Turn errors of HDF5 on a damaged file into a FormatError."""
        return reading(f"{self.path}: damaged", "; pack it again", on=DAMAGE)

    @contextlib.contextmanager
    def parsing(self) -> Iterator[None]:
        """Open the file for a block, and for those within it, with `damage`. Raises DataError when it has changed."""
        if self._file:
            yield
            return
        refuse_changed(self.path, self._state, self.path)
        with self.damage(), h5py.File(self.path, "r", locking=False) as self._file:
            yield

    def member(self, name: str) -> h5py.Dataset:
        """An array of the file, within a block of `parsing`. Raises FormatError when it lies in another file."""
        link = self._file.get(name, getlink=True)
        if link is None:
            raise FormatError(f"{self.path}: no dataset {name!r} inside")
        if not isinstance(link, h5py.HardLink):
            raise FormatError(f"{self.path}: {name!r} is a link to elsewhere; only self-contained files are read")
        member = self._file[name]
        if not isinstance(member, h5py.Dataset) or member.external or member.is_virtual:
            raise FormatError(f"{self.path}: {name!r} is not a self-contained dataset")
        return member

    def read_labels(self, count: int, classes: int) -> np.ndarray:
        """The labels, int64 [count]. classes: how many there are, 0 if unknown. Raises FormatError for other labels."""
        member = self.member("labels")
        if member.shape != (count,) or member.dtype.kind not in "iu":
            raise FormatError(f"{self.path}: 'labels' is {member.dtype} {member.shape}, expected integers ({count},)")
        labels = member[()]
        low, high = int(labels.min()), int(labels.max())
        if low < 0:
            raise FormatError(f"{self.path}: a label is negative")
        limit = classes or np.iinfo(np.int64).max
        if high >= limit:
            raise FormatError(f"{self.path}: a label is {high}, expected less than {limit}; pack it again")
        return labels.astype(np.int64, copy=False)

    def strings(self, name: str) -> list[str]:
        """A list of names, such as `files`; empty when it isn't there. Raises FormatError."""
        with self.parsing():
            return [_text(value) for value in self.member(name)[()]] if name in self._file else []

    def contents(self) -> tuple[Arrays, Names]:
        """Everything beside the block: arrays, and lists of names, as a writer takes them. Raises FormatError."""
        arrays, names = {}, {}
        with self.parsing():
            for name in sorted(set(self._file) - BLOCKS):
                member = self.member(name)
                if member.dtype.kind == "O":
                    names[name] = self.strings(name)
                else:
                    arrays[name] = np.asarray(member[()])
        return arrays, names

    def lengths(self) -> dict[str, int]:
        """Number of values in each array and list of names but the block. Raises FormatError."""
        with self.parsing():
            shapes = {name: self.member(name).shape for name in sorted(set(self._file) - BLOCKS)}
        return {name: shape[0] if shape else 1 for name, shape in shapes.items()}

    def contents_digest(self) -> str:
        """The sha256 of everything but the block, to compare with the attribute `contents_sha256`. Raises FormatError."""
        with self.parsing():
            return contents_digest(self._file)


def contents_digest(file: h5py.File) -> str:
    """The sha256 of an open dataset's labels, names and attributes: all but the block and the digest itself."""
    digest = hashlib.sha256()
    attributes = {key: value for key, value in attributes_of(file).items() if key != "contents_sha256"}
    digest.update(json.dumps(attributes, sort_keys=True).encode())
    for name in sorted(set(file) - BLOCKS):
        member = file[name]
        if member.dtype.kind == "O":
            content = memoryview(_listed(member))
        else:
            values = member[()]
            content = values.astype(values.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data
        digest.update(json.dumps([name, str(member.dtype), list(member.shape), len(content)]).encode())
        digest.update(content)
    return digest.hexdigest()


def _listed(member: h5py.Dataset) -> bytes:
    """The JSON of a list of names, of which some at a time are strings of Python's, which take much more memory."""
    pieces = (member[start : start + NAMES_AT_ONCE] for start in range(0, len(member), NAMES_AT_ONCE))
    return b"[%s]" % b", ".join(json.dumps([*map(_text, piece)])[1:-1].encode() for piece in pieces)


def attributes_of(file: h5py.File) -> dict[str, Any]:
    """The attributes of an open file as plain values."""
    plain: dict[str, Any] = {}
    for name, value in file.attrs.items():
        key = _text(name)
        if isinstance(value, (bytes, str)):
            plain[key] = _text(value)
        else:
            values = np.asarray(value).tolist()
            plain[key] = [*map(_plain, values)] if isinstance(values, list) else _plain(values)
    return plain


def _plain(value: Any) -> Any:
    return _text(value) if isinstance(value, bytes) else value


def _text(value: Any) -> str:
    """A string of HDF5's, which may have been stored in either of two ways."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
