"""Files appear whole or not at all: written aside, flushed, renamed, and the folder flushed.

`.NAME.PID.tmp` is a file or folder that is written, `.NAME.PID.replaced` a folder that makes room for a new one, where the
two can't be exchanged at once, and `.NAME.PID.trash` one that is removed. The writer holds a lock on the first two. If it
was killed, the next start finds them without one: it removes them, or puts the old folder back when nothing took its place.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from elbocli.errors import DataError
from elbocli.files.file_system import exchange, flush_folder, special, try_lock

LONGEST_NAME = 220
"""Bytes of a name that leave room, of the 255 that file systems have, for what is added to it."""
ASIDE = re.compile(r"\.(.+)\.\d+\.(tmp|replaced|trash)", re.DOTALL)


def aside_of(path: Path, end: str = "tmp") -> Path:
    """The name beside `path` for what becomes `path`, or what makes room for it ('replaced'), or is removed ('trash')."""
    return path.with_name(f".{path.name}.{os.getpid()}.{end}")


def is_aside(path: Path) -> bool:
    """Whether that is such a name."""
    return ASIDE.fullmatch(path.name) is not None


def sweep(folder: Path, name: str | None = None) -> None:
    """Clear up what killed writers left in a folder: all, or what was to become `name`. Litter that stays harms nobody."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = ASIDE.fullmatch(entry.name)
            if found and name in (None, found[1]):
                _clear_left(Path(entry.path), folder / found[1], found[2])


def _clear_left(aside: Path, path: Path, end: str) -> None:
    """Remove a file or folder that was written aside, or put an old one back, unless somebody is at it still."""
    with contextlib.suppress(OSError):
        handle = os.open(aside, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            try_lock(handle)
            if end == "replaced" and not os.path.lexists(path):
                aside.rename(path)
            else:
                _remove(aside)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    """Remove a file, a link or a whole folder. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@functools.cache
def _swept(path: Path) -> None:
    """Remove what killed writers of `path` left. Once is enough: this process leaves nothing itself."""
    sweep(path.parent, path.name)


@contextlib.contextmanager
def writing(path: Path, what: str = "write") -> Iterator[None]:
    """Turn an OSError in the block into a DataError that names the file and the cause, such as a full disk."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        remedy = ""
        if error.errno == errno.ENAMETOOLONG:
            remedy = f"; choose one of at most {LONGEST_NAME} bytes, as more is added to it while a file is written"
        raise DataError(f"{path}: could not {what}: {error.strerror or error}{remedy}") from error


def replace(aside: Path, path: Path) -> None:
    """Give what was written its name, for good. Raises DataError where a device, a pipe or a socket has it."""
    with writing(path):
        if what := special(path):
            raise DataError(f"{path}: could not write: is {what}, and only files are replaced")
        os.replace(aside, path)
        flush_folder(path.parent)


@contextlib.contextmanager
def new_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file beside `path` that takes its name when the block ends well, and vanishes when it doesn't."""
    aside = aside_of(path)
    with writing(path):
        _swept(path)
        try:
            encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")  # a path may be no text
            with os.fdopen(_open_locked(aside)[0], mode, encoding=encoding, errors=errors) as file:
                file.truncate()
                yield file
                file.flush()
                os.fsync(file.fileno())
                replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path` that takes its name when the block ends well, replacing what was there.

    Its parent must be there: nothing is made again that somebody has moved away meanwhile.
    """
    aside, old = aside_of(path), aside_of(path, "replaced")

    def clear() -> None:
        with contextlib.suppress(OSError):
            _remove(aside)
        with contextlib.suppress(OSError):
            old.rename(path) if old.exists() and not os.path.lexists(path) else _remove(old)

    with writing(path):
        _swept(path)
        try:
            aside.mkdir()
            with _held(aside):
                yield aside
                for file in filter(Path.is_file, aside.iterdir()):
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
                flush_folder(aside)
                _take_place(aside, old, path)
        finally:
            clear()


def _take_place(aside: Path, old: Path, path: Path) -> None:
    """Give a folder its name; a folder that has it goes to `aside` or `old`. A kill at no moment loses both."""
    if not path.is_dir():
        replace(aside, path)
    elif exchange(aside, path):
        flush_folder(path.parent)
    else:
        with _held(path):
            path.rename(old)
            replace(aside, path)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        try_lock(handle)
        yield
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace a small text file."""
    with new_file(path, "w") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Replace a small JSON file."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _open_locked(path: Path) -> tuple[int, bool]:
    """Open or make a file that is locked until it is closed; False with it where the file system knows no locks.

    Raises BlockingIOError when another process holds it, and other OSErrors.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            known = try_lock(handle)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle, known
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed the file meanwhile: lock the new one


@contextlib.contextmanager
def locked(path: Path, what: str, wait: float = 0) -> Iterator[str]:
    """Hold `path` as a lock for the block, and say where the file system knows no locks: '' where it does.

    Raises DataError when another process still holds it after `wait` seconds.
    """
    until = time.monotonic() + wait
    while True:
        with writing(path, "lock"), contextlib.suppress(BlockingIOError):
            handle, known = _open_locked(path)
            break
        if time.monotonic() >= until:
            raise DataError(f"{what}: another elbo process is writing it; wait for it or choose another name")
        time.sleep(0.1)
    try:
        yield (
            "" if known else f"{what}: the file system knows no locks; see to it that no other elbo process writes here"
        )
    finally:
        os.close(handle)
