"""Reading what others may have written: one context manager that turns the errors of libraries into elbo's, files and lines."""

import contextlib
import hashlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.version import __version__


def one_line(error: Exception, most: int = 160) -> str:
    """The words of a library on an error, in one line; its kind when it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


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
    """Silence the warnings and the logs of libraries in the block."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def check_format(where: object, found: Mapping[str, Any], name: str, known: int = 1, then: str = "") -> None:
    """Raise FormatError when a file doesn't say that it is of that format, DataError when it is of a later version.

    name: "" for a format whose files don't say it. known: the version that this elbo writes; it reads those before, too.
    then: the remedy.
    """
    kind, version = found.get("format") if name else "", str(found.get("version", "" if name else 1))
    if kind != name or not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise FormatError(f"{where}: format is {kind!r} version {version}, expected {name!r} version {known}{then}")
    if int(version) > known:
        raise DataError(
            f"{where}: a later elbo wrote it, in version {version}; elbo {__version__} reads {known}; upgrade elbo"
        )


def check_file(path: Path | str) -> None:
    """Raise OSError where a path is no file: nothing there, a folder, a pipe or a device."""
    if Path(path).stat() and not Path(path).is_file():
        raise OSError(0, "is no regular file", str(path))


def open_file(path: Path | str) -> BufferedReader:
    """Open a file to read its bytes. Raises OSError, also for a folder, a pipe or a device."""
    check_file(path)
    return open(path, "rb")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises FormatError when it can't be read, or is no file."""
    with reading(path), open_file(path) as file:
        return file.read()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, 64 hex digits. Raises OSError when it can't be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_digests(hexes: Iterable[str]) -> str:
    """The sum modulo 2²⁵⁶ of sha256 digests, 64 hex digits: the same in any order and grouping.

    So parts that are made apart have the digest of the whole. Raises ValueError when one is not hexadecimal.
    """
    return f"{sum(int(digest, 16) for digest in hexes) % 2**256:064x}"


def read_text(path: Path) -> str:
    """A small text file. Raises FormatError when it can't be read, or is no text."""
    with reading(f"{path}: not a text file"):
        return read_bytes(path).decode()


def whole_lines(file: IO[Any]) -> Iterator[Any]:
    """Yield the lines of a log, without a last line that is only partly written: its run was killed, or is writing it."""
    for line in file:
        if line.rstrip()[-1:] in ("}", b"}") or line[-1:] in ("\n", b"\n"):
            yield line
