"""Opening files that anyone may have made: to read a pipe or a device could take for ever, so only files are read.

Whatever takes a path, of elbo's or of a library, comes after one of these.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from pathlib import Path
from typing import Any

from elbocli.files.file_system import SPECIAL

WAIT_S = 5.0
"""Time for the writer of a pipe to open it."""
NO_WAITING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def check_file(path: Path | str) -> None:
    """Raise OSError where a path is no file: nothing there, a folder, a pipe, a device, a disk or a socket."""
    _refuse_special(Path(path).stat().st_mode, path)


def open_file(path: Path | str) -> io.BufferedReader:
    """Open a file to read its bytes. Raises OSError, also for anything else than a file."""
    check_file(path)  # to open a device may already do something
    handle = os.open(path, NO_WAITING)
    try:
        _refuse_special(os.fstat(handle).st_mode, path)
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def open_stream(path: Path | str) -> io.BufferedReader:
    """Open a file, or a pipe that somebody writes into, to read its bytes in order.

    Raises OSError, also for anything else, and for a pipe that nobody opens for WAIT_S seconds.
    """
    if not stat.S_ISFIFO(Path(path).stat().st_mode):
        return open_file(path)
    handle = os.open(path, NO_WAITING)
    until, begun = time.monotonic() + WAIT_S, b""
    try:
        while not begun:  # a pipe without a writer gives nothing, one with a writer that waits raises
            begun = os.read(handle, select.PIPE_BUF)
            if not begun and time.monotonic() > until:
                raise OSError(errno.EIO, f"is a pipe, and nobody has written into it for {WAIT_S:g} s", str(path))
            time.sleep(0 if begun else 0.02)
    except BlockingIOError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.set_blocking(handle, True)
    return io.BufferedReader(_Begun(handle, begun))


class _Begun(io.FileIO):
    """A pipe of which some bytes have been read."""

    def __init__(self, handle: int, begun: bytes):
        super().__init__(handle)
        self.begun = begun

    def readinto(self, buffer: Any) -> int | None:
        """Fill a buffer, first with those bytes."""
        taken, self.begun = self.begun[: len(buffer)], self.begun[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken) or super().readinto(buffer)


def _refuse_special(mode: int, path: Path | str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(
            errno.EINVAL, f"is {SPECIAL.get(stat.S_IFMT(mode), 'no file')}, and only files are read", str(path)
        )
