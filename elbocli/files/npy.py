"""NumPy's format (.npy, and the members of an .npz) from anyone, within bounds: of the header, and of the array.

Nothing else in elbo reads it. Arrays of objects, which are pickles, are refused.
"""

from __future__ import annotations

import io
import math
from typing import IO

import numpy as np

from elbocli.files.reading import one_line

LONGEST_HEADER = 10_000
"""Bytes, as in numpy, which reads longer ones before it refuses them."""
PIECE = 1 << 20


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read (shape, whether in Fortran's order, type), and leave the file at the values. Raises ValueError."""
    begin = _exactly(file, 8)
    length = _exactly(file, 2 if begin[6:7] == b"\1" else 4)
    count = int.from_bytes(length, "little")
    if begin[:6] != b"\x93NUMPY" or count > LONGEST_HEADER:
        raise ValueError("it doesn't begin as one" if begin[:6] != b"\x93NUMPY" else f"a header of {count} bytes")
    header = io.BytesIO(begin + length + _exactly(file, count))
    version = np.lib.format.read_magic(header)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(header)
    except Exception as error:  # it is Python, and Python's own parser raises of everything
        raise ValueError(one_line(error)) from error
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    return shape, fortran, dtype


def read_array(file: IO[bytes], most: int) -> np.ndarray:
    """Read an array of at most so many bytes. Raises ValueError."""
    return read_values(file, *read_header(file), most)


def read_values(file: IO[bytes], shape: tuple[int, ...], fortran: bool, dtype: np.dtype, most: int) -> np.ndarray:
    """Read the values behind a header, of at most so many bytes. Raises ValueError."""
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which could run code")
    size = math.prod(shape) * dtype.itemsize
    if size > most:
        raise ValueError(f"{dtype} {shape} has {size} bytes, more than {most}")
    return np.ndarray(shape, dtype, _exactly(file, size), order="F" if fortran else "C")


def _exactly(file: IO[bytes], count: int) -> bytearray:
    """Read so many bytes, taking memory as they come. Raises ValueError where there are fewer."""
    found = bytearray()
    while len(found) < count:
        piece = file.read(min(PIECE, count - len(found)))
        if not piece:
            raise ValueError(f"cut short: {len(found)} of {count} bytes are there")
        found += piece
    return found
