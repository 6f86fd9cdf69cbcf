"""Samples as one .npy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from elbocli.files.dataset_block import plain
from elbocli.files.resumable import Resumable
from elbocli.files.sample_writers.header import SamplesHeader, npy_header


class Npy(Resumable):
    """The rows, and NPY's header in front when all are there."""

    def __init__(self, out: Path, header: SamplesHeader):
        self.header, self._head = header, npy_header(header.shape)
        super().__init__(out, plain(header.shape[1:]), len(self._head), header.shape[0], header.identity)

    def seal(self) -> Iterator[int]:
        """Write the header and give the file its name."""
        os.pwrite(self._handle, self._head, 0)
        os.ftruncate(self._handle, self.offset + int(self.state["bytes"]))
        self.name()
        yield from ()
