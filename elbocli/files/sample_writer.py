"""Images out: an NPY stream, or .npy, .npz (`arr_0`, labels in `arr_1`), .h5, a folder of PNGs, a PNG grid.

The NPY header says how many images come, so that a reader notices when the writer died. Files of every kind are made of
rows that a killed writer goes on with (see `unfinished`); what is not rows comes at the end.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

from elbocli import __version__
from elbocli.errors import DataError, UsageError
from elbocli.files.atomic import refuse_existing, told, writing, writing_folder
from elbocli.files.dataset_block import IMAGES, SCAN_BYTES, BlockLayout, plain
from elbocli.files.dataset_writer import DatasetWriter
from elbocli.files.resumable import Resumable, holding

LARGEST_GRID = 10_000
BLOCK = 4096
"""Bytes: what a small file takes on most disks."""
PNGS = 256
"""Encoded between two reports."""
FREE = ("run", "weights_file", "guide", "guide_weights_file", "command", "elbo_version")
"""What of `about` may change before a killed writer's file is gone on with."""


@dataclass(frozen=True)
class SamplesHeader:
    """What will be written: shape (N, H, W, C), a label per image (or None), seeds, and words on how it was made.

    class_names: of all classes, where there are labels.
    """

    shape: tuple[int, int, int, int]
    labels: np.ndarray | None
    seeds: np.ndarray
    class_names: list[str]
    about: dict[str, Any]

    @property
    def source(self) -> dict[str, str]:
        """What must be the same to go on: everything that the images depend on."""
        n, height, width, channels = self.shape
        facts = {**self.about, "n": n, "size": f"{height} x {width} x {channels}"}
        return {key: str(value) for key, value in facts.items() if key not in FREE}

    @property
    def about_json(self) -> str:
        """`about` as text."""
        return json.dumps(self.about, default=str)


class Sink(Protocol):
    """Takes the next batch [b, H, W, C] uint8. partial: where a file is in the making; None for a stream."""

    partial: Path | None

    @property
    def done(self) -> int:
        """Images that are safe; of a stream, those written."""

    def put(self, batch: np.ndarray) -> None:
        """The images that follow."""

    def finish(self) -> Iterator[int]:
        """All came: give the file its name. Yields how many are encoded, where that takes long. Raises DataError."""


def npy_header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """The NPY v1 header of a C-ordered array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def grid(images: np.ndarray) -> Image.Image:
    """[N, H, W, C] uint8 as one picture, about as wide as high."""
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows, columns, height, width, channels), np.uint8)
    sheet.reshape(-1, height, width, channels)[:n] = images
    return picture(sheet.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels))


def picture(image: np.ndarray) -> Image.Image:
    """[H, W, 1 or 3] uint8 as Pillow has it."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def write_grid(path: Path, images: np.ndarray) -> None:
    """Save `grid(images)` as PNG."""
    with writing(path) as file:
        grid(images).save(file, "png")


@contextlib.contextmanager
def open_samples(
    target: Path | IO[bytes], plan: SamplesHeader, overwrite: bool = False, wait: float = 0
) -> Iterator[Sink]:
    """Where the images go: a binary stream, or a path whose suffix says the format (none: a folder of PNGs).

    overwrite: replace what is there, and forget an unfinished file made with other settings. wait: seconds, for another
    process to leave the file. Raises UsageError for another suffix, an existing file, other settings, or a grid of too
    many; DataError for a full disk.
    """
    if not isinstance(target, Path):
        yield _Stream(target, plan)
        return
    kind = KINDS.get(target.suffix)
    if kind is None:
        named = ", ".join(suffix for suffix in KINDS if suffix)
        raise UsageError(f"{target}: unknown format {target.suffix!r}; use {named}, a folder name, or - for a stream")
    if target.suffix == ".png" and plan.shape[0] > LARGEST_GRID:
        raise UsageError(
            f"{target}: a grid of {plan.shape[0]} images is not a picture; use a folder, .npy, .npz or .h5"
        )
    refuse_existing(target, overwrite, folder=not target.suffix)
    if not target.suffix:
        with told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
    with holding(target, lambda: kind(target, plan), overwrite, overwrite, wait) as file:
        yield _File(file)


class _Stream:
    partial: Path | None = None

    def __init__(self, file: IO[bytes], plan: SamplesHeader):
        self.done, self._plan = 0, plan
        file.flush()
        # Past the buffer, whose lock a thread would hold that waits for a reader when the process ends.
        self._file: Any = getattr(file, "raw", file)
        self._write(npy_header(plan.shape))

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        with told(Path("standard output")):
            while view:
                view = view[self._file.write(view) :]

    def put(self, batch: np.ndarray) -> None:
        self._write(np.ascontiguousarray(batch).data)
        self.done += len(batch)

    def finish(self) -> Iterator[int]:
        _check_count("standard output", self.done, self._plan)
        yield from ()


class _File:
    def __init__(self, file: Any):
        self._file = file
        self.partial: Path | None = file.partial

    @property
    def done(self) -> int:
        return int(self._file.rows)

    def put(self, batch: np.ndarray) -> None:
        self._file.append(batch, self.done + len(batch), {})

    def finish(self) -> Iterator[int]:
        _check_count(self._file.out, self.done, self._file.plan)
        with told(self._file.out):
            yield from self._file.seal()


