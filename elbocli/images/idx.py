"""IDX files, in which MNIST and its relatives come: images in one, labels in another called alike; plain or gzipped.

A file has two zero bytes, its type (8 for uint8), the number of its dimensions, each of them as a big-endian uint32, and
the values. Source: the description on MNIST's page.
"""

from __future__ import annotations

import math
import shlex
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from elbocli.errors import DataError, FormatError
from elbocli.files.reading import naming
from elbocli.images.array_rows import Row
from elbocli.images.arrays import ArrayImages, pixel_rows
from elbocli.images.image_refs import ImageRef, Span
from elbocli.images.packed import GZIP, LARGEST_UNPACKED, first_bytes, first_bytes_inside, gunzipped
from elbocli.images.samples import LARGEST_SIDE

TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
AGAIN = "get it again"


def dimensions(head: bytes) -> int:
    """The number of dimensions of an IDX file that begins so: 3 for images, 1 for labels; 0 when it isn't one."""
    is_one = len(head) >= 8 and head[:2] == b"\0\0" and head[2] in TYPES and 1 <= head[3] <= 4
    return head[3] if is_one else 0


def labels_names(name: str) -> list[str]:
    """The names that the file of an image file's labels may have."""
    plain = name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    return [plain, f"{plain}.gz"] if plain != name.removesuffix(".gz") else []


def open_idx(name: str, ref: ImageRef, beside: Mapping[str, ImageRef], where: str) -> ArrayImages:
    """Open a file of images, and the file of their labels that lies beside it.

    beside: the files of its folder, by name. where: its name in messages. Raises FormatError for a file that isn't one
    of images or has another length than it says, and for labels that don't fit; DataError when it doesn't unpack.
    """
    packed, head = _beginning(ref)
    count, height, width = _header(head, where, 3)
    shape = (count, height, width, 1)
    if not (count > 0 and 0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
        raise FormatError(f"{where}: announces {count} images of {width} x {height} pixels, which can't be; {AGAIN}")
    if isinstance(ref, Span) and not packed:
        _check_length(where, ref.weight, 16 + math.prod(shape))
        images: Sequence[ImageRef] = pixel_rows(ref.path, ref.offset + 16, shape)
    else:
        pixels = _values(ref, packed, where, 16, math.prod(shape)).reshape(shape)
        images = [Row(pixels, index) for index in range(count)]
    labels = next((label for label in labels_names(name) if label in beside), None)
    if labels is None:
        lacking = (
            f"no file of labels beside it ({' or '.join(labels_names(name))})" if labels_names(name) else "no labels"
        )
        return ArrayImages(images, notes=[f"{where}: {lacking}, so all images are of one class"])
    return ArrayImages(images, _labels(beside[labels], where.removesuffix(name) + labels, count).tolist())


def _labels(ref: ImageRef, where: str, count: int) -> np.ndarray:
    """Read the labels of `count` images. Raises FormatError when they are of another number."""
    packed, head = _beginning(ref)
    (found,) = _header(head, where, 1)
    if found != count:
        raise FormatError(f"{where}: {found} labels for {count} images; put the file there that belongs to them")
    return _values(ref, packed, where, 8, count)


def _beginning(ref: ImageRef) -> tuple[bool, bytes]:
    """Read how a file begins. Returns (whether it is gzipped, the first bytes of what is in it)."""
    head = first_bytes(ref)
    packed = head.startswith(GZIP)
    return packed, first_bytes_inside(ref) if packed else head


def _header(head: bytes, where: str, wanted: int) -> tuple[int, ...]:
    """Read the lengths of the dimensions. Raises FormatError when they are not as many as wanted, or not of uint8."""
    found = dimensions(head)
    if not found:
        raise FormatError(f"{where}: begins like no IDX file; {AGAIN}")
    if TYPES[head[2]] != "uint8":
        raise FormatError(f"{where}: holds {TYPES[head[2]]}, expected uint8; save the pixels as .npy, in uint8")
    if found != wanted:
        what = "labels" if found == 1 else f"{found} dimensions"
        expected = "images (3 dimensions: number, height, width)" if wanted == 3 else "labels (1 dimension)"
        raise FormatError(f"{where}: is an IDX file of {what}, expected one of {expected}; name that one")
    if len(head) < 4 + 4 * wanted:
        raise FormatError(f"{where}: cut short: {len(head)} bytes; {AGAIN}")
    return struct.unpack(f">{wanted}I", head[4 : 4 + 4 * wanted])


def _values(ref: ImageRef, packed: bool, where: str, offset: int, size: int) -> np.ndarray:
    """Read `size` bytes after a header of `offset` bytes into memory. Raises DataError, FormatError."""
    if size > LARGEST_UNPACKED:
        plain = "unpack the archive" if not packed else f"unpack it once with 'gzip -dk {shlex.quote(where)}'"
        raise DataError(
            f"{where}: {size} bytes of pixels are too many to hold in memory; {plain}, then name what comes out"
        )
    with naming(where):
        content = gunzipped(ref, offset + size) if packed else ref.read()
    _check_length(where, len(content), offset + size)
    return np.frombuffer(content, np.uint8, offset=offset)


def _check_length(where: str, found: int, expected: int) -> None:
    if found != expected:
        what = f"cut short: {found} bytes" if found < expected else "too long: more bytes than announced"
        raise FormatError(f"{where}: {what}, expected {expected}; {AGAIN}")
