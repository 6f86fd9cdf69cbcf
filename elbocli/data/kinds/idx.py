"""IDX files, the format of MNIST: images in one file, labels in another, each plain or gzipped.

Layout: two zero bytes, type (1 byte, 8 for uint8), number of dimensions (1 byte), dimensions (big-endian uint32), values.
Source: the description on MNIST's page.
"""

import gzip
import math
import struct

import numpy as np

from elbocli.data.registry import Images, SourceFile, check_labels, images_of_array, source
from elbocli.errors import DataError, FormatError
from elbocli.files.reading import reading
from elbocli.runtime.progress import log

GZIP = b"\x1f\x8b"
UINT8 = b"\0\0\x08"


@source("an IDX file")
def open_idx(file: SourceFile) -> Images:
    """Open a file of images, and the file of labels beside it, if any. Raises FormatError, DataError."""
    images = _values(file, 3)
    wanted = file.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    beside = [file.with_name(name) for name in (wanted, f"{wanted}.gz") if name != file.name]
    labels = next((path for path in beside if path.is_file()), None)
    if labels is None:
        log.warning(f"{file.name}: has no file of labels {wanted} beside it; all images get the same class")
        return images_of_array(images[..., None])
    with reading(labels.name):
        numbers = check_labels(_values(labels, 1), len(images))
    return images_of_array(images[..., None], numbers.tolist())


def _values(file: SourceFile, ndim: int) -> np.ndarray:
    with reading(file.name, "; get it again", DataError):
        content = file.read_bytes()
        content = gzip.decompress(content) if content.startswith(GZIP) else content
        shape = struct.unpack_from(f">{ndim}I", content, 4)
        expected = 4 + 4 * ndim + math.prod(shape)
        if content[:4] != UINT8 + bytes([ndim]) or 0 in shape or len(content) != expected:
            raise FormatError(
                f"expected {ndim}-D uint8 of {expected} bytes, found header {content[:4]!r} and {len(content)} bytes; get it again"
            )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)
