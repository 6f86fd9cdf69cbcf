"""Reading what others may have written: what a file says that it is, and errors of libraries in elbo's words."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from elbocli.errors import DataError, ElboError, FormatError, NewerVersion, UsageError
from elbocli.files.opening import NO_WAITING, check_file, open_file
from elbocli.version import __version__

LARGEST_TEXT = 16 << 20
LONGEST_LINE = 1 << 20
"""Bytes: a line of a loss log has at most 2000 bins of three numbers."""


def one_line(error: Exception, most: int = 160) -> str:
    """The words of a library on an error, in one line; its kind when it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def encodable(text: str) -> str:
    """Text as files and libraries take it: bytes of a name that are not UTF-8, and other halves of letters, are escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """A name of a file or folder for libraries that open none whose name is not UTF-8.

    Raises OSError when it can't be opened, or is neither file nor folder: some of them would say that there is no such file.
    """
    if not path.is_dir():
        check_file(path)
    handle = os.open(path, NO_WAITING)
    try:
        yield path if encodable(str(path)) == str(path) else Path(f"/dev/fd/{handle}")
    finally:
        os.close(handle)


@contextlib.contextmanager
def reading(
    where: object, then: str = "", kind: type[ElboError] = FormatError, on: tuple[type[Exception], ...] = (Exception,)
) -> Iterator[None]:
    """Turn errors in the block, while a file is read or understood, into one of elbo's that begins with the file's name.

    where: the file's path, perhaps with ": " and what is wrong with it. then: what to do. kind: the error to raise; a file
    that this user may not read is always a DataError. on: the errors of libraries that are meant. An error of elbo's that
    begins with the same path passes; another gets the path in front. Raises `kind`, or the error's own class.
    """
    try:
        yield
    except (UsageError, DataError, FormatError) as error:
        if str(error).startswith(str(where).partition(": ")[0]):
            raise
        raise (kind if isinstance(error, UsageError) else type(error))(f"{where}: {error}") from error
    except ElboError:
        raise
    except on as error:
        said = f"could not read: {error.strerror}" if isinstance(error, OSError) and error.strerror else one_line(error)
        raise (DataError if isinstance(error, PermissionError) else kind)(f"{where}: {said}{then}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and the logs of libraries in the block; elbo checks what matters and says it itself."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def check_format(where: object, found: Mapping[str, Any], name: str, known: int = 1, then: str = "") -> None:
    """Raise FormatError when a file doesn't say that it is of that format, NewerVersion when it is of a later version.

    name: '' for a format whose files don't say it; without a version they are of the first. known: the version that this
    elbo writes; it reads those before, too. then: the remedy.
    """
    kind, version = found.get("format") if name else "", found.get("version", None if name else 1)
    if isinstance(version, str) and version.isdecimal() and len(version) < 9:  # metadata of safetensors is text
        version = int(version)
    if kind == name and type(version) is int and version > known:
        raise NewerVersion(
            f"{where}: a later elbo wrote it, in version {version} of its format; elbo {__version__} reads "
            f"{'version 1' if known == 1 else f'versions 1 to {known}'}; upgrade elbo"
        )
    if kind != name or version not in range(1, known + 1):
        said = (f"format is {kind!r} version", f"{name!r} version ") if name else ("version is", "")
        raise FormatError(f"{where}: {said[0]} {version!r}, expected {said[1]}{known}{then}")


def read_limited(path: Path, what: str, most: int = LARGEST_TEXT) -> bytes:
    """The bytes of a small file. Raises FormatError when it can't be read, is no file, or too large for `what`."""
    with reading(path), open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise FormatError(f"{path}: {max(len(content), path.stat().st_size)} bytes is too large for {what}")
    return content


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises FormatError when it can't be read, or is no file."""
    with reading(path), open_file(path) as file:
        return file.read()


def read_text(path: Path, what: str) -> str:
    """A small text file. Raises FormatError when it can't be read, is no text, or too large for `what`."""
    try:
        return read_limited(path, what).decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not a text file") from error


def lines_of(file: IO[Any], where: object) -> Iterator[Any]:
    """Yield the lines of a file, text or bytes, none of them longer than LONGEST_LINE. Raises FormatError."""
    for number in itertools.count(1):
        line = file.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise FormatError(f"{where}: line {number} is longer than {LONGEST_LINE} bytes")
        if not line:
            return
        yield line


def written_lines(file: IO[Any], where: object, cut: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """Yield the lines of a log, but for a last one of which only a part is written: a run does that, or was killed as it did.

    cut: is called for it. Raises FormatError as lines_of does.
    """
    for line in lines_of(file, where):
        newline, brace = ("\n", "}") if isinstance(line, str) else (b"\n", b"}")
        if line.endswith(newline) or line.rstrip().endswith(brace):
            yield line
        else:
            cut()
