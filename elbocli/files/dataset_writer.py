"""Writing an elbo-dataset, payload first and header last, so that a kill at any moment loses little.

`OUT.partial` is locked and claimed on disk whole before the first image, so a full disk fails at once. Rows go
to their final place; a journal beside it says how many are safe. At the end the HDF5 header, made apart for the
exact number of rows, is put in front, labels and attributes are added behind, and the file is renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import DataError
from elbocli.files.atomic import flush_folder, locked, told, write_json
from elbocli.files.dataset import FORMAT, VERSION, payload_digest

LIBVER = ("earliest", "v108")


def _skeleton(path: Path, shape: tuple[int, ...]) -> int:
    """An HDF5 file with an unwritten `images` of that shape; the offset of its block."""
    with h5py.File(path, "w", libver=LIBVER) as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        plan.set_obj_track_times(False)
        space = h5py.h5s.create_simple(shape)
        return int(h5py.h5d.create(file.id, b"images", h5py.h5t.STD_U8LE, space, plan).get_offset())


class DatasetWriter:
    """Appends rows and remembers how far it got. Use `open_writer`."""

    def __init__(self, out: Path, row_shape: tuple[int, int, int], limit: int, source: str):
        self.out, self.row_shape, self.limit, self.source = out, row_shape, limit, source
        self.partial, self.journal, self._head = (
            out.with_name(out.name + end) for end in (".partial", ".partial.json", ".partial.head")
        )
        self.row_bytes = int(np.prod(row_shape))
        self._handle = -1
        self.state: dict[str, Any] = {"source": source, "rows": 0, "done": 0, "notes": {}}

    def _start(self) -> None:
        with told(self.out):
            self.offset = _skeleton(self._head, (1, 1, 1, 1))
            self._head.unlink()
            if not self.partial.exists():
                self.journal.unlink(missing_ok=True)
            self._handle = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644)
        resuming = self.journal.exists()
        if resuming:
            self.state = self._read_journal()
        try:
            with told(self.out, f"claim {self.limit * self.row_bytes} bytes"):
                os.posix_fallocate(self._handle, 0, self.offset + self.limit * self.row_bytes)
        except DataError:
            if not resuming:
                self.partial.unlink()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def discard(self) -> None:
        """Remove the unfinished file and its journal."""
        for path in (self.partial, self.journal):
            path.unlink(missing_ok=True)

    def _read_journal(self) -> dict[str, Any]:
        restart = f"delete {self.partial.name} and {self.journal.name} to start again"
        try:
            state = json.loads(self.journal.read_text())
            rows, done, source = int(state["rows"]), int(state["done"]), str(state["source"])
            if not 0 <= rows <= done or not isinstance(state["notes"], dict):
                raise ValueError("counts that can't be")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.journal}: not usable ({error}); {restart}") from error
        if source != self.source:
            raise DataError(
                f"{self.partial}: an unfinished prep of another source or with other settings; finish that one, or {restart}"
            )
        if done > self.limit:
            raise DataError(f"{self.journal}: {done} images done, but there are only {self.limit}; {restart}")
        return dict(state)

    @property
    def rows(self) -> int:
        """Rows that are safe on disk."""
        return int(self.state["rows"])

    def append(self, rows: np.ndarray, done: int, notes: dict[str, Any]) -> None:
        """Write rows [k, H, W, C] and make them safe. done: how far the source was read; notes: kept beside it."""
        with told(self.out):
            view = np.ascontiguousarray(rows).reshape(-1).data
            at = self.offset + self.rows * self.row_bytes
            while view:
                written = os.pwrite(self._handle, view, at)
                view, at = view[written:], at + written
            os.fdatasync(self._handle)
        self.state = {"source": self.source, "rows": self.rows + len(rows), "done": done, "notes": notes}
        write_json(self.journal, self.state)

    def _rows(self, size: int = 4096) -> Iterator[np.ndarray]:
        payload = np.memmap(self.partial, np.uint8, "r", self.offset, (self.rows, self.row_bytes))
        for start in range(0, self.rows, size):
            yield payload[start : start + size]

    def finish(self, arrays: dict[str, np.ndarray], names: dict[str, list[str]], attributes: dict[str, Any]) -> None:
        """Add arrays (labels, …), lists of names and attributes, and give the file its name."""
        rows = self.rows
        with told(self.out):
            if _skeleton(self._head, (rows, *self.row_shape)) != self.offset:
                raise DataError(
                    f"{self.out}: this HDF5 library places images elsewhere for another count; please report this"
                )
            os.pwrite(self._handle, self._head.read_bytes()[: self.offset], 0)
            self._head.unlink()
            os.ftruncate(self._handle, self.offset + rows * self.row_bytes)
            os.fsync(self._handle)
            digest = payload_digest(self._rows())
            with h5py.File(self.partial, "r+", libver=LIBVER, locking=False) as file:
                for name in (*arrays, *names):
                    if name in file:
                        del file[name]
                for name, array in arrays.items():
                    file[name] = array
                for name, words in names.items():
                    file.create_dataset(name, data=words, dtype=h5py.string_dtype())
                file.attrs.update(
                    {"format": FORMAT, "version": VERSION, "count": rows, "payload_sha256": digest, **attributes}
                )
            os.fsync(self._handle)
            os.replace(self.partial, self.out)
            flush_folder(self.out.parent)
            self.journal.unlink(missing_ok=True)


@contextlib.contextmanager
def open_writer(out: Path, row_shape: tuple[int, int, int], limit: int, source: str) -> Iterator[DatasetWriter]:
    """A writer for at most `limit` rows, going on where an unfinished one with the same `source` stopped.

    source: a digest of what is packed and how. Raises DataError: another process, another source, a full disk.
    """
    lock = out.with_name(out.name + ".lock")
    with locked(lock, str(out)):
        try:
            writer = DatasetWriter(out, row_shape, limit, source)
            try:
                writer._start()
                yield writer
            finally:
                writer.close()
        finally:
            lock.unlink(missing_ok=True)
