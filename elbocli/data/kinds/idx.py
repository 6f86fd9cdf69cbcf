"""IDX files, the format of MNIST: images in one file, labels in another, each plain or gzipped.

Layout: two zero bytes, type (1 byte, 8 for uint8), number of dimensions (1 byte), dimensions (big-endian uint32), values.
Source: the description on MNIST's page.
"""

import gzip
import math
import struct
from collections.abc import Sequence

import numpy as np

from elbocli.data.registry import Entries, ImageRef, Images, check_labels, images_of_array, source
from elbocli.errors import DataError, FormatError
from elbocli.files.reading import reading
from elbocli.runtime.progress import log

GZIP = b"\x1f\x8b"
UINT8 = b"\0\0\x08"


@source("an IDX file", form="parts")
def open_idx(files: Sequence[str], folder: Entries) -> Images:
    """Open `files`, a single file of images, and its file of labels in `folder`, if any. Raises FormatError, DataError."""
    (name,) = files
    images = _values(folder[name], name, 3)
    wanted = name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    labels = next((label for label in (wanted, f"{wanted}.gz") if label in folder and label != name), None)
    if labels is None:
        log.warning(f"{name}: has no file of labels {wanted} beside it; all images get the same class")
        return images_of_array(images[..., None])
    with reading(labels):
        numbers = check_labels(_values(folder[labels], labels, 1), len(images))
    return images_of_array(images[..., None], numbers.tolist())


def _values(ref: ImageRef, where: str, ndim: int) -> np.ndarray:
    with reading(where, "; get it again", DataError):
        content = bytes(ref.read())
        content = gzip.decompress(content) if content.startswith(GZIP) else content
        shape = struct.unpack_from(f">{ndim}I", content, 4)
        expected = 4 + 4 * ndim + math.prod(shape)
        if content[:4] != UINT8 + bytes([ndim]) or 0 in shape or len(content) != expected:
            raise FormatError(
                f"expected {ndim}-D uint8 of {expected} bytes, found header {content[:4]!r} and {len(content)} bytes; get it again"
            )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)
