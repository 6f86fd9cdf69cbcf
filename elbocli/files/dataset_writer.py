"""Writing an elbo-dataset, payload first and header last, so that a kill at any moment loses little.

`OUT.partial` is locked and claimed on disk whole before the first image, so a full disk fails at once. Rows go
to their final place; a journal beside it says how many are safe. At the end the HDF5 header, made apart for the
exact number of rows, is put in front, labels and attributes are added behind, and the file is renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import DataError
from elbocli.files.atomic import flush_folder, locked, told, write_json
from elbocli.files.dataset import DIGESTS, FORMAT, VERSION, contents_digest, payload_digest
from elbocli.files.payload import SCAN_BYTES, Layout

LIBVER = ("earliest", "v108")
LONGEST_ATTRIBUTE = 30_000
"""Characters: HDF5 keeps at most 64 KiB in an attribute."""


@contextlib.contextmanager
def hdf5_told() -> Iterator[None]:
    """HDF5's own errors (a full disk met while closing, …) as the OSErrors that they are."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())[:160]) from error


def _skeleton(path: Path, layout: Layout, shape: tuple[int, ...]) -> int:
    """An HDF5 file with an unwritten block of that shape; the block's offset."""
    with hdf5_told(), h5py.File(path, "w", libver=LIBVER) as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        plan.set_obj_track_times(False)
        space = h5py.h5s.create_simple(shape)
        kind = h5py.h5t.py_create(np.dtype(layout.dtype))
        return int(h5py.h5d.create(file.id, layout.name.encode(), kind, space, plan).get_offset())


class DatasetWriter:
    """Appends rows and remembers how far it got. Use `open_writer`."""

    def __init__(self, out: Path, layout: Layout, limit: int, source: str, preallocate: bool):
        self.out, self.layout, self.limit, self.source, self.preallocate = out, layout, limit, source, preallocate
        self.partial, self.journal, self._head, self._runs = (
            out.with_name(out.name + end) for end in (".partial", ".partial.json", ".partial.head", ".partial.runs")
        )
        self._handle = self._run_handle = -1
        self._digest: Any = None
        self.state: dict[str, Any] = {"source": source, "rows": 0, "bytes": 0, "done": 0, "notes": {}}

    def start(self, fresh: bool) -> None:
        """Open or make the unfinished file and claim the disk. fresh: whatever it holds doesn't count."""
        with told(self.out):
            self.offset = _skeleton(self._head, self.layout, (1,) * (1 + len(self.layout.row)))
            self._head.unlink()
            if fresh or not self.partial.exists():
                self.journal.unlink(missing_ok=True)
            self._handle = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644)
        resuming = self.journal.exists()
        if resuming:
            self.state = self._read_journal()
        self._digest = None if self.rows else hashlib.sha256()
        try:
            with told(self.out, f"claim {self.limit * self.layout.claim} bytes"):
                if self.preallocate:
                    os.posix_fallocate(self._handle, 0, self.offset + self.limit * self.layout.claim)
                if not self.layout.row:
                    self._run_handle = os.open(self._runs, os.O_RDWR | os.O_CREAT, 0o644)
                    os.ftruncate(self._run_handle, 8 * self.rows)
        except DataError:
            if not resuming:
                self.discard()
            raise

    def close(self) -> None:
        """Let go of the files."""
        for handle in (self._handle, self._run_handle):
            if handle >= 0:
                os.close(handle)
        self._handle = self._run_handle = -1

    def discard(self) -> None:
        """Remove the unfinished file and its journal."""
        for path in (self.partial, self.journal, self._runs):
            path.unlink(missing_ok=True)

    def _read_journal(self) -> dict[str, Any]:
        restart = f"delete {self.partial.name} and {self.journal.name} to start again"
        try:
            state = json.loads(self.journal.read_text())
            rows, done, size, source = int(state["rows"]), int(state["done"]), int(state["bytes"]), str(state["source"])
            if not 0 <= rows <= self.limit or done < 0 or size < 0 or not isinstance(state["notes"], dict):
                raise ValueError("counts that can't be")
            if self.layout.row and size != rows * self.layout.row_bytes:
                raise ValueError(f"{size} bytes for {rows} rows")
            if not self.layout.row and self._runs.stat().st_size < 8 * rows:
                raise ValueError(f"{self._runs.name} is too short")
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

    def append(
        self, rows: Sequence[bytes] | Sequence[np.ndarray] | np.ndarray, done: int, notes: dict[str, Any]
    ) -> None:
        """Write rows and make them safe. done: how far the source was read; notes: kept beside it.

        rows: arrays of the layout's row, or bytes of any length when it has none.
        """
        at, ends = int(self.state["bytes"]), []
        with told(self.out):
            for row in rows:
                view = memoryview(row if isinstance(row, bytes) else np.ascontiguousarray(row)).cast("B")  # type: ignore[arg-type, unused-ignore]
                if self._digest is not None:
                    self._digest.update(view)
                while view:
                    written = os.pwrite(self._handle, view, self.offset + at)
                    view, at = view[written:], at + written
                ends.append(at)
            os.fdatasync(self._handle)
            if self._run_handle >= 0:
                os.pwrite(self._run_handle, np.array(ends, "<i8").tobytes(), 8 * self.rows)
                os.fdatasync(self._run_handle)
        self._remember(self.rows + len(ends), at, done, notes)

    def rewind(self, rows: int, size: int, done: int, notes: dict[str, Any]) -> None:
        """Forget all but the first `rows` rows, of `size` bytes, as if the source had been read as far as `done`."""
        self._digest = None if rows else hashlib.sha256()
        self._remember(rows, size, done, notes)

    def _remember(self, rows: int, size: int, done: int, notes: dict[str, Any]) -> None:
        self.state = {"source": self.source, "rows": rows, "bytes": size, "done": done, "notes": notes}
        write_json(self.journal, self.state)

    def _payload_digest(self) -> str:
        if self._digest is not None:
            return str(self._digest.hexdigest())
        size = int(self.state["bytes"])
        payload = np.memmap(self.partial, np.uint8, "r", self.offset, (size,))
        return payload_digest(payload[start : start + SCAN_BYTES] for start in range(0, size, SCAN_BYTES))

    def finish(self, arrays: dict[str, np.ndarray], names: dict[str, list[str]], attributes: dict[str, Any]) -> None:
        """Add arrays (labels, …), lists of names and attributes, and give the file its name."""
        rows, size = self.rows, int(self.state["bytes"])
        with told(self.out):
            if self._run_handle >= 0:
                ends = np.frombuffer(os.pread(self._run_handle, 8 * rows, 0), "<i8")
                arrays = {**arrays, "offsets": np.concatenate([[0], ends]).astype(np.int64)}
            length = size // self.layout.row_bytes
            if _skeleton(self._head, self.layout, (length, *self.layout.row)) != self.offset:
                raise DataError(
                    f"{self.out}: this HDF5 library places images elsewhere for another count; please report this"
                )
            with open(self._head, "rb") as head:
                os.pwrite(self._handle, head.read(self.offset), 0)
            self._head.unlink()
            os.ftruncate(self._handle, self.offset + size)
            os.fsync(self._handle)
            digest = self._payload_digest()
            if self.preallocate:
                # HDF5 itself crashes when the disk is full, and cuts off in the end what it didn't need.
                os.posix_fallocate(self._handle, self.offset + size, _room(arrays, names))
            with hdf5_told(), h5py.File(self.partial, "r+", libver=LIBVER, locking=False) as file:
                for name in (*arrays, *names):
                    if name in file:
                        del file[name]
                add_contents(file, arrays, names, {"count": rows, "payload_sha256": digest, **attributes})
            os.fsync(self._handle)
            os.replace(self.partial, self.out)
            flush_folder(self.out.parent)
            self.journal.unlink(missing_ok=True)
            self._runs.unlink(missing_ok=True)


