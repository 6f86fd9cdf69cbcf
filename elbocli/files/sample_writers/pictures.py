"""Samples as PNG: a folder with a file for each, or a grid of all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from elbocli.errors import UsageError
from elbocli.files.atomic import new_folder
from elbocli.files.dataset_block import IMAGES, BlockLayout
from elbocli.files.grid import LARGEST_GRID, lay_out, picture, rows_of_classes, write_grid
from elbocli.files.recognise import png_names
from elbocli.files.resumable import Resumable
from elbocli.files.sample_writers.header import SamplesHeader

DISK_BLOCK = 4096
"""Bytes that a small file takes on most disks."""
PNGS = 256
"""Images that are encoded between two reports."""


class _Pictures(Resumable):
    """Rows that become PNGs when all are there. The disk that these will take is claimed too."""

    def __init__(self, out: Path, header: SamplesHeader):
        self.header = header
        _, height, width, channels = header.shape
        row = height * (width * channels + 1)
        # What deflate can't make smaller it keeps, with 5 bytes for each 16 KiB, and PNG adds 12 for each 64 KiB.
        png = -(-(row + row // 1000 + 200) // DISK_BLOCK) * DISK_BLOCK
        layout = BlockLayout(IMAGES, "|u1", header.shape[1:], height * width * channels + png)
        super().__init__(out, layout, 0, header.shape[0], header.identity)

    def images(self) -> np.ndarray:
        """All images, [N, H, W, C]; the rest of the disk that was claimed is given back."""
        os.ftruncate(self._handle, self.state.bytes)
        return self.block().reshape(self.header.shape)


class Grid(_Pictures):
    """One PNG that shows them all, by class. Raises UsageError when they are too many or too large for that."""

    def __init__(self, out: Path, header: SamplesHeader):
        count, height, width, _ = header.shape
        if count > LARGEST_GRID:
            raise UsageError(f"{out}: a grid of {count} images is not a picture; use a folder, .npy, .npz or .h5")
        self._layout = lay_out(height, width, rows_of_classes(count, header.labels, header.class_names), header.scale)
        self._layout.check(out)
        super().__init__(out, header)

    def seal(self) -> None:
        """Encode the grid under its name."""
        write_grid(self.out, self.images(), self._layout)
        self.discard()


class Folder(_Pictures):
    """A PNG for each image, named by its number."""

    def seal(self) -> Iterator[int]:
        """Encode all into a folder and give it its name. Yields how many are encoded."""
        images = self.images()
        names = png_names(len(images))
        with new_folder(self.out) as folder, ThreadPoolExecutor(thread_name_prefix="elbo-png") as pool:

            def save(index: int) -> None:
                picture(images[index]).save(folder / names[index])

            for start in range(0, len(images), PNGS):
                stop = min(start + PNGS, len(images))
                for _ in pool.map(save, range(start, stop)):
                    pass
                yield stop
        self.discard()
