"""Bytes to and from descriptors: a system call may take fewer than it is given, and none at all when a pipe is full.

Nothing else in the package writes to a descriptor itself. Python's own files, when buffered, do the same for files on a
disk, but leave what a pipe that doesn't block won't take.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import sys
from typing import Any

NOTHING = ("/", os.O_RDONLY | os.O_DIRECTORY)
"""A folder: nothing can be read from it or written to it, nor to /dev/stdout, which is a name for it."""
NOBODY = (os.devnull, os.O_WRONLY)
STREAMS = (
    ("stdin", io.BufferedReader, NOTHING),
    ("stdout", io.BufferedWriter, NOTHING),
    ("stderr", io.BufferedWriter, NOBODY),
)
"""Standard streams by descriptor, and what is opened in place of one that is closed."""


def _ready(handle: int, event: int) -> None:
    """Wait until a descriptor that doesn't block can go on."""
    waiting = select.poll()
    waiting.register(handle, event)
    waiting.poll()


def write_all(handle: int, data: Any, at: int | None = None) -> None:
    """Write all of `data`, a buffer, at a place of a file, or (None) where the descriptor stands. Raises OSError."""
    left = memoryview(data)
    left = left.cast("B") if left.nbytes else left[:0]
    while left:
        try:
            count = os.write(handle, left) if at is None else os.pwrite(handle, left, at)
        except BlockingIOError:
            _ready(handle, select.POLLOUT)
            continue
        left, at = left[count:], None if at is None else at + count


class Whole(io.RawIOBase):
    """A descriptor as a raw file that waits where a pipe is full or empty, whatever others set it to."""

    def __init__(self, handle: int):
        self._handle = handle

    def fileno(self) -> int:
        return self._handle

    def isatty(self) -> bool:
        return os.isatty(self._handle)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            with contextlib.suppress(BlockingIOError):
                return os.readv(self._handle, [buffer])
            _ready(self._handle, select.POLLIN)

    def write(self, data: Any) -> int:
        write_all(self._handle, data)
        return memoryview(data).nbytes


def let_nobody_have(*handles: int) -> None:
    """Let what is written to these descriptors from now on go nowhere."""
    nobody = os.open(*NOBODY)
    for handle in handles:
        os.dup2(nobody, handle)
    os.close(nobody)


def take_up_closed() -> None:
    """Open something on every standard descriptor that is closed, before a file is opened that gets its number.

    Else what is meant for standard output, by us or a library, would be written into that file.
    """
    for handle, (_, _, instead) in enumerate(STREAMS):
        try:
            os.fstat(handle)
        except OSError:
            opened = os.open(*instead)
            if opened == handle:
                os.set_inheritable(handle, True)
            else:
                os.dup2(opened, handle)
                os.close(opened)


def writable(handle: int) -> bool:
    """Whether an open descriptor is open for writing."""
    return fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def make_streams_whole() -> None:
    """Put the standard streams of this process on `Whole`; what can't be written in their encoding is escaped.

    Those that were closed at the start are there too, but for standard input, which stays None.
    """
    take_up_closed()
    for handle, (name, buffered, _) in enumerate(STREAMS):
        stream = getattr(sys, name)
        if stream is not None:
            raw = Whole(stream.fileno())
            errors = stream.errors if name == "stdin" else "backslashreplace"
            lines = stream.line_buffering or stream.write_through
            setattr(sys, name, io.TextIOWrapper(buffered(raw), stream.encoding, errors, line_buffering=lines))
        elif name != "stdin":
            setattr(sys, name, io.TextIOWrapper(buffered(Whole(handle)), "utf-8", "backslashreplace"))
