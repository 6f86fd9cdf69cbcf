"""Images that come as arrays: .npy, .npz (ADM's batches, and others with labels beside the images), another elbo-dataset."""

from __future__ import annotations

import contextlib
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from elbocli.errors import FormatError
from elbocli.files.dataset import Dataset
from elbocli.files.opening import check_file, open_file
from elbocli.files.reading import refusing
from elbocli.images.array_rows import DatasetRow, Made, Pixels, Unpacked, UnpackedRow
from elbocli.images.image_refs import ImageRef
from elbocli.images.samples import read_header, read_labels, refuse_short

PAIRS = (("arr_0", "arr_1"), ("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels"))
"""The names under which an .npz may hold images and their labels: numpy's own, and those of published data sets."""
LOCAL_HEADER = struct.Struct("<26xHH")
MOST_PACKED = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
"""The most bytes that one packed byte can become, by way of packing."""


@dataclass(frozen=True)
class ArrayImages:
    """Rows in their order, with a label each (or none), and names where the file has them.

    in_order: whether they can only be read one after another. notes: what a person should know of what was taken.
    """

    refs: Sequence[ImageRef]
    labels: list[int] | None = None
    class_names: Sequence[str] = ()
    names: Sequence[str] = ()
    in_order: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """A name for each row: its number, unless the file has names for them."""
        return list(self.names) or [str(i) for i in range(len(self.refs))]


def open_npy(path: Path) -> ArrayImages:
    """Open a .npy. Raises FormatError when it holds no images."""
    with open_file(path) as file:
        shape, offset = read_header(file, str(path)), file.tell()
    refuse_short(f"{path}:", path.stat().st_size, offset, shape)
    return ArrayImages(pixel_rows(str(path), offset, shape))


def pixel_rows(path: str, offset: int, shape: tuple[int, int, int, int]) -> Made:
    """Return the rows of an array of uint8 that lies plainly in a file, at an offset."""
    row = int(np.prod(shape[1:]))
    return Made(lambda i: Pixels(path, offset + i * row, shape[1:]), range(shape[0]))


def open_npz(path: Path) -> ArrayImages:
    """Open an .npz. Raises FormatError when it holds no images under a known name, or is damaged."""
    with refusing(f"{path}: damaged", "; make or get it again"):
        return _open_npz(path)


def _open_npz(path: Path) -> ArrayImages:
    with contextlib.ExitStack() as opened:
        check_file(path)
        archive = opened.enter_context(zipfile.ZipFile(path))
        found = _rows_of(path, archive)
        if found.in_order:  # it is packed, and read from later
            opened.pop_all()
    return found


def _rows_of(path: Path, archive: zipfile.ZipFile) -> ArrayImages:
    held = [name.removesuffix(".npy") for name in archive.namelist()]
    pair = next((pair for pair in PAIRS if pair[0] in held), None)
    if pair is None:
        remedy = "save them with numpy.savez(path, images, labels)"
        raise FormatError(f"{path}: holds {', '.join(held[:5])}, but no images in arr_0; {remedy}")
    images, labels = pair
    info = archive.getinfo(f"{images}.npy")
    with archive.open(info) as member:
        shape = read_header(member, str(path))
        start = member.tell()
    if info.file_size > MOST_PACKED.get(info.compress_type, 0) * path.stat().st_size:
        announced = f"{images} announces {info.file_size} bytes"
        raise FormatError(f"{path}: {announced}, more than can be in it; make or get it again")
    numbers = read_labels(archive, str(path), shape[0], labels)
    known = None if numbers is None else numbers.tolist()
    refuse_short(f"{path}: {images} is", info.file_size, start, shape)
    others = [name for name in held if pair != PAIRS[0] and name not in pair]
    notes = [f"{path}: {images} is taken, not {', '.join(others[:5])}"] if others else []
    if info.compress_type != zipfile.ZIP_STORED:
        rows = Unpacked(archive, info.filename, start, shape[1:])
        refs: Sequence[ImageRef] = [UnpackedRow(rows, i) for i in range(shape[0])]
        return ArrayImages(refs, known, in_order=True, notes=notes)
    with open_file(path) as file:
        file.seek(info.header_offset)
        name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    offset = info.header_offset + LOCAL_HEADER.size + name + extra + start
    return ArrayImages(pixel_rows(str(path), offset, shape), known, notes=notes)


def open_dataset(path: Path) -> ArrayImages:
    """Open a dataset. Raises FormatError when it is none, or one of latents."""
    data = Dataset(path)
    files = data.strings("files")
    names = data.class_names if len(data.class_names) == data.num_classes else []
    refs = Made(lambda i: DatasetRow(data, i), range(len(data)))
    return ArrayImages(refs, data.labels.tolist(), names, files if len(files) == len(data) else ())


def is_array(path: Path) -> bool:
    """Whether a zip is an .npz."""
    with contextlib.suppress(Exception), open_file(path) as file, zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        return "arr_0.npy" in names or (
            bool(names) and all("/" not in name and name.endswith(".npy") for name in names)
        )
    return False
