"""Read files that may be damaged, and convert errors of libraries to elbo's errors."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import IO

from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.version import __version__

WORDLESS = {
    EOFError: "file ends too early",
    MemoryError: "not enough memory",
}  # messages of errors that Python raises without one


def one_line(error: Exception) -> str:
    """Return an error's message in one line, cut after 160 characters; for an empty message, a description of the error's type."""
    return " ".join(str(error).split())[:160] or WORDLESS.get(type(error), type(error).__name__)


@contextlib.contextmanager
def reading(
    where: object,
    then: str | tuple[str, ...] = "",
    kind: type[ElboError] = FormatError,
    on: tuple[type[Exception], ...] = (Exception,),
) -> Iterator[None]:
    """Convert library errors in the block to elbo errors; put the file before every message.

    where: the file's path, optionally with ": " and a description of the problem.
    then: end of a converted message, such as '; get the file again', or parts of it as of an error. on: types of library errors to convert.
    kind: class that library errors and UsageErrors become; a missing read permission becomes a DataError.
    """
    try:
        yield
    except (UsageError, DataError, FormatError) as error:
        if str(error).startswith(str(where).partition(": ")[0]):
            raise
        raise (kind if isinstance(error, UsageError) else type(error))(f"{where}: ", *error.args) from error
    except ElboError:
        raise
    except on as error:
        said = f"could not read: {error.strerror}" if isinstance(error, OSError) and error.strerror else one_line(error)
        end = (then,) if isinstance(then, str) else then
        raise (DataError if isinstance(error, PermissionError) else kind)(f"{where}: {said}", *end) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and logs of libraries in the block."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def check_format(where: object, found: Mapping[str, object], name: str, known: int = 1, then: str = "") -> None:
    """Check the format and version that are recorded in a file.

    where: the file, for messages. found: has the keys `format` and `version`.
    name: expected format; "": files without the key `format`. known: latest version that this elbo reads.
    then: end of the FormatError's message.
    Raises FormatError for another format, DataError for a later version.
    """
    kind = found.get("format") if name else ""
    version = str(found.get("version", "" if name else 1))
    if kind != name or not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise FormatError(f"{where}: has format {kind!r}, version {version!r}; expected format {name!r}, version {known}{then}")
    if int(version) > known:
        raise DataError(
            f"{where}: format version {version}, from a later elbo; elbo {__version__} reads up to version {known}; upgrade elbo"
        )


def check_file(path: Path | str) -> None:
    """Raise OSError unless the path is a regular file."""
    if Path(path).stat() and not Path(path).is_file():
        raise OSError(0, "is no regular file", str(path))


def open_file(path: Path | str) -> BufferedReader:
    """Open a regular file for reading bytes. Raises OSError."""
    check_file(path)
    return open(path, "rb")


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes. Raises FormatError; DataError without read permission."""
    with reading(path), open_file(path) as file:
        return file.read()


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 as 64 hex digits. Raises OSError."""
    import hashlib  # takes 3 ms, and the help of commands imports this file

    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_digests(hexes: Iterable[str]) -> str:
    """Return the sum of SHA-256 digests modulo 2²⁵⁶, as 64 hex digits. Raises ValueError."""
    # A sum doesn't depend on order and grouping, so a dataset packed in parts has the digest of the whole.
    return f"{sum(int(digest, 16) for digest in hexes) % 2**256:064x}"


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text. Raises FormatError; DataError without read permission."""
    with reading(f"{path}: not a text file"):
        return read_bytes(path).decode()


def whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the complete lines of a log."""
    for line in file:
        if line.rstrip().endswith(b"}") or line.endswith(b"\n"):
            yield line