def _room(arrays: dict[str, np.ndarray], names: dict[str, list[str]]) -> int:
    """Bytes that suffice for arrays and names in HDF5, attributes included."""
    words = sum(len(word.encode()) + 64 for listed in names.values() for word in listed)
    return (1 << 17) + 2 * words + sum(array.nbytes + 4096 for array in arrays.values())


def add_contents(
    file: h5py.File, arrays: dict[str, np.ndarray], names: dict[str, list[str]], attributes: dict[str, Any]
) -> None:
    """Put everything but the block into a dataset that is being written, and the digest of it all."""
    # Sorted, so that the same contents are the same bytes whoever put them together.
    for name, array in sorted(arrays.items()):
        file[name] = array
    for name, words in sorted(names.items()):
        file.create_dataset(name, data=words, dtype=h5py.string_dtype())
    for key, value in sorted({"format": FORMAT, "version": VERSION, "digests": DIGESTS, **attributes}.items()):
        long = isinstance(value, str) and len(value) > LONGEST_ATTRIBUTE
        file.attrs[key] = value[:LONGEST_ATTRIBUTE] + " …" if long else value
    file.attrs["contents_sha256"] = contents_digest(file)


@contextlib.contextmanager
def open_writer(
    out: Path, layout: Layout, limit: int, source: str, *, preallocate: bool = True, fresh: bool = False
) -> Iterator[DatasetWriter]:
    """A writer for at most `limit` rows, going on where an unfinished one with the same `source` stopped.

    source: a digest of what is packed and how. preallocate: claim the disk beforehand. fresh: start again in any case.
    Raises DataError: another process, another source, a full disk.
    """
    lock = out.with_name(out.name + ".lock")
    with locked(lock, str(out)):
        try:
            writer = DatasetWriter(out, layout, limit, source, preallocate)
            try:
                writer.start(fresh)
                try:
                    yield writer
                except DataError:
                    # Nothing is lost, and other settings may be tried at once.
                    if not writer.rows:
                        writer.discard()
                    raise
            finally:
                writer.close()
        finally:
            lock.unlink(missing_ok=True)
