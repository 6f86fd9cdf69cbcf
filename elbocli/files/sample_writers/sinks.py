"""The one way in which samples are handed over, batch by batch, whatever becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from elbocli.errors import DataError
from elbocli.files.atomic import told
from elbocli.files.sample_writers.header import SamplesHeader


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


class FileSink:
    """Writes a file by one of the writers; `seal` of a writer adds what is not rows, and names the file."""

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
        check_count(self._file.out, self.done, self._file.header)
        with told(self._file.out):
            yield from self._file.seal() or ()


def check_count(where: object, came: int, header: SamplesHeader) -> None:
    """Raise DataError when not as many images came as the header says."""
    if came != header.shape[0]:
        raise DataError(f"{where}: {came} images came, {header.shape[0]} were announced")
