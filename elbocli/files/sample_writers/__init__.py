"""Images out: an NPY stream, or .npy, .npz (`arr_0`, labels in `arr_1`), .h5, a folder of PNGs, a PNG grid.

The NPY header says how many images come, so that a reader notices when the writer died. Files of every kind are made of
rows that a killed writer goes on with (see `resumable`); what is not rows comes at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from elbocli.errors import UsageError
from elbocli.files.atomic import PIPE, streams, writing
from elbocli.files.resumable import holding
from elbocli.files.sample_writers.h5 import H5
from elbocli.files.sample_writers.header import SamplesHeader
from elbocli.files.sample_writers.npy import Npy, StreamSink
from elbocli.files.sample_writers.npz import Npz
from elbocli.files.sample_writers.pictures import Folder, Grid

__all__ = ["SamplesHeader", "Sink", "open_samples", "open_stream"]

WRITERS: dict[str, Any] = {".npy": Npy, ".npz": Npz, ".h5": H5, ".png": Grid, "": Folder}
"""By suffix."""


class FileSink:
    """Writes to a file in the making, `partial`. Its `seal` adds what is not rows, and names it."""

    def __init__(self, file: Any):
        self._file = file
        self.partial: Path | None = file.partial
        self.warnings: list[str] = file.warnings

    @property
    def done(self) -> int:
        """Number of images that are safe."""
        return int(self._file.rows)

    def put(self, batch: np.ndarray) -> None:
        """Make the next images safe, uint8 [b, H, W, C]. Raises DataError when the disk is full."""
        self._file.append(batch, self.done + len(batch), {})

    def finish(self) -> Iterator[int]:
        """Give the file its name. Yields how many images are encoded, where that takes long.

        Raises DataError when fewer came than the header says.
        """
        self._file.header.check_count(self._file.out, self.done)
        with writing(self._file.out):
            yield from self._file.seal() or ()


Sink = StreamSink | FileSink


def open_stream(path: Path) -> IO[bytes] | None:
    """Open a device or a pipe that lies at a path, for an NPY stream; None when there is none. A pipe's reader is waited for.

    Raises UsageError for a suffix of another format, DataError when it can't be opened.
    """
    if not streams(path):
        return None
    if path.suffix not in ("", ".npy"):
        raise UsageError(f"{path}: is {PIPE}, into which an NPY stream goes and no {path.suffix}; choose another name")
    with writing(path):
        return open(path, "wb", buffering=0)


@contextlib.contextmanager
def open_samples(
    target: Path | IO[bytes], header: SamplesHeader, overwrite: bool = False, wait: float = 0
) -> Iterator[Sink]:
    """Open a binary stream, or a path whose suffix says the format (none: a folder of PNGs), for images to come.

    overwrite: replace what is there, and forget an unfinished file made with other settings. wait: seconds, for another
    process to leave the file. Raises UsageError for another suffix, an existing file, other settings, a grid of too
    many, or a scale of what is no grid; DataError for a full disk.
    """
    if header.scale and not (isinstance(target, Path) and target.suffix == ".png"):
        raise UsageError("--scale enlarges a grid, and this is none; leave it out, or add -o FILE.png")
    if not isinstance(target, Path):
        yield StreamSink(target, header)
        return
    writer = WRITERS.get(target.suffix)
    if writer is None:
        named = ", ".join(suffix for suffix in WRITERS if suffix)
        raise UsageError(f"{target}: unknown format {target.suffix!r}; use {named}, a folder name, or - for a stream")
    if not target.suffix:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
    with holding(target, lambda: writer(target, header), overwrite, overwrite, wait) as file:
        yield FileSink(file)
