"""Writing large files so that a kill at any moment loses little: rows of any format, and datasets.

`OUT.partial` is locked and claimed on disk whole before the first row, so a full disk fails at once. Rows go to their
final place; a journal beside it says how many are safe, and their digest: when they are not what it says, all are made
again. What is not rows is written last, and the file is renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.atomic import locked, replace, sweep, write_all, write_json, writing
from elbocli.files.dataset import Arrays, BlockLayout, DatasetAttributes, Names, contents_digest
from elbocli.files.records import Count, Record, read_json, stored
from elbocli.runtime.progress import log

LIBVER = ("earliest", "v108")
DIGESTS = "payload_sha256 contents_sha256"
"""Attribute `digests`: names of those that a dataset holds, so that none can vanish unnoticed."""
Identity = str | dict[str, Any]
"""Tells an unfinished file from others: a digest, or settings by name, whose differences are shown."""
Rows = Sequence[bytes] | Sequence[np.ndarray] | np.ndarray


@stored("OUT.partial.json: journal of a file in the making")
class Journal(Record, frozen=True):
    """Rows that are safe, of the file whose identity is `source`; done: how far that was read. sha256: of rows, and of their
    ends. notes: what else must be known to go on.
    """

    source: str | dict[str, Any]
    rows: Count
    bytes: Count
    done: Count
    sha256: list[str] = []
    notes: dict[str, Any] = {}


class Resumable:
    """A file in the making, to which rows are appended. Use it in `held`.

    offset: bytes before the rows. limit: of rows. source: what is written and how.
    """

    def __init__(self, out: Path, layout: BlockLayout, offset: int, limit: int, source: Identity):
        self.out, self.layout, self.offset, self.limit = out, layout, offset, limit
        self.partial, self.journal, self.ends = (
            out.with_name(out.name + end) for end in (".partial", ".partial.json", ".partial.runs")
        )
        self.state = Journal(source, 0, 0, 0)
        self._count = self._size = 0  # of what is written, safe or not
        self._digests = [hashlib.sha256(), hashlib.sha256()]  # of the rows, and of their ends
        self._handles: list[int] = []

    @contextlib.contextmanager
    def held(self, overwrite: bool = False, wait: float = 0) -> Iterator[Self]:
        """Open the file for this process alone, and go on where an unfinished one of the same source stopped.

        overwrite: replace a finished file, and forget an unfinished one of another source. wait: seconds to wait for another
        process to leave it. Raises DataError (another process, a full disk), UsageError (an existing file or another
        source, without overwrite).
        """
        room = self.offset + self.limit * (self.layout.claim or self.layout.row_bytes)
        with locked(self.partial, str(self.out), wait), contextlib.ExitStack() as stack:
            if os.path.lexists(self.out) and not overwrite:  # another process may have made it meanwhile
                if not self.journal.exists():
                    self.discard()
                raise UsageError(f"{self.out}: already exists; choose another name or add --overwrite")
            with writing(self.out):
                sweep(self.out.parent, self.journal.name)
                sweep(self.out.parent, self.out.name)
                for path in [self.partial] if self.layout.row else [self.partial, self.ends]:
                    self._handles.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
                    stack.callback(os.close, self._handles[-1])
                if self.journal.exists():
                    self._resume(overwrite)
            try:
                with writing(self.out, f"claim {room} bytes"):
                    os.posix_fallocate(self._handles[0], 0, room)
                yield self
            except DataError:
                if not self.rows:
                    self.discard()  # nothing is lost, and other settings may be tried at once
                raise

    def _resume(self, overwrite: bool) -> None:
        """Go on from the journal if the file still holds its rows."""
        with contextlib.suppress(FormatError, ValueError):  # the latter where the file is shorter
            there = Journal.of(read_json(self.journal), self.journal)
            if there.source == self.state.source:
                ends = self.ends, 0, 0 if self.layout.row else 8 * there.rows
                digests = [_digest(self.partial, self.offset, there.bytes), _digest(*ends)]
                if [digest.hexdigest() for digest in digests] == there.sha256:
                    self.state, self._count, self._size, self._digests = there, there.rows, there.bytes, digests
                    return
            elif not overwrite:
                raise self._other_source(there.source)
        self.journal.unlink()
        log.warning(f"{self.partial}: its rows are not those that are to be written; all are made again")

    def _other_source(self, there: Identity) -> UsageError:
        """Return the error about an unfinished file of another source, with the settings that differ."""
        asked, lines = self.state.source, ""
        if isinstance(there, dict) and isinstance(asked, dict):
            differing = [key for key in sorted({*there, *asked}) if there.get(key) != asked.get(key)]
            lines = "".join(f"\n  {key}: {there.get(key)} there, {asked.get(key)} asked for" for key in differing)
        return UsageError(
            f"{self.partial}: unfinished, of another source or with other settings; repeat those to go on, choose another "
            f"name, or add --overwrite to start afresh{lines}"
        )

    def discard(self) -> None:
        """Remove the unfinished file and its journal."""
        for path in (self.journal, self.ends, self.partial):
            path.unlink(missing_ok=True)

    @property
    def rows(self) -> int:
        """Rows that are safe on disk."""
        return self.state.rows

    def write(self, rows: Rows) -> None:
        """Write rows after those before them. They are not safe until `append`, and must not change until then.

        rows: arrays of one or several of the layout's rows each, or encoded images.
        """
        if not len(rows):
            return
        whole = [rows] if isinstance(rows, np.ndarray) else rows
        parts: list[Any] = [row if isinstance(row, bytes) else np.ascontiguousarray(row) for row in whole]
        block: Any = parts[0] if len(parts) == 1 else b"".join(parts)
        self._digests[0].update(block)
        with writing(self.out):
            write_all(self._handles[0], block, self.offset + self._size)
            ends = self._size + np.cumsum([memoryview(part).nbytes for part in parts])
            if self.layout.row:
                self._count += (int(ends[-1]) - self._size) // self.layout.row_bytes
            else:
                content = ends.astype("<i8").tobytes()
                self._digests[1].update(content)
                write_all(self._handles[1], content, 8 * self._count)
                self._count += len(parts)
        self._size = int(ends[-1])

    def append(self, rows: Rows, done: int, notes: dict[str, Any]) -> None:
        """Write rows and make all safe. done: how far the source was read; notes: kept beside it."""
        self.write(rows)
        with writing(self.out):
            for handle in self._handles:
                os.fdatasync(handle)
        digests = [digest.hexdigest() for digest in self._digests]
        self.state = Journal(self.state.source, self._count, self._size, done, digests, notes)
        write_json(self.journal, self.state.json())

    def block(self) -> np.ndarray:
        """The rows as they lie on disk, [rows, …]. Disk that was claimed behind them is given back."""
        os.ftruncate(self._handles[0], self.offset + self._size)
        shape, dtype = (self.rows, *self.layout.row), self.layout.dtype
        return np.memmap(self.partial, dtype, "r", self.offset, shape) if self._size else np.empty(shape, dtype)

    def name(self, head: bytes = b"") -> None:
        """Write what stands before the rows, and give the file its name."""
        write_all(self._handles[0], head, 0)
        os.fsync(self._handles[0])
        for path in (self.journal, self.ends):
            path.unlink(missing_ok=True)
        replace(self.partial, self.out)


def _digest(path: Path, offset: int, size: int) -> Any:
    rows: Any = np.memmap(path, np.uint8, "r", offset, (size,)) if size else b""
    return hashlib.sha256(rows)


class DatasetWriter(Resumable):
    """Writes the rows of a dataset, then the HDF5 header in front of them and the rest behind."""

    def __init__(self, out: Path, layout: BlockLayout, limit: int, source: Identity):
        super().__init__(out, layout, len(_head(layout, 1)), limit, source)

    def finish(self, arrays: Arrays, names: Names, attributes: dict[str, Any]) -> None:
        """Add arrays (labels, …), lists of names and attributes, and give the file its name."""
        rows, size = self.rows, self._size
        about = {**DatasetAttributes.head(), "digests": DIGESTS, "count": rows}
        about |= {"payload_sha256": self.state.sha256[0], **attributes}
        with writing(self.out):
            if not self.layout.row:
                ends = np.frombuffer(os.pread(self._handles[1], 8 * rows, 0), "<i8")
                arrays = {**arrays, "offsets": np.concatenate([[0], ends]).astype(np.int64)}
            head = _head(self.layout, size // self.layout.row_bytes)
            assert len(head) == self.offset
            write_all(self._handles[0], head, 0)
            os.ftruncate(self._handles[0], self.offset + size)
            # HDF5 itself crashes when the disk is full, and cuts off in the end what it didn't need.
            room = 4 * len(json.dumps([names, attributes])) + 64 * sum(map(len, names.values()))
            room += 2 * sum(array.nbytes for array in arrays.values()) + (1 << 17)
            os.posix_fallocate(self._handles[0], self.offset + size, room)
            with h5py.File(self.partial, "r+", libver=LIBVER, locking=False) as file:
                # Sorted, so that the same contents are the same bytes whoever put them together.
                for name, array in sorted(arrays.items()):
                    file[name] = array
                for name, words in sorted(names.items()):
                    file.create_dataset(name, (len(words),), h5py.string_dtype(), words)
                stored = dict(sorted(DatasetAttributes.of(about, self.out).json().items()))
                # HDF5's limit of 64 KiB isn't one for text, which lies outside of the attribute itself.
                file.attrs.update(stored)
                file.attrs["contents_sha256"] = contents_digest(stored, arrays, names)
            self.name()


def _head(layout: BlockLayout, rows: int) -> bytes:
    """The bytes of an HDF5 file before a block of that many rows, or bytes. The block itself takes no disk."""
    with tempfile.NamedTemporaryFile() as scratch:
        with h5py.File(scratch.name, "w", libver=LIBVER) as file:
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            shape = (rows, *layout.row)
            block = file.create_dataset(layout.name, shape, layout.dtype, dcpl=plan, track_times=False)
            offset = block.id.get_offset()
        return scratch.read(offset)
