"""Images in: an NPY stream, .npy, .npz (`arr_0`, labels in `arr_1`), .h5, a folder of PNGs, as `sample_writers` writes them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.atomic import PIPE
from elbocli.files.dataset import PREPROCESSING, Dataset
from elbocli.files.dataset_attributes import DatasetAttributes
from elbocli.files.reading import check_file, one_line, reading
from elbocli.files.recognise import instead, recognise
from elbocli.files.sample_writers.header import SamplesAbout
from elbocli.images.decode import decode
from elbocli.images.image_refs import read_bytes

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PIECE = 16 << 20
BATCH_BYTES = 256 << 20
"""Bytes of images that are held at a time."""


@dataclass
class SampleReader:
    """Images of one size. shape: (N, H, W, C); labels: [N] or None; made: how they were drawn; crop, filter: of what they
    were made of.

    at(start, count): images from start on, uint8 [count, H, W, C]; each call must go on after the call before. Raises
    DataError when the stream ends early. class_names: of a dataset of several classes.
    """

    name: str
    shape: tuple[int, int, int, int]
    labels: np.ndarray | None
    at: Callable[[int, int], np.ndarray]
    made: SamplesAbout = field(default_factory=SamplesAbout)
    class_names: Sequence[str] = ()
    preprocessing: dict[str, Any] = field(default_factory=dict)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yield all images in order, uint8 [≤ size, H, W, C]. Raises DataError when the stream ends early."""
        size = self.batch(size)
        for start in range(0, self.shape[0], size):
            yield self.at(start, min(size, self.shape[0] - start))

    def batch(self, size: int) -> int:
        """So many images at a time, or fewer where they are large."""
        return max(1, min(size, BATCH_BYTES // math.prod(self.shape[1:])))


def read_header(file: IO[bytes], name: str) -> tuple[int, int, int, int]:
    """Read the shape (N, H, W, C) that an NPY header announces; (N, H, W) is one of grey images.

    Raises FormatError when it isn't one of images.
    """
    with reading(f"{name}: not an NPY stream of images", "; write one with 'elbo sample'"):
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        shape = tuple(map(int, shape))
    found = f"{dtype} {shape}{' in Fortran order' if fortran else ''}"
    if len(shape) == 3 and shape[-1] > len("RGBA"):  # else it is one image in colour
        shape = (*shape, 1)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or fortran or min(shape) < 1:
        raise FormatError(f"{name}: holds {found}, expected uint8 (N, H, W, 1 or 3) or (N, H, W) with N > 0, C order")
    return shape


def refuse_short(what: str, size: int, offset: int, shape: tuple[int, ...]) -> None:
    """Raise FormatError when `size` bytes can't hold images of that shape from `offset` on."""
    wanted = offset + math.prod(shape)
    if size < wanted:
        raise FormatError(f"{what} cut short: {size} bytes, expected {wanted}")


def _stream(file: IO[bytes], name: str) -> SampleReader:
    shape = read_header(file, name)
    row = math.prod(shape[1:])
    position = 0

    def read(start: int, count: int) -> np.ndarray:
        nonlocal position
        with reading(f"{name}: announces images of {shape[2]} x {shape[1]} pixels", kind=DataError):
            buffer = bytearray(count * row)
        view, filled = memoryview(buffer), 0
        if start != position:
            file.seek((start - position) * row, os.SEEK_CUR)
        position = start + count
        while filled < len(buffer):
            with reading(name, kind=DataError):
                got = file.readinto(view[filled : filled + PIECE]) or 0  # type: ignore[attr-defined, unused-ignore]
            if not got:
                came = f"{start + filled // row} of {shape[0]} images"
                raise DataError(f"{name}: ended after {came}; its writer died or the file is cut short")
            filled += got
        return np.frombuffer(buffer, np.uint8).reshape(count, *shape[1:])

    return SampleReader(name, shape, None, read)


def _png_folder(folder: Path) -> SampleReader:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not files:
        raise DataError(instead(folder, "images"))

    def pixels(path: Path) -> np.ndarray:
        with reading(path, kind=DataError):
            array = np.asarray(decode(read_bytes(path), channels=0)[0])
        return array[..., None] if array.ndim == 2 else array

    def said(shape: tuple[int, ...]) -> str:
        return f"{shape[1]} x {shape[0]} pixels in {'grey' if shape[2] == 1 else 'colour'}"

    shape = pixels(files[0]).shape

    def read(start: int, count: int) -> np.ndarray:
        batch = []
        for path in files[start : start + count]:
            image = pixels(path)
            if image.shape != shape:
                both = f"{said(image.shape)}, but {files[0].name} has {said(shape)}"
                raise DataError(f"{path}: {both}; pack them alike with 'elbo prep'")
            batch.append(image)
        return np.stack(batch)

    return SampleReader(str(folder), (len(files), *shape), None, read)


def read_labels(archive: zipfile.ZipFile, name: str, count: int, array: str = "arr_1") -> np.ndarray | None:
    """Read the labels in an array of an .npz, int64 [count]; None when there is none. Raises FormatError."""
    if f"{array}.npy" not in archive.namelist():
        return None
    with reading(f"{name}: {array} is not usable as labels"), archive.open(f"{array}.npy") as member:
        labels = np.lib.format.read_array(member, allow_pickle=False)
        if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
            raise FormatError(f"{name}: {array} is {labels.dtype} {labels.shape}, expected {count} integer labels")
        if int(labels.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"a label is {int(labels.max())}")
    return np.asarray(labels, np.int64).reshape(count)


def read_about(archive: zipfile.ZipFile, name: str) -> SamplesAbout:
    """Read how the images of an .npz were made, from its `about`; empty when it has none. Raises FormatError."""
    if "about.npy" not in archive.namelist():
        return SamplesAbout()
    with reading(f"{name}: about is not usable"), archive.open("about.npy") as member:
        about = str(np.lib.format.read_array(member, allow_pickle=False))
    return _about(about, f"{name}: about")


def drawn(attributes: DatasetAttributes, name: str) -> SamplesAbout:
    """Read how a dataset's samples were drawn, from its attribute `samples`; empty without one. Raises FormatError."""
    return (
        SamplesAbout() if attributes.samples is None else _about(attributes.samples, f"{name}: its attribute samples")
    )


def _about(text: str, what: str) -> SamplesAbout:
    where = f"{what} is not usable"
    try:
        with reading(where):
            return SamplesAbout.of(json.loads(text), where)
    except FormatError as error:
        raise FormatError(f"{error}; draw these samples again, or merge their parts again") from error


def _preprocessing(*told: dict[str, Any]) -> dict[str, Any]:
    """Facts on how images were made of others, as the last says it that does."""
    return {key: each[key] for each in told for key in PREPROCESSING if key in each}


@contextlib.contextmanager
def read_samples(source: Path | IO[bytes]) -> Iterator[SampleReader]:
    """Open images from a binary stream or a path, reading no more at a time than is asked for.

    Raises FormatError or DataError: not images, of another type, cut short. Never unpickles.
    """
    if not isinstance(source, Path):
        yield _stream(source, "standard input")
    elif source.is_dir():
        yield _png_folder(source)
    elif source.suffix == ".h5":
        data = Dataset(source)
        several = data.num_classes > 1  # One class is no label: a dataset has it that has none.
        labels = data.labels if several else None
        names = data.class_names if several and len(data.class_names) == data.num_classes else ()

        def read(start: int, count: int) -> np.ndarray:
            return data.batch(range(start, start + count))

        made = drawn(data.attributes, str(source))
        how = _preprocessing(made.more, data.attributes.json())
        yield SampleReader(str(source), data.shape, labels, read, made, names, how)
    elif source.suffix == ".npz":
        with contextlib.ExitStack() as opened:
            with reading(source, kind=DataError):  # errors of the code that reads the images are not this file's
                archive = opened.enter_context(_zip(source))
                member = opened.enter_context(_member(archive, source))
                reader = _stream(member, str(source))
                refuse_short(f"{source}: arr_0 is", archive.getinfo("arr_0.npy").file_size, member.tell(), reader.shape)
                reader.labels = read_labels(archive, str(source), reader.shape[0])
                reader.made = read_about(archive, str(source))
                reader.preprocessing = _preprocessing(reader.made.more)
            yield reader
    else:
        if recognise(source) not in ("samples", PIPE):
            raise FormatError(instead(source, "images"))
        with contextlib.ExitStack() as opened:
            with reading(source, kind=DataError):
                file = opened.enter_context(open(source, "rb"))
                reader = _stream(file, str(source))
                if source.is_file():  # a pipe has no size
                    refuse_short(f"{source}:", source.stat().st_size, file.tell(), reader.shape)
            yield reader


def has_images(path: Path) -> bool:
    """Whether an npz holds `arr_0`."""
    with _zip(path) as archive:
        return "arr_0.npy" in archive.namelist()


def _zip(path: Path) -> zipfile.ZipFile:
    check_file(path)
    try:
        return zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # zipfile raises anything for damaged files
        raise FormatError(f"{path}: not an .npz archive ({one_line(error)})") from error


def _member(archive: zipfile.ZipFile, path: Path) -> IO[bytes]:
    if "arr_0.npy" not in archive.namelist():
        held = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist()))[:200]
        raise FormatError(f"{path}: no 'arr_0' inside (it holds {held}); expected images in arr_0")
    with reading(f"{path}: arr_0 can't be unpacked"):
        return archive.open("arr_0.npy")


def refuse_terminal(stream: IO[Any]) -> None:
    """Raise UsageError when binary data would go onto a terminal."""
    if os.isatty(stream.fileno()):
        raise UsageError(
            "standard output is a terminal; add -o FILE, or pipe it: elbo sample RUN | elbo eval --ref DATA.h5"
        )