def _check_count(where: object, came: int, plan: SamplesHeader) -> None:
    if came != plan.shape[0]:
        raise DataError(f"{where}: {came} images came, {plan.shape[0]} were announced")


class _Npy(Resumable):
    def __init__(self, out: Path, plan: SamplesHeader):
        self.plan, self._header = plan, npy_header(plan.shape)
        super().__init__(out, plain(plan.shape[1:]), len(self._header), plan.shape[0], plan.source)

    def seal(self) -> Iterator[int]:
        os.pwrite(self._handle, self._header, 0)
        os.ftruncate(self._handle, self.offset + int(self.state["bytes"]))
        self.name()
        yield from ()


class _Around(io.RawIOBase):
    """A file but for its bytes from `start` to `stop`, which are in place already."""

    def __init__(self, handle: int, start: int, stop: int):
        self._handle, self._start, self._stop, self._at = handle, start, stop, 0

    def write(self, data: Any) -> int:
        if not self._start <= self._at < self._stop:
            os.pwrite(self._handle, data, self._at)
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at


class _Npz(Resumable):
    def __init__(self, out: Path, plan: SamplesHeader):
        self.plan = plan
        start = io.BytesIO()
        with zipfile.ZipFile(start, "w") as archive, self._images(archive):
            offset = start.tell()
        layout = BlockLayout(IMAGES, "|u1", plan.shape[1:], int(np.prod(plan.shape[1:])) + 8)
        super().__init__(out, layout, offset, plan.shape[0], plan.source)

    @contextlib.contextmanager
    def _images(self, archive: zipfile.ZipFile) -> Iterator[IO[bytes]]:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            member.write(npy_header(self.plan.shape))
            yield member

    def seal(self) -> Iterator[int]:
        rows, labels = self.block(), self.plan.labels
        around = _Around(self._handle, self.offset, self.offset + len(rows))
        with zipfile.ZipFile(around, "w") as archive:
            with self._images(archive) as member:
                if around.tell() != self.offset:
                    raise DataError(f"{self.out}: this zip library places images elsewhere; please report this")
                for start in range(0, len(rows), SCAN_BYTES):
                    member.write(rows[start : start + SCAN_BYTES].data)
            for name, array in (
                ("arr_1.npy", None if labels is None else labels.astype("<i8")),
                ("about.npy", np.array(self.plan.about_json)),
            ):
                if array is not None:
                    content = io.BytesIO()
                    np.lib.format.write_array(content, array, (1, 0), allow_pickle=False)
                    archive.writestr(zipfile.ZipInfo(name), content.getvalue())
        os.ftruncate(self._handle, around.tell())
        self.name()
        yield from ()


class _H5(DatasetWriter):
    def __init__(self, out: Path, plan: SamplesHeader):
        self.plan = plan
        super().__init__(out, plain(plan.shape[1:]), plan.shape[0], plan.source, True)

    def seal(self) -> Iterator[int]:
        plan = self.plan
        # A dataset must have labels: of one class, they tell nothing.
        labels, names = plan.labels, plan.class_names
        if labels is None:
            labels, names = np.zeros(plan.shape[0], np.int64), ["all"]
        self.finish(
            {"labels": labels, "seeds": plan.seeds},
            {"class_names": names},
            {
                "num_classes": len(names),
                "image_size": plan.shape[1],
                "elbo_version": __version__,
                "command": plan.about.get("command", ""),
                "samples": plan.about_json,
            },
        )
        yield from ()


class _Pictures(Resumable):
    """Rows that become PNGs when all are there. The disk that these will take is claimed too."""

    def __init__(self, out: Path, plan: SamplesHeader):
        self.plan = plan
        _, height, width, channels = plan.shape
        row = height * (width * channels + 1)
        # What deflate can't make smaller it keeps, with 5 bytes for each 16 KiB, and PNG adds 12 for each 64 KiB.
        png = -(-(row + row // 1000 + 200) // BLOCK) * BLOCK
        layout = BlockLayout(IMAGES, "|u1", plan.shape[1:], height * width * channels + png)
        super().__init__(out, layout, 0, plan.shape[0], plan.source)

    def images(self) -> np.ndarray:
        """[N, H, W, C]; the rest of what was claimed is given back."""
        os.ftruncate(self._handle, int(self.state["bytes"]))
        return self.block().reshape(self.plan.shape)


class _Grid(_Pictures):
    def seal(self) -> Iterator[int]:
        write_grid(self.out, self.images())
        self.discard()
        yield from ()


class _Folder(_Pictures):
    def seal(self) -> Iterator[int]:
        images, digits = self.images(), len(str(max(self.plan.shape[0] - 1, 999999)))
        aside = self.out.with_name(f".{self.out.name}.tmp")
        if aside.exists():
            shutil.rmtree(aside)
        with writing_folder(self.out, aside) as folder, ThreadPoolExecutor(thread_name_prefix="elbo-png") as pool:

            def save(index: int) -> None:
                picture(images[index]).save(folder / f"{index:0{digits}d}.png")

            for start in range(0, len(images), PNGS):
                stop = min(start + PNGS, len(images))
                for _ in pool.map(save, range(start, stop)):
                    pass
                yield stop
        self.discard()


KINDS: dict[str, Callable[[Path, SamplesHeader], Any]] = {
    ".npy": _Npy,
    ".npz": _Npz,
    ".h5": _H5,
    ".png": _Grid,
    "": _Folder,
}
