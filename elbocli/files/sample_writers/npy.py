"""Samples as NPY: a file, or a stream whose header says how many images come."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from elbocli.files.atomic import write_all, writing
from elbocli.files.dataset_block import plain
from elbocli.files.resumable import Resumable
from elbocli.files.sample_writers.header import SamplesHeader


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The NPY v1 header of a C-ordered array of uint8."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


class Npy(Resumable):
    """The rows, and NPY's header in front when all are there."""

    def __init__(self, out: Path, header: SamplesHeader):
        self.header, self._head = header, npy_header(header.shape)
        super().__init__(out, plain(header.shape[1:]), len(self._head), header.shape[0], header.identity)

    def seal(self) -> None:
        """Write the header and give the file its name."""
        write_all(self._handle, self._head, 0)
        os.ftruncate(self._handle, self.offset + self.state.bytes)
        self.name()


class StreamSink:
    """Writes to a binary stream. done: number of images written."""

    partial: Path | None = None
    warnings: Sequence[str] = ()

    def __init__(self, file: IO[bytes], header: SamplesHeader):
        self.done, self._header = 0, header
        name = getattr(file, "name", None)
        self._name = str(name) if isinstance(name, Path) else "standard output"
        file.flush()
        # Past the buffer, whose lock a thread would hold that waits for a reader when the process ends.
        self._file: Any = getattr(file, "raw", file)
        self._write(npy_header(header.shape))

    def _write(self, data: bytes | memoryview) -> None:
        with writing(Path(self._name)):
            if isinstance(self._file, io.FileIO):
                write_all(self._file.fileno(), data)
            else:
                self._file.write(data)

    def put(self, batch: np.ndarray) -> None:
        """Write the next images, uint8 [b, H, W, C]. Raises DataError when that fails."""
        self._write(np.ascontiguousarray(batch).data)
        self.done += len(batch)

    def finish(self) -> Iterator[int]:
        """Raise DataError when fewer images came than the header says."""
        self._header.check_count(self._name, self.done)
        yield from ()
