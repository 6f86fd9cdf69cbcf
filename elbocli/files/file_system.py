"""Services that not every file system has (locks, room claimed beforehand, folders that are flushed, names that are
exchanged), and what lies at a path."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

LACKING = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL})
"""Answers of a file system that has no such service."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
STREAMS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device"}
SPECIAL = {**STREAMS, stat.S_IFBLK: "a disk", stat.S_IFSOCK: "a socket"}


def try_lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False where the file system can't.

    Raises BlockingIOError when another process holds it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # EBADF: NFS locks nothing that is open for reading alone, as folders are.
        if error.errno not in {*LACKING, errno.EBADF}:
            raise
        return False
    return True


def claim_room(handle: int, offset: int, size: int) -> None:
    """Claim the disk for a part of a file, where that can be done."""
    try:
        os.posix_fallocate(handle, offset, size)
    except OSError as error:
        if error.errno not in LACKING:
            raise


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where that can be done."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it may be written and not be read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in LACKING:
            raise
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths name each other's file or folder, with no moment between; False where that can't be done.

    Raises OSError.
    """
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # no libc that is loaded so, or one that is too old
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number not in LACKING:
        raise OSError(number, os.strerror(number), str(other))
    return False


def special(path: Path) -> str:
    """Say what at a path is neither a file nor a folder: "a pipe"; '' when nothing or no such thing is there."""
    with contextlib.suppress(OSError):
        if path.is_symlink() and str(path.readlink()).startswith("/proc/"):  # such as /dev/stdout
            return "an open file of a process"
        return SPECIAL.get(stat.S_IFMT(path.stat().st_mode), "")
    return ""


def streams(path: Path) -> bool:
    """Whether bytes can be written into what is at the path, one after the other, and none of it is lost by that."""
    with contextlib.suppress(OSError):
        return stat.S_IFMT(path.stat().st_mode) in STREAMS
    return False


def write_all(handle: int, data: Any, at: int | None = None) -> None:
    """Write all of a buffer to an open file, at an offset or (None) where it stands. Raises OSError."""
    left = memoryview(data)
    left = left.cast("B") if left.nbytes else left[:0]
    while left:
        count = os.write(handle, left) if at is None else os.pwrite(handle, left, at)
        left, at = left[count:], None if at is None else at + count
