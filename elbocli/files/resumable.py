"""A large file in the making, block of rows first and the rest last, so that a kill at any moment loses little.

`OUT.partial` is locked and claimed on disk whole before the first row, so a full disk fails at once. Rows go to their
final place; a journal beside it says how many are safe, and their digest: when they are not what it says, all are made
again. A subclass knows the format, adds the rest and names the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.files.atomic import locked, replace, sweep, write_all, write_json, writing
from elbocli.files.dataset_block import BlockLayout
from elbocli.files.hashing import DigestBehind, span_sha256
from elbocli.files.reading import reading
from elbocli.files.records import Count, Record, read_json, stored

AT_ONCE = 1 << 20
"""Bytes of rows that are written at once."""
Identity = str | dict[str, Any]
"""Tells an unfinished file from others: a digest, or settings by name, whose differences are shown."""


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
    """Appends rows, and remembers how many. Use it in `holding`.

    offset: where the rows begin. limit: of rows. preallocate: claim the disk beforehand. warnings: of a file system that
    can't keep other processes from the file, and of an unfinished file that was there, but not as its journal says.
    """

    def __init__(
        self, out: Path, layout: BlockLayout, offset: int, limit: int, source: Identity, preallocate: bool = True
    ):
        self.out, self.layout, self.offset, self.limit = out, layout, offset, limit
        self.source, self.preallocate = source, preallocate
        self.partial, self.journal, self._runs = _beside(out)
        self._handle = self._run_handle = -1
        self.warnings: list[str] = []
        self._afresh()

    def _afresh(self) -> None:
        self.state = Journal(self.source, 0, 0, 0)
        self._count = self._size = 0  # of what is written, safe or not
        self._digests = DigestBehind(hashlib.sha256()), hashlib.sha256()  # of the rows, and of their ends

    def start(self, afresh: bool) -> None:
        """Open or make the file and reserve the disk space. afresh: discard an unfinished file of another source."""
        with writing(self.out):
            for made in (self.journal, self.out):
                sweep(made.parent, made.name)
            if not self.partial.exists():
                self.journal.unlink(missing_ok=True)
            self._handle = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
            if not self.layout.row:
                self._run_handle = os.open(self._runs, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if self.journal.exists():
                self._go_on(self._read_journal())
        except ElboError:
            if not afresh:
                raise
            self.journal.unlink()
        try:
            with writing(self.out, f"claim {self.limit * self.layout.claim} bytes"):
                if self.preallocate:
                    os.posix_fallocate(self._handle, 0, self.offset + self.limit * self.layout.claim)
                if self._run_handle >= 0:
                    os.ftruncate(self._run_handle, 8 * self.rows)
        except DataError:
            if not self.journal.exists():
                self.discard()
            raise

    def close(self) -> None:
        """Let go of the files."""
        self._digests[0].close()
        for handle in (self._handle, self._run_handle):
            if handle >= 0:
                os.close(handle)
        self._handle = self._run_handle = -1

    def discard(self) -> None:
        """Remove the unfinished file and its journal."""
        for path in (self.partial, self.journal, self._runs):
            path.unlink(missing_ok=True)

    def _read_journal(self) -> Journal:
        restart = f"delete {self.partial.name} and {self.journal.name} to start again"
        try:
            state = Journal.of(read_json(self.journal), self.journal)
        except FormatError as error:
            raise DataError(f"{error}; not usable; {restart}") from error
        if state.source != self.source:
            raise self._other(state.source, restart)
        size = state.rows * self.layout.row_bytes if self.layout.row else state.bytes
        if max(state.rows, state.done) > self.limit or state.bytes != size:
            found = f"{state.done} images done, of {self.limit}, and {state.bytes} bytes for {state.rows} rows"
            raise DataError(f"{self.journal}: {found}; {restart}")
        return state

    def _go_on(self, state: Journal) -> None:
        """Continue from the journal if the file still holds its rows; otherwise forget them before disk space is
        reserved."""
        rows, size = state.rows, state.bytes
        spans = (self._handle, self.offset, size), (self._run_handle, 0, 0 if self.layout.row else 8 * rows)
        with reading(self.partial, kind=DataError):
            found = span_sha256(*spans[0]), span_sha256(*spans[1])
        if [each.hexdigest() for each in found] == state.sha256:
            self.state, self._count, self._size = state, rows, size
            self._digests = DigestBehind(found[0]), found[1]
            return
        self.journal.unlink()
        if rows:
            self.warnings.append(f"{self.partial}: its {rows} rows are not what was written; all are made again")

    def _other(self, source: Identity, restart: str) -> ElboError:
        if not isinstance(source, dict) or not isinstance(self.source, dict):
            other = "an unfinished prep of another source or with other settings"
            return DataError(f"{self.partial}: {other}; finish that one, or {restart}")
        pairs = ((key, source.get(key), self.source.get(key)) for key in sorted({*source, *self.source}))
        lines = [f"{key}: {there} there, {asked} asked for" for key, there, asked in pairs if there != asked]
        return UsageError(
            f"{self.partial}: unfinished, with other settings; repeat them to go on, choose another name, or add "
            "--overwrite to start afresh:\n  " + "\n  ".join(lines)
        )

    @property
    def rows(self) -> int:
        """Rows that are safe on disk."""
        return self.state.rows

    def write(self, rows: Sequence[bytes] | Sequence[np.ndarray] | np.ndarray) -> None:
        """Write rows after those before them. They are not safe until `append`, and must not change until then.

        rows: arrays of one or several of the layout's rows each, or a row's bytes each when it has none.
        """
        if not len(rows):
            return
        begin = self._size
        with writing(self.out):
            for block in _blocks(rows):
                self._digests[0].update(block)
                write_all(self._handle, block, self.offset + self._size)
                self._size += len(block)
            if self._run_handle >= 0:
                lengths = [len(row) if isinstance(row, bytes) else row.nbytes for row in rows]
                content = (begin + np.cumsum(lengths)).astype("<i8").tobytes()
                self._digests[1].update(content)
                write_all(self._run_handle, content, 8 * self._count)
        self._count += (self._size - begin) // self.layout.row_bytes if self.layout.row else len(rows)

    def append(
        self, rows: Sequence[bytes] | Sequence[np.ndarray] | np.ndarray, done: int, notes: dict[str, Any]
    ) -> None:
        """Write rows and make all safe. done: how far the source was read; notes: kept beside it."""
        self.write(rows)
        with writing(self.out):
            for handle in (self._handle, self._run_handle):
                if handle >= 0:
                    os.fdatasync(handle)
        digests = [digest.hexdigest() for digest in self._digests]
        self.state = Journal(self.source, self._count, self._size, done, digests, notes)
        write_json(self.journal, self.state.json())

    def block(self) -> np.ndarray:
        """The rows as they lie on disk, as bytes, uint8 [bytes]."""
        size = self.state.bytes
        return np.memmap(self.partial, np.uint8, "r", self.offset, (size,)) if size else np.empty(0, np.uint8)

    def name(self) -> None:
        """The file is whole: give it its name."""
        os.fsync(self._handle)
        replace(self.partial, self.out)
        self.journal.unlink(missing_ok=True)
        self._runs.unlink(missing_ok=True)


def _blocks(rows: Sequence[bytes] | Sequence[np.ndarray] | np.ndarray) -> Iterator[bytes | memoryview]:
    """Join rows to what is written at once and stays in the processor's cache; what is longer is not copied."""
    held: list[bytes | memoryview] = []
    size = 0
    for row in [rows] if isinstance(rows, np.ndarray) else rows:
        content = row if isinstance(row, bytes) else np.ascontiguousarray(row).data.cast("B")
        if held and size + len(content) > AT_ONCE:
            yield held[0] if len(held) == 1 else b"".join(held)
            held, size = [], 0
        held.append(content)
        size += len(content)
    yield held[0] if len(held) == 1 else b"".join(held)


