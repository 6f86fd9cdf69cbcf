"""Samples as ADM keeps them: .npz with images in `arr_0` and labels in `arr_1`, and `about`, JSON text."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from elbocli.errors import DataError
from elbocli.files.atomic import write_all
from elbocli.files.dataset_block import IMAGES, SCAN_BYTES, BlockLayout
from elbocli.files.resumable import Resumable
from elbocli.files.sample_writers.header import SamplesHeader
from elbocli.files.sample_writers.npy import npy_header


class _Around(io.RawIOBase):
    """A file but for its bytes from `start` to `stop`, which are in place already."""

    def __init__(self, handle: int, start: int, stop: int):
        self._handle, self._start, self._stop, self._at = handle, start, stop, 0

    def write(self, data: Any) -> int:
        if not self._start <= self._at < self._stop:
            write_all(self._handle, data, self._at)
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at


class Npz(Resumable):
    """The rows where a zip archive of them has them, and the archive around them when all are there."""

    def __init__(self, out: Path, header: SamplesHeader):
        self.header = header
        start = io.BytesIO()
        with zipfile.ZipFile(start, "w") as archive, self._images(archive):
            offset = start.tell()
        layout = BlockLayout(IMAGES, "|u1", header.shape[1:], int(np.prod(header.shape[1:])) + 8)
        super().__init__(out, layout, offset, header.shape[0], header.identity)

    @contextlib.contextmanager
    def _images(self, archive: zipfile.ZipFile) -> Iterator[IO[bytes]]:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            member.write(npy_header(self.header.shape))
            yield member

    def seal(self) -> None:
        """Write the archive around the rows and give the file its name."""
        rows, labels = self.block(), self.header.labels
        around = _Around(self._handle, self.offset, self.offset + len(rows))
        with zipfile.ZipFile(around, "w") as archive:
            with self._images(archive) as member:
                if around.tell() != self.offset:
                    raise DataError(f"{self.out}: this zip library places images elsewhere; please report this")
                for start in range(0, len(rows), SCAN_BYTES):
                    member.write(rows[start : start + SCAN_BYTES].data)
            beside = {} if labels is None else {"arr_1.npy": labels.astype("<i8")}
            for name, array in (beside | {"about.npy": np.array(self.header.about_json)}).items():
                content = io.BytesIO()
                np.lib.format.write_array(content, array, (1, 0), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(name), content.getvalue())
        os.ftruncate(self._handle, around.tell())
        self.name()
