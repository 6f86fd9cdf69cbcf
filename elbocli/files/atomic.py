"""Files appear whole or not at all: written aside, flushed, renamed, and the folder flushed.

`.NAME.PID.tmp` is a file or folder that is being written, `.NAME.PID.trash` a folder that is being removed, `.NAME.PID.old` one
that makes room for a new one. The writer holds a lock on the first, so the next start can tell what a killed writer left. It
removes that, but gives an old folder its name back where no new one has taken it.
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
    """Tell whether the path is a pipe or a character device, into which bytes are written one after the other."""
    return path.is_fifo() or path.is_char_device()


def special(path: Path) -> bool:
    """Tell whether something that is neither a file nor a folder lies at the path."""
    return path.exists() and not path.is_file() and not path.is_dir()


def lock(handle: int) -> None:
    """Lock an open file or folder until it is closed. Raises BlockingIOError when another process holds the lock."""
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes, at: int) -> None:
    """Write all bytes to an open file, at an offset. Raises OSError."""
    left = memoryview(data)
    while left:
        count = os.pwrite(handle, left, at)
        left, at = left[count:], at + count


@contextmanager
def writing(path: Path, what: str = "write") -> Iterator[None]:
    """Turn an OSError in the block into a DataError that names the file and the cause, such as a full disk."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"{path}: could not {what}: {error.strerror or error}") from error


def _aside(path: Path, end: str = "tmp") -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{end}")


def sweep(folder: Path, name: str | None = None) -> None:
    """Clear up what killed writers left in a folder: everything, or what was to become `name`."""
    with suppress(OSError):
        for path in folder.glob(".*"):
            found = ASIDE.fullmatch(path.name)
            if found and name in (None, found[1]):
                with suppress(OSError), _hold(path):
                    if found[2] == "old" and not (folder / found[1]).exists():
                        path.rename(folder / found[1])
                    elif path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()


@contextmanager
def _hold(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder for the block. Raises BlockingIOError, OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)


def replace(aside: Path, path: Path) -> None:
    """Rename a file or folder for good. Raises DataError where a pipe or a device has the name."""
    with writing(path):
        if special(path):
            raise DataError(f"{path}: could not write: is {PIPE}, and only files are replaced")
        os.replace(aside, path)
        flush_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder so that no half of it keeps its name. Raises DataError."""
    with writing(path, "delete"):
        trash = _aside(path, "trash")
        path.rename(trash)
        flush_folder(path.parent)
        shutil.rmtree(trash)


@contextmanager
def new_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file beside `path` that takes its name when the block ends well, and vanishes when it doesn't."""
    aside = _aside(path)
    with writing(path):
        sweep(path.parent, path.name)
        try:
            with open(aside, mode, encoding=None if "b" in mode else "utf-8") as file:
                lock(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
                replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path` that takes its name when the block ends well, replacing what was there."""
    aside, old = _aside(path), _aside(path, "old")
    with writing(path):
        sweep(path.parent, path.name)
        try:
            aside.mkdir()
            with _hold(aside):
                yield aside
                for file in filter(Path.is_file, aside.iterdir()):
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
                flush_folder(aside)
                if path.is_dir():
                    path.rename(old)
                replace(aside, path)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a small text file."""
    with new_file(path, "w") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Replace a small JSON file."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextmanager
def locked(path: Path, what: str, wait: float = 0) -> Iterator[None]:
    """Hold the file `path` as a lock for the block.

    Raises DataError, which names `what`, when another process still holds it after `wait` seconds.
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
                        f"{what}: another elbo process is writing it; wait for it or choose another name"
                    ) from error
            time.sleep(0.1)
        yield