def _beside(out: Path) -> tuple[Path, Path, Path]:
    """Names of the unfinished file, of its journal, and of where its rows end."""
    partial, journal, runs = (out.with_name(out.name + end) for end in (".partial", ".partial.json", ".partial.runs"))
    return partial, journal, runs


def _lock_of(out: Path) -> Path:
    return out.with_name(out.name + ".lock")


def clear_left(out: Path) -> None:
    """Remove what a killed writer left beside the file that it had made."""
    if any(map(os.path.lexists, (*_beside(out), _lock_of(out)))):
        with contextlib.suppress(OSError, DataError), locked(_lock_of(out), str(out)):
            journal = _beside(out)[1]
            # A journal that is newer is of work with --overwrite, which goes on.
            if not journal.exists() or journal.stat().st_mtime_ns <= out.stat().st_mtime_ns:
                for path in _beside(out):
                    path.unlink(missing_ok=True)
            _lock_of(out).unlink(missing_ok=True)


W = TypeVar("W", bound=Resumable)


@contextlib.contextmanager
def holding(
    out: Path, make: Callable[[], W], overwrite: bool = False, afresh: bool = False, wait: float = 0
) -> Iterator[W]:
    """The writer that `make` makes, started, for this process alone.

    overwrite: replace what is there. afresh: forget an unfinished one of another source. wait: seconds to wait for another
    process to leave it. Raises DataError (another process, another source, a full disk), UsageError (an existing file,
    without overwrite; other settings, without afresh).
    """
    lock = _lock_of(out)
    with locked(lock, str(out), wait):
        try:
            if os.path.lexists(out) and not overwrite:  # another process may have made it meanwhile
                raise UsageError(f"{out}: already exists; choose another name or add --overwrite")
            with contextlib.closing(make()) as writer:
                writer.start(afresh)
                try:
                    yield writer
                except DataError:
                    # Nothing is lost, and other settings may be tried at once.
                    if not writer.rows:
                        writer.discard()
                    raise
        finally:
            lock.unlink(missing_ok=True)
