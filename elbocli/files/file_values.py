"""Numbers at a place in a file, copied into memory: what is mapped would end the process when the file is cut short."""

from __future__ import annotations

import io
import os

import torch
from torch import Tensor

from elbocli.errors import FormatError


class FileValues:
    """The values in an open file, or in bytes in memory. All that are read together are no more than it holds."""

    def __init__(self, file: io.BufferedReader | io.BytesIO):
        self._file, self._size = file, file.seek(0, os.SEEK_END)
        self._left = self._size
        file.seek(0)

    def some(self, offset: int, count: int) -> bytes:
        """Return a few bytes, fewer at the end; the file stays where it was."""
        before = self._file.tell()
        self._file.seek(offset)
        found = self._file.read(count)
        self._file.seek(before)
        return found

    def read(self, offset: int, dtype: torch.dtype, count: int) -> Tensor:
        """Return `count` values of that type; the file stays where it was.

        Raises FormatError where they lie beyond its end, or it has fewer bytes than were read.
        """
        size = count * dtype.itemsize
        if not 0 <= offset <= self._size - size or size > self._left:
            raise FormatError("it is damaged: a tensor's values lie beyond its end")
        self._left -= size
        found, before = torch.empty(count, dtype=dtype), self._file.tell()
        rest = found.view(torch.uint8).numpy().data
        self._file.seek(offset)
        while rest and (read := self._file.readinto(rest)):
            rest = rest[read:]
        self._file.seek(before)
        if rest:
            raise FormatError("it was cut short while it was read")
        return found
