"""Unfinished files of rows: what a killed process leaves, and how the next process goes on with it.

OUT.partial is locked and allocated in full before the first row, so that a full disk fails at once. Rows have their final offset.
OUT.partial.json, the journal, has the number of rows that are safely on disk, and their digest, which resuming compares.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from msgspec import structs

from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.files.atomic import locked, put_in_place, write_all, write_json, writing
from elbocli.files.records import JSON, Count, Record, read_json, stored
from elbocli.runtime.progress import log

# names of a dataset's block
IMAGES = "images"
LATENTS = "latents"
Rows = Sequence[np.ndarray] | np.ndarray


@dataclass(frozen=True)
class BlockLayout:
    """Layout of a dataset's block.

    name: one of BLOCKS. row: shape of a row.
    claim: bytes of disk to allocate per row; 0 means the size of a row.
    """

    name: str
    row: tuple[int, ...]
    claim: int = 0

    @property
    def dtype(self) -> str:
        return "<f2" if self.name == LATENTS else "|u1"

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row) * np.dtype(self.dtype).itemsize


@stored("OUT.partial.json: journal of a file in the making")
class Journal(Record):
    """Progress of an unfinished file.

    source: settings and digests that identify the contents. rows: number of rows on disk.
    done: number of items of the source that were read or skipped. notes: further state of the writer.
    sha256: digest of the rows.
    named: inode number of the finished file, written just before the file gets its name; 0: unfinished.
    """

    source: dict[str, JSON]
    rows: Count
    done: Count
    sha256: str = ""
    notes: dict[str, Any] = {}
    named: Count = 0


def journal_of(out: Path) -> Path:
    """Return the path of the journal of the unfinished file `out`."""
    return out.with_name(out.name + ".partial.json")


def finished_by(journal: Path, out: Path) -> Journal | None:
    """Return the journal of a process that was killed after it had named `out`; None if `out` is not such a file."""
    with suppress(OSError, ElboError):
        there = Journal.of(read_json(journal), journal)
        return there if there.named == out.lstat().st_ino else None
    return None


class Resumable:
    """Unfinished file of rows, which a later process can resume.

    Append rows only in a `with file.held()` block.
    out: path of the finished file. offset: bytes before the rows. limit: largest number of rows.
    source: settings and digests that identify the contents; a file is resumed only with the same source.
    """

    def __init__(self, out: Path, layout: BlockLayout, offset: int, limit: int, source: Mapping[str, JSON]):
        self.out = out
        self.layout = layout
        self.offset = offset
        self.limit = limit
        self.partial = out.with_name(out.name + ".partial")
        self.journal = journal_of(out)
        self.state = Journal(dict(source), 0, 0)
        self._digest = hashlib.sha256()
        self.overwrite = self.complete = False

    @contextmanager
    def held(
        self, overwrite: bool = False, wait: float = 0, unchanged: Callable[[Journal], bool] = lambda journal: True
    ) -> Iterator[Self]:
        """Lock the file during a `with` block, and resume an unfinished file of the same source.

        `complete` is then True if a killed process had finished and named the file.
        overwrite: replace a finished file, and discard an unfinished file of another source.
        wait: seconds to wait for another process.
        unchanged: function of the journal that tells whether the items done so far are still those of the source.
        Raises DataError if another process holds the file or the disk is full.
        Raises UsageError, without overwrite, for a finished file or another source.
        """
        room = self.offset + self.limit * (self.layout.claim or self.layout.row_bytes)
        self.overwrite = overwrite
        with locked(self.partial, str(self.out), wait), ExitStack() as stack:
            finished = finished_by(self.journal, self.out)
            if finished and finished.source == self.state.source:
                self.state = finished
                self.complete = True
                self.discard()
                yield self
                return
            if os.path.lexists(self.out) and not overwrite:  # another process may have written it meanwhile
                if not self.journal.exists():
                    self.discard()
                raise UsageError(f"{self.out}: already exists; choose another name or add --overwrite")
            with writing(self.out):
                self.handle = os.open(self.partial, os.O_RDWR)
                stack.callback(os.close, self.handle)
                if self.journal.exists():
                    self._resume(overwrite, unchanged)
            try:
                with writing(self.out, f"claim {room} bytes"):
                    os.posix_fallocate(self.handle, 0, room)
                yield self
            except DataError:
                if not self.rows:
                    self.discard()  # no rows are lost, and other settings can be tried at once
                raise

    def _resume(self, overwrite: bool, unchanged: Callable[[Journal], bool]) -> None:
        with suppress(FormatError, ValueError):  # ValueError: a file is shorter than the journal says
            there = Journal.of(read_json(self.journal), self.journal)
            own = self.state.source
            if there.source == own and unchanged(there):
                size = there.rows * self.layout.row_bytes
                written = np.memmap(self.partial, np.uint8, "r", self.offset, (size,)).data if size else b""
                digest = hashlib.sha256(written)
                if digest.hexdigest() != there.sha256:
                    raise ValueError("the rows on disk differ from the journal's digest")
                self.state = there
                self._digest = digest
                return
            if not overwrite:
                differing = ", ".join(sorted({key for key, _ in there.source.items() ^ own.items()})) or "images"
                raise UsageError(
                    f"{self.partial}: the unfinished file was begun with other {differing}; to resume, repeat the command that "
                    "made the file; or choose another name, or add --overwrite to start again"
                )
        self.journal.unlink()
        log.warning(f"{self.partial}: unfinished file is damaged or has other settings; writing all rows again")

    def discard(self) -> None:
        for path in (self.partial, self.journal):  # the journal last: it may say that the file is complete
            path.unlink(missing_ok=True)

    @property
    def rows(self) -> int:
        return self.state.rows

    @property
    def size(self) -> int:
        """Size of the rows on disk, in bytes."""
        return self.rows * self.layout.row_bytes

    def append(self, rows: Rows, done: int, notes: dict[str, Any]) -> None:
        """Append rows and flush. done: number of items of the source read so far. notes: further state of the writer."""
        content = b"".join(map(bytes, rows))
        with writing(self.out):
            write_all(self.handle, content, self.offset + self.size)
            os.fdatasync(self.handle)
        self._digest.update(content)
        self._note(Journal(self.state.source, self.rows + len(rows), done, self._digest.hexdigest(), notes))

    def _note(self, state: Journal) -> None:
        self.state = state
        write_json(self.journal, state.json())

    def note_naming(self, inode: int) -> None:
        """Note in the journal that the finished file, of this inode number, is about to get its name."""
        self._note(structs.replace(self.state, named=inode))

    def block(self) -> np.ndarray:
        os.ftruncate(self.handle, self.offset + self.size)  # free the unused disk space
        return np.memmap(self.partial, self.layout.dtype, "r", self.offset, (self.rows, *self.layout.row))

    def name(self, head: bytes = b"") -> None:
        """Write `head` before the rows, and give the file its final name."""
        write_all(self.handle, head, 0)
        os.fsync(self.handle)
        self.note_naming(os.fstat(self.handle).st_ino)
        put_in_place(self.partial, self.out, self.overwrite)
        self.discard()
