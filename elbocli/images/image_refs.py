"""References to images: a file, a stretch of an archive, an entry of a zip; array_rows.py has rows of arrays.

Each has `read()`, which gives bytes (an image file) or pixels (uint8 [H, W, C]), from any thread, and raises
DataError for what can't be read; `weight`, the bytes of memory that this takes; and `shape`, (H, W, C) where it is known
without reading. Nothing is ever extracted to disk.
"""

from __future__ import annotations

import contextlib
import os
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from elbocli.errors import DataError
from elbocli.files.opening import NO_WAITING
from elbocli.files.reading import refusing

Shape = tuple[int, int, int]
LARGEST_FILE = 256 << 20
DENSE = 3
"""A stretch is read whole when it is at most this many times as long as the files that are wanted of it."""

TOO_LARGE = f"too large: more than {LARGEST_FILE >> 20} MiB for one image"


class ImageRef(Protocol):
    """A reference to one image."""

    def read(self) -> bytes | np.ndarray:
        """The image file's bytes, or its pixels. Raises DataError."""

    @property
    def weight(self) -> int:
        """Bytes of memory that `read` takes."""

    @property
    def shape(self) -> Shape | None:
        """(H, W, C), where it is known without reading."""


def read_bytes(path: Path | str, offset: int = 0, size: int = -1) -> bytes:
    """Read a regular file, or `size` bytes of it. Raises DataError for pipes, sockets, loops, what can't be read."""
    try:
        handle = os.open(path, NO_WAITING)  # a pipe would wait for its writer
    except OSError as error:
        dangling = isinstance(error, FileNotFoundError) and Path(path).is_symlink()
        raise DataError("a link to nothing" if dangling else _why(error)) from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a regular file")
        wanted = status.st_size - offset if size < 0 else size
        if wanted > LARGEST_FILE:
            raise DataError(TOO_LARGE)
        content = os.pread(handle, wanted, offset)
        while len(content) < wanted and (more := os.pread(handle, wanted - len(content), offset + len(content))):
            content += more
        if len(content) < wanted:
            raise DataError(f"cut short: {len(content)} of {wanted} bytes are there")
        return content
    except OSError as error:
        raise DataError(_why(error)) from error
    finally:
        os.close(handle)


def _why(error: OSError) -> str:
    return f"can't be read: {error.strerror or error}"


@dataclass(frozen=True, slots=True)
class Span:
    """A file, or `size` bytes of it from `offset`."""

    path: str
    offset: int = 0
    size: int = -1
    shape = None

    def read(self) -> bytes:
        """Read its bytes."""
        return read_bytes(self.path, self.offset, self.size)

    @property
    def weight(self) -> int:
        """Its size."""
        if self.size >= 0:
            return self.size
        with contextlib.suppress(OSError):
            return Path(self.path).stat().st_size
        return 0


def will_need(refs: Sequence[ImageRef]) -> None:
    """Tell the kernel that these come next, so that it reads the stretch of an archive in which they lie in one go.

    Images are packed in the order of their names, and an archive may have another: it is still read once, from front to
    back, some thousand files at a time.
    """
    stretches: dict[str, tuple[int, int, int]] = {}
    for ref in refs:
        if isinstance(ref, Span) and ref.size >= 0:
            low, high, total = stretches.get(ref.path, (ref.offset, 0, 0))
            stretches[ref.path] = min(low, ref.offset), max(high, ref.offset + ref.size), total + ref.size
    for path, (low, high, total) in stretches.items():
        if high - low <= DENSE * total + (1 << 20):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), low, high - low, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """An entry of an open zip archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    shape = None

    def read(self) -> bytes:
        """Read its bytes, unpacked."""
        info = self.info
        if info.flag_bits & 1:
            raise DataError("encrypted: unlock the archive first")
        if info.file_size > LARGEST_FILE:
            raise DataError(TOO_LARGE)
        with refusing("does not unpack", kind=DataError):
            return self.archive.read(info)

    @property
    def weight(self) -> int:
        """Its size, unpacked and packed."""
        return self.info.file_size + self.info.compress_size


@dataclass(frozen=True, slots=True)
class Content:
    """A file in memory: of an archive that is unpacked whole."""

    content: bytes
    shape = None

    def read(self) -> bytes:
        """Return its bytes."""
        return self.content

    @property
    def weight(self) -> int:
        """Its size."""
        return len(self.content)


@dataclass(frozen=True, slots=True)
class Nowhere:
    """An entry of an archive that can't be an image (a link, a device, …)."""

    why: str
    weight = 0
    shape = None

    def read(self) -> bytes:
        """Raise DataError."""
        raise DataError(self.why)
