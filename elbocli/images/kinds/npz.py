"""ADM's batches (.npz), and others with labels beside the images. A compressed array is unpacked into memory."""

from __future__ import annotations

import contextlib
import math
import struct
import zipfile
from pathlib import Path

import numpy as np

from elbocli.errors import FormatError
from elbocli.files.reading import open_file, reading
from elbocli.images.image_refs import FileRows, array_rows
from elbocli.images.registry import Images, numbered, source
from elbocli.images.samples import read_header, read_labels, refuse_short

PAIRS = (("arr_0", "arr_1"), ("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels"))
"""The names under which an .npz may hold images and their labels: numpy's own, and those of published data sets."""
LOCAL_HEADER = struct.Struct("<26xHH")


def is_npz(path: Path, head: bytes) -> bool:
    """Whether a zip is an .npz."""
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        return bool(names) and all("/" not in name and name.endswith(".npy") for name in names)
    return False


@source("npz", magic=b"PK", test=is_npz)
def open_npz(path: Path) -> Images:
    """Open an .npz. Raises FormatError when it holds no images under a known name, or is damaged."""
    with reading(f"{path}: damaged", "; make or get it again"), zipfile.ZipFile(path) as archive:
        held = [name.removesuffix(".npy") for name in archive.namelist()]
        pair = next((pair for pair in PAIRS if pair[0] in held), None)
        if pair is None:
            remedy = "save them with numpy.savez(path, images, labels)"
            raise FormatError(f"{path}: holds {', '.join(held[:5])}, but no images in arr_0; {remedy}")
        images, labels = pair
        info = archive.getinfo(f"{images}.npy")
        with archive.open(info) as member:
            shape, start = read_header(member, str(path)), member.tell()
            refuse_short(f"{path}: {images} is", info.file_size, start, shape)
            if info.compress_type == zipfile.ZIP_STORED:
                array: FileRows | np.ndarray = _stored(path, info, start, shape)
            else:
                array = np.frombuffer(member.read(), np.uint8)[: math.prod(shape)].reshape(shape)
        numbers = read_labels(archive, str(path), shape[0], labels)
    others = [name for name in held if pair != PAIRS[0] and name not in pair]
    notes = [f"{path}: {images} is taken, not {', '.join(others[:5])}"] if others else []
    return Images(numbered(shape[0]), None if numbers is None else numbers.tolist(), array_rows(array), notes=notes)


def _stored(path: Path, info: zipfile.ZipInfo, start: int, shape: tuple[int, ...]) -> FileRows:
    """The rows of a member that isn't compressed, behind its local header of the zip and its own of `start` bytes."""
    with open_file(path) as file:
        file.seek(info.header_offset)
        sizes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    offset = info.header_offset + LOCAL_HEADER.size + sum(sizes) + start
    refuse_short(f"{path}:", path.stat().st_size, offset, shape)
    return FileRows(str(path), offset, shape)
