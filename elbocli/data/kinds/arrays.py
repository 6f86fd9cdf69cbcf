"""Arrays of images: NumPy's .npy, .npz files with images and labels, and elbo's datasets."""

import math
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib.npyio import NpzFile

from elbocli.data.registry import DatasetRows, Images, check_labels, images_of_array, source
from elbocli.errors import DataError, FormatError
from elbocli.files.dataset import Dataset
from elbocli.files.reading import open_file, reading

# Names of the arrays (images, labels) in an .npz: NumPy's default names, and names in published data sets.
PAIRS = (("arr_0", "arr_1"), ("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels"))
MORE = "more bytes follow the array's last image; write all images into one array, or name each array alone"
NPZ = ".npz"
LOCAL_HEADER = struct.Struct("<26xHH")


def read_header(file: IO[bytes], name: str) -> tuple[int, int, int, int]:
    """Read the shape (N, H, W, C) of uint8 images in an NPY header. name: of the file, for messages. Raises FormatError."""
    with reading(f"{name}: not an NPY stream of images", "; write one with 'elbo sample'"):
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    found = f"{dtype} {shape}{' in Fortran order' * fortran}"
    if len(shape) == 3 and shape[-1] > len("RGBA"):  # otherwise it is a single image in colour
        shape = (*shape, 1)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or fortran or min(shape) < 1:
        raise FormatError(f"{name}: holds {found}; convert to the expected uint8 (N>0, H, W, 1 or 3) or (N>0, H, W) in C order")
    return shape


class StreamRows:
    """Images in an NPY stream, uint8 [N, H, W, C], read in order."""

    def __init__(self, file: IO[bytes], name: str):
        # buffered, so that a read from a pipe returns all requested bytes
        self.file = file
        self.name = name
        self.shape = read_header(file, name)
        self.next = 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Read rows; in a pipe, `rows` must start where the previous call stopped.

        Raises DataError if the stream ends early, or goes on after the last row.
        """
        row = math.prod(self.shape[1:])
        count = rows.stop - rows.start
        with reading(self.name, kind=DataError):
            if rows.start != self.next:
                self.file.seek((rows.start - self.next) * row, os.SEEK_CUR)
            content = self.file.read(count * row)
        if len(content) < count * row:
            came = rows.start + len(content) // row
            raise DataError(f"{self.name}: truncated after {came} of {self.shape[0]} images; write the images again")
        self.next = rows.stop
        if rows.stop == self.shape[0] and self.file.read(1):
            raise DataError(f"{self.name}: {MORE}")
        return np.frombuffer(content, np.uint8).reshape(count, *self.shape[1:])


@source("samples")
@source("statistics")
def open_arrays(path: Path) -> Images:
    """Open a .npy file of images, or an .npz of images and labels. Raises FormatError."""
    return _open_npz(path) if path.suffix.lower() == NPZ else images_of_array(npy_rows(path))


def npy_rows(path: Path) -> np.ndarray:
    """Map a .npy file of images into memory. Raises FormatError."""
    with reading(path), open_file(path) as file:
        shape = read_header(file, str(path))
        if path.stat().st_size > file.tell() + math.prod(shape):
            raise FormatError(MORE)
        return np.memmap(path, np.uint8, "r", file.tell(), shape)


def _open_npz(path: Path) -> Images:
    with open_zip(path) as archive, reading(path), open_file(path) as file:
        images, labels = next((pair for pair in PAIRS if pair[0] in archive), PAIRS[0])
        rows = npz_rows(archive, path, images)
        info = zipfile.ZipFile(file).getinfo(f"{images}.npy")
        if info.compress_type == zipfile.ZIP_STORED:
            file.seek(info.header_offset)  # the length of a member's header is only in the header itself
            offset = info.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))
            array: np.ndarray = np.memmap(path, np.uint8, "r", offset + rows.file.tell(), rows.shape)
        else:
            array = rows[0 : rows.shape[0]]
        numbers = npz_labels(archive, path, rows.shape[0], labels)
    return images_of_array(array, None if numbers is None else numbers.tolist())


@contextmanager
def open_zip(path: Path) -> Iterator[NpzFile]:
    """Open an .npz. Raises FormatError."""
    with ExitStack() as stack:
        with reading(f"{path}: not an .npz archive"):
            archive = NpzFile(stack.enter_context(open_file(path)))
        yield archive


def npz_rows(archive: NpzFile, path: Path, name: str = "arr_0") -> StreamRows:
    """Return the images in an array of an .npz. Raises FormatError."""
    if name not in archive:
        held = ", ".join(archive.files[:5])
        raise FormatError(f"{path}: no images in array {name} (the file holds {held}); write them with numpy.savez(FILE, images)")
    assert archive.zip is not None  # it is None after closing
    info = archive.zip.getinfo(f"{name}.npy")
    stream = StreamRows(archive.zip.open(info), f"{path}: {name}")
    if info.file_size != stream.file.tell() + math.prod(stream.shape):
        raise FormatError(f"{stream.name}: {info.file_size} bytes don't fit the header's {stream.shape}; write the file again")
    return stream


def npz_labels(archive: NpzFile, path: Path, count: int, name: str = "arr_1") -> np.ndarray | None:
    """Read labels of an .npz, int64 [count]; None: absent. Raises FormatError."""
    with reading(f"{path}: {name} is not usable as labels"):
        return check_labels(archive[name], count) if name in archive else None


@source("a dataset")
def open_dataset(path: Path) -> Images:
    """Open a dataset of images or samples. Raises FormatError for latents, DataError if it differs from its digests."""
    data = Dataset(path)
    data.verify()
    files = data.contents().get("files")
    names = files if isinstance(files, list) and len(files) == len(data) else ()
    return images_of_array(DatasetRows(data), data.labels.tolist(), data.class_names, names)
