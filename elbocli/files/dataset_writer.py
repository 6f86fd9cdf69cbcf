"""Writing an elbo-dataset, block first and header last.

When all rows are in place (see `resumable`), the HDF5 header, made apart for their exact number, is put in front,
labels and attributes are added behind, and the file is renamed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import DataError
from elbocli.files.atomic import write_all, writing
from elbocli.files.dataset_attributes import DatasetAttributes
from elbocli.files.dataset_block import BlockLayout
from elbocli.files.dataset_file import DIGESTS, NAMES_AT_ONCE, Arrays, Names, contents_digest
from elbocli.files.reading import one_line
from elbocli.files.resumable import Identity, Resumable, holding

LIBVER = ("earliest", "v108")


@contextlib.contextmanager
def hdf5_told() -> Iterator[None]:
    """Turn errors of HDF5 itself (a full disk met while closing, …) into the OSErrors that they are."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(one_line(error)) from error


def _skeleton(path: Path, layout: BlockLayout, shape: tuple[int, ...]) -> int:
    """Make an HDF5 file with an unwritten block of that shape, and return the block's offset."""
    with hdf5_told(), h5py.File(path, "w", libver=LIBVER) as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        plan.set_obj_track_times(False)
        space = h5py.h5s.create_simple(shape)
        kind = h5py.h5t.py_create(np.dtype(layout.dtype))
        return int(h5py.h5d.create(file.id, layout.name.encode(), kind, space, plan).get_offset())


class DatasetWriter(Resumable):
    """Writes the rows of a dataset, then the rest of it. Use `open_writer`."""

    def __init__(self, out: Path, layout: BlockLayout, limit: int, source: Identity, preallocate: bool):
        self._head = out.with_name(out.name + ".partial.head")
        with writing(out):
            offset = _skeleton(self._head, layout, (1,) * (1 + len(layout.row)))
            self._head.unlink()
        super().__init__(out, layout, offset, limit, source, preallocate)

    def finish(self, arrays: Arrays, names: Names, attributes: dict[str, Any]) -> None:
        """Add arrays (labels, …), lists of names and attributes, and give the file its name."""
        rows, size = self.rows, self.state.bytes
        attributes = {"count": rows, "payload_sha256": self.state.sha256[0], **attributes}
        with writing(self.out):
            if self._run_handle >= 0:
                ends = np.frombuffer(os.pread(self._run_handle, 8 * rows, 0), "<i8")
                arrays = {**arrays, "offsets": np.concatenate([[0], ends]).astype(np.int64)}
            length = size // self.layout.row_bytes
            if _skeleton(self._head, self.layout, (length, *self.layout.row)) != self.offset:
                where = "places images elsewhere for another count"
                raise DataError(f"{self.out}: this HDF5 library {where}; please report this")
            with open(self._head, "rb") as head:
                write_all(self._handle, head.read(self.offset), 0)
            self._head.unlink()
            os.ftruncate(self._handle, self.offset + size)
            os.fsync(self._handle)
            if self.preallocate:
                # HDF5 itself crashes when the disk is full, and cuts off in the end what it didn't need.
                os.posix_fallocate(self._handle, self.offset + size, _room(arrays, names, attributes))
            with hdf5_told(), h5py.File(self.partial, "r+", libver=LIBVER, locking=False) as file:
                for name in (*arrays, *names):
                    if name in file:
                        del file[name]
                add_contents(file, arrays, names, attributes)
            self.name()


def _room(arrays: Arrays, names: Names, attributes: dict[str, Any]) -> int:
    """Bytes that suffice for arrays, names and attributes in HDF5."""
    words = sum(4 * len(word) + 64 for listed in names.values() for word in listed)
    texts = sum(4 * len(str(value)) for value in attributes.values())
    return (1 << 17) + 2 * (words + texts) + sum(array.nbytes + 4096 for array in arrays.values())


def add_contents(file: h5py.File, arrays: Arrays, names: Names, attributes: dict[str, Any]) -> None:
    """Put everything but the block into a dataset that is being written, and the digest of it all."""
    known = {**DatasetAttributes.head(), "digests": DIGESTS}
    said = DatasetAttributes.of({**known, **attributes}, file.filename)
    # Sorted, so that the same contents are the same bytes whoever put them together.
    for name, array in sorted(arrays.items()):
        file[name] = array
    for name, words in sorted(names.items()):
        listed = file.create_dataset(name, (len(words),), h5py.string_dtype())
        for start in range(0, len(words), NAMES_AT_ONCE):  # h5py would copy all
            some = words[start : start + NAMES_AT_ONCE]
            listed[start : start + len(some)] = some
    for key, value in sorted(said.json().items()):
        # HDF5's limit of 64 KiB isn't one for text, which lies outside of the attribute itself.
        file.attrs[key] = value
    file.attrs["contents_sha256"] = contents_digest(file)


def open_writer(
    out: Path, layout: BlockLayout, limit: int, source: Identity, *, preallocate: bool = True, overwrite: bool = False
) -> contextlib.AbstractContextManager[DatasetWriter]:
    """A writer for at most `limit` rows, going on where an unfinished one with the same `source` stopped.

    source: what is packed and how. preallocate: claim the disk beforehand. overwrite: replace a finished one. Raises
    DataError, UsageError as `holding`.
    """
    return holding(out, lambda: DatasetWriter(out, layout, limit, source, preallocate), overwrite)
