"""Headers of tars, within bounds: of bytes for a file's headers, of digits, and of what holds for all later files.

Nothing else in elbo uses tarfile.
"""

from __future__ import annotations

import contextlib
import re
import tarfile
from collections.abc import Callable, Iterator

LONGEST_HEADER = 1 << 20
"""Bytes of all headers of a file: its name, and what its file system says besides."""
LONGEST_NUMBER = 300
"""Digits in a row: a name has at most 255. tarfile looks for numbers in time by the square of them."""
MOST_GLOBAL = 1000
"""Words that hold for all later files: tarfile copies them for each."""
BLOCK = tarfile.BLOCKSIZE
BROKEN = (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError, EOFError, MemoryError, RecursionError)
"""Errors of tarfile for damaged archives."""
DIGITS = re.compile(rb"[0-9]{%d}" % LONGEST_NUMBER)


class TarHeaders:
    """The headers of a tar of `size` bytes. at(offset, count): bytes of it, as many as are there.

    Headers of absurd size are refused instead of being read. Raises one of BROKEN for a damaged tar.
    """

    def __init__(self, at: Callable[[int, int], bytes], size: int):
        self.size = size
        self._bytes, self._at, self._taken, self._end = at, 0, 0, 0

    def read(self, count: int) -> bytes:
        """Read as tarfile does."""
        self._taken += count
        if self._taken > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self._taken} bytes")
        content = self._bytes(self._at, max(0, min(count, self.size - self._at)))
        self._at += len(content)
        if DIGITS.search(content):
            raise tarfile.ReadError("a number of hundreds of digits")
        return content

    def seek(self, at: int) -> int:
        """Seek as tarfile does."""
        self._at = at
        return at

    def tell(self) -> int:
        """Tell as tarfile does."""
        return self._at

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Yield them in order."""
        self._at = 0
        with tarfile.open(fileobj=self, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                if info.size < 0 or tar.offset <= info.offset:
                    raise tarfile.ReadError(f"a file of {info.size} bytes")
                if len(tar.pax_headers) > MOST_GLOBAL:
                    raise tarfile.ReadError(f"more than {MOST_GLOBAL} words that hold for all files")
                tar.members.clear()
                self._taken = 0
                yield info
            self._end = tar.offset

    def trouble(self) -> str:
        """Say what is wrong with the tar's end, after `members`; empty when nothing is."""
        mark = self._bytes(self._end, max(0, min(BLOCK, self.size - self._end)))
        if mark == bytes(BLOCK):
            return ""
        return f"is damaged at byte {self._end} of {self.size}" if mark else "has no end mark and may be cut short"


def headers_of(content: bytes) -> TarHeaders:
    """The headers of a tar in memory."""
    return TarHeaders(lambda at, count: content[at : at + count], len(content))


def begins_like_tar(head: bytes) -> bool:
    """Whether a file's first block is one of a tar."""
    with contextlib.suppress(tarfile.TarError):
        tarfile.TarInfo.frombuf(head[:BLOCK], "utf-8", "surrogateescape")
        return True
    return False
