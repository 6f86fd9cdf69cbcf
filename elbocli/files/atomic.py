"""Files appear whole or not at all: written aside, flushed, renamed, and the folder flushed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from elbocli.errors import DataError, UsageError


def refuse_existing(path: Path, overwrite: bool, folder: bool = False) -> None:
    """Raise UsageError when `path` exists and may not be replaced, or is of another kind; DataError without its folder.

    folder: whether a folder is to be made there, and not a file.
    """
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{path}: already exists; choose another name or add --overwrite")
    if path.exists() and path.is_dir() != folder:
        is_, wanted = ("a file", "a folder") if folder else ("a folder", "a file")
        raise UsageError(f"{path}: is {is_}, and {wanted} is to be written; choose another name")
    if not folder and not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; make it first")


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def told(path: Path, what: str = "write") -> Iterator[None]:
    """Turn an OSError into a DataError that names the file and the cause (full disk, missing folder, …)."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"{path}: could not {what}: {error.strerror or error}") from error


@contextlib.contextmanager
def writing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file beside `path` that takes its name when the block ends well, and vanishes when it doesn't."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with told(path):
        try:
            encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")  # a path may be no text
            with open(aside, mode, encoding=encoding, errors=errors) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            flush_folder(path.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_folder(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """Make a folder beside `path` that takes its name when the block ends well, replacing what was there.

    aside: its name until then, for a caller that alone may write `path`.
    """
    aside = aside or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    trash = path.with_name(f".{path.name}.{os.getpid()}.trash")
    with told(path):
        try:
            aside.mkdir(parents=True)
            yield aside
            for file in aside.iterdir():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
            flush_folder(aside)
            if path.is_dir():
                os.replace(path, trash)
            try:
                os.replace(aside, path)
            except OSError:
                if trash.exists():
                    os.replace(trash, path)
                raise
            flush_folder(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(trash, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a small text file."""
    with writing(path, "w") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Replace a small JSON file."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextlib.contextmanager
def locked(path: Path, what: str, wait: float = 0) -> Iterator[None]:
    """Hold `path` as a lock for the block. Raises DataError when another process still holds it after `wait` seconds."""
    until = time.monotonic() + wait
    while True:
        with told(path, "lock"):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                break
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() < until:
                time.sleep(0.1)
                continue
            raise DataError(f"{what}: another elbo process is writing it; wait for it or choose another name") from None
        except FileNotFoundError:  # between the two looks
            pass
        os.close(handle)  # its holder removed the file meanwhile: lock the new one
    try:
        yield
    finally:
        os.close(handle)
