"""Where samples go batch by batch: a stream, or a file in the making."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from elbocli.errors import DataError
from elbocli.files.atomic import told
from elbocli.files.sample_writers.header import SamplesHeader, npy_header


class Sink(Protocol):
    """Takes the next batch [b, H, W, C] uint8. partial: where a file is in the making; None for a stream."""

    partial: Path | None

    @property
    def done(self) -> int:
        """Number of images that are safe; for a stream, that are written."""

    def put(self, batch: np.ndarray) -> None:
        """Write the images that follow. Raises DataError when the disk is full."""

    def finish(self) -> Iterator[int]:
        """Give the file its name, as all images came. Yields how many are encoded, where that takes long.

        Raises DataError when fewer came than the header says.
        """


class StreamSink:
    """Writes NPY to a binary stream."""

    partial: Path | None = None

    def __init__(self, file: IO[bytes], header: SamplesHeader):
        self.done, self._header = 0, header
        file.flush()
        # Past the buffer, whose lock a thread would hold that waits for a reader when the process ends.
        self._file: Any = getattr(file, "raw", file)
        self._write(npy_header(header.shape))

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        with told(Path("standard output")):
            while view:
                view = view[self._file.write(view) :]

    def put(self, batch: np.ndarray) -> None:
        """See Sink."""
        self._write(np.ascontiguousarray(batch).data)
        self.done += len(batch)

    def finish(self) -> Iterator[int]:
        """See Sink."""
        _check_count("standard output", self.done, self._header)
        yield from ()


class FileSink:
    """Writes by one of the writers of files."""

    def __init__(self, file: Any):
        self._file = file
        self.partial: Path | None = file.partial

    @property
    def done(self) -> int:
        """See Sink."""
        return int(self._file.rows)

    def put(self, batch: np.ndarray) -> None:
        """See Sink."""
        self._file.append(batch, self.done + len(batch), {})

    def finish(self) -> Iterator[int]:
        """See Sink."""
        _check_count(self._file.out, self.done, self._file.header)
        with told(self._file.out):
            yield from self._file.seal()


def _check_count(where: object, came: int, header: SamplesHeader) -> None:
    if came != header.shape[0]:
        raise DataError(f"{where}: {came} images came, {header.shape[0]} were announced")
