"""Atomic writes: write under a temporary name, flush to disk, then rename.

`.NAME.PID.tmp`: file or folder being written, locked by the writing process.
`.NAME.PID.trash`: folder being removed.
`.NAME.PID.old`: folder being replaced; after a kill, `sweep` renames it to NAME unless NAME exists.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from elbocli.errors import DataError

ASIDE = re.compile(r"\.(.+)\.\d+\.(tmp|trash|old)", re.DOTALL)
PIPE = "a pipe or a device"


def streams(path: Path) -> bool:
    """Return whether a path is a pipe or a character device."""
    return path.is_fifo() or path.is_char_device()


def special(path: Path) -> bool:
    """Return whether a path exists but is neither a file nor a folder."""
    return path.exists() and not path.is_file() and not path.is_dir()


def lock(handle: int) -> None:
    """Lock a file descriptor until it is closed. Raises BlockingIOError if another process holds the lock."""
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def flush(path: Path) -> None:
    """Flush a file's bytes, or a folder's list of names, to disk."""
    with _opened(path.resolve()) as handle:
        os.fsync(handle)


def write_all(handle: int, data: bytes, at: int) -> None:
    """Write all of `data` at the byte offset `at`. handle: file descriptor. Raises OSError."""
    left = memoryview(data)
    while left:
        count = os.pwrite(handle, left, at)
        left, at = left[count:], at + count


@contextmanager
def writing(path: Path, what: str = "write") -> Iterator[None]:
    """Turn an OSError in the block, except BrokenPipeError, into a DataError "PATH: could not WHAT: …"."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"{path}: could not {what}: {error.strerror or error}") from error


def _aside(path: Path, end: str = "tmp") -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{end}")


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove leftovers of killed processes from a folder; rename `.NAME.PID.old` to NAME if NAME is missing.

    name: file or folder whose leftovers to remove; None: all.
    """
    with suppress(OSError):
        for path in folder.glob(".*"):
            found = ASIDE.fullmatch(path.name)
            if found and name in (None, found[1]):
                with suppress(OSError), _opened(path) as handle:
                    lock(handle)
                    if found[2] == "old" and not (folder / found[1]).exists():
                        path.rename(folder / found[1])
                    elif path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


def replace(aside: Path, path: Path) -> None:
    """Rename the temporary file or folder `aside` to `path`. Raises OSError; DataError for a pipe or a device."""
    if special(path):
        raise DataError(f"{path}: could not write: the path is {PIPE}, and elbo replaces only files; choose another name")
    os.replace(aside, path)
    flush(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder atomically. Raises DataError."""
    with writing(path, "delete"):
        trash = _aside(path, "trash")
        path.rename(trash)
        flush(path.parent)
        shutil.rmtree(trash)


@contextmanager
def new_file(path: Path) -> Iterator[IO[Any]]:
    """Open a file of bytes that replaces `path` if the block succeeds. Raises DataError."""
    aside = _aside(path)
    with writing(path):
        sweep(path.parent, path.name)
        try:
            with open(aside, "wb") as file:
                lock(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
                replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder that replaces `path` if the block succeeds. Raises DataError."""
    aside, old = _aside(path), _aside(path, "old")
    with writing(path):
        sweep(path.parent, path.name)
        try:
            aside.mkdir()
            with _opened(aside) as handle:
                lock(handle)
                yield aside
                for written in (*aside.iterdir(), aside):
                    flush(written)
                if path.is_dir():
                    path.rename(old)
                replace(aside, path)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; surrogates, of paths that are not UTF-8, are escaped. Raises DataError."""
    with new_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Raises DataError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextmanager
def locked(path: Path, what: str, wait: float = 0) -> Iterator[None]:
    """Hold a lock on the file `path` during the block.

    what: file or folder to name in the message. wait: seconds to wait for the lock.
    Raises DataError if another process still holds the lock.
    """
    until = time.monotonic() + wait
    with writing(path, "lock"):
        file = open(path, "ab")  # noqa: SIM115 (closed below)
    with file:
        while True:
            try:
                lock(file.fileno())
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise DataError(
                        f"{what}: another elbo process is writing to it; wait until that process ends, or choose another name"
                    ) from error
            time.sleep(0.1)
        yield
