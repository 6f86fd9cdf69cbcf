"""IDX files, in which MNIST and its relatives come: images in one, labels in another called alike; plain or gzipped.

A file has two zero bytes, its type (8 for uint8), the number of its dimensions, each of them as a big-endian uint32, and
the values. Source: the description on MNIST's page.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from elbocli.errors import DataError, FormatError
from elbocli.files.reading import reading
from elbocli.images.image_refs import FileRows, ImageRef, Span, array_rows
from elbocli.images.registry import HEAD, Images, numbered, source

TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
GZIP = b"\x1f\x8b"
AGAIN = "get it again"


def dimensions(head: bytes) -> int:
    """The number of dimensions of an IDX file that begins so: 3 for images, 1 for labels; 0 when it isn't one."""
    head = _unpacked(head)
    is_one = len(head) >= 8 and head[:2] == b"\0\0" and head[2] in TYPES and 1 <= head[3] <= 4
    return head[3] if is_one else 0


def _unpacked(head: bytes) -> bytes:
    """The beginning of a file, unpacked where it is gzipped and can be."""
    if head.startswith(GZIP):
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(31).decompress(head, HEAD)
    return head


def labels_names(name: str) -> list[str]:
    """The names that the file of an image file's labels may have."""
    plain = name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    return [plain, f"{plain}.gz"] if plain != name.removesuffix(".gz") else []


@source("IDX", test=lambda path, head: dimensions(head) > 0)
def open_file_of_images(path: Path) -> Images:
    """Open a file of images, with the labels that lie beside it."""
    beside = [path.with_name(name) for name in labels_names(path.name)]
    refs = {file.name: Span(str(file)) for file in beside if file.is_file()}
    return open_idx(path.name, Span(str(path)), refs, str(path))


def open_idx(name: str, ref: ImageRef, beside: Mapping[str, ImageRef], where: str) -> Images:
    """Open a file of images, and the file of their labels that lies beside it.

    beside: the files of its folder, by name. where: its name in messages. Raises FormatError for a file that isn't one
    of images or has another length than it says, and for labels that don't fit; DataError when it doesn't unpack.
    """
    shape = (*_header(ref, where, 3), 1)
    if min(shape) < 1:
        raise FormatError(f"{where}: announces {shape[0]} images of {shape[2]} x {shape[1]} pixels; {AGAIN}")
    if isinstance(ref, Span) and not bytes(ref.read(2)).startswith(GZIP):
        size = Path(ref.path).stat().st_size if ref.size < 0 else ref.size
        _check_length(where, size, 16 + math.prod(shape))
        rows = array_rows(FileRows(ref.path, ref.offset + 16, shape))
    else:
        rows = array_rows(_values(ref, where, 16, math.prod(shape)).reshape(shape))
    wanted = labels_names(name)
    labels = next((label for label in wanted if label in beside), None)
    if labels is None:
        lacking = f"no file of labels beside it ({' or '.join(wanted)})" if wanted else "no labels"
        return Images(numbered(shape[0]), None, rows, notes=[f"{where}: {lacking}, so all images are of one class"])
    at = where.removesuffix(name) + labels
    (count,) = _header(beside[labels], at, 1)
    if count != shape[0]:
        raise FormatError(f"{at}: {count} labels for {shape[0]} images; put the file there that belongs to them")
    return Images(numbered(shape[0]), _values(beside[labels], at, 8, count).tolist(), rows)


def _header(ref: ImageRef, where: str, wanted: int) -> tuple[int, ...]:
    """Read the lengths of the dimensions. Raises FormatError when they are not as many as wanted, or not of uint8."""
    head = bytes(ref.read(HEAD))
    count, head = dimensions(head), _unpacked(head)
    if not count:
        raise FormatError(f"{where}: begins like no IDX file; {AGAIN}")
    if TYPES[head[2]] != "uint8":
        raise FormatError(f"{where}: holds {TYPES[head[2]]}, expected uint8; save the pixels as .npy, in uint8")
    if count != wanted:
        what = "labels" if count == 1 else f"{count} dimensions"
        expected = "images (3 dimensions: number, height, width)" if wanted == 3 else "labels (1 dimension)"
        raise FormatError(f"{where}: is an IDX file of {what}, expected one of {expected}; name that one")
    if len(head) < 4 + 4 * wanted:
        raise FormatError(f"{where}: cut short: {len(head)} bytes; {AGAIN}")
    return struct.unpack(f">{wanted}I", head[4 : 4 + 4 * wanted])


def _values(ref: ImageRef, where: str, offset: int, size: int) -> np.ndarray:
    """Read `size` bytes after a header of `offset` bytes into memory. Raises DataError, FormatError."""
    with reading(where, kind=DataError):
        content = bytes(ref.read())
        if content.startswith(GZIP):
            with reading("does not unpack", kind=DataError), gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(offset + size + 1)
    _check_length(where, len(content), offset + size)
    return np.frombuffer(content, np.uint8, offset=offset)


def _check_length(where: str, found: int, expected: int) -> None:
    if found != expected:
        what = f"cut short: {found} bytes" if found < expected else "too long: more bytes than announced"
        raise FormatError(f"{where}: {what}, expected {expected}; {AGAIN}")
