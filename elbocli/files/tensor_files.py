"""safetensors from anyone: headers are checked, and tensors read, by elbo itself.

Nothing else in elbo reads them. Tensors get memory of their own: what is mapped would end the process when somebody cuts
the file short.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.errors import FormatError, Vanished
from elbocli.files import strict_json
from elbocli.files.file_system import disk_bytes
from elbocli.files.opening import open_file
from elbocli.files.reading import refusing
from elbocli.runtime.memory_bound import MOST_MORE, bounded_memory

LARGEST_HEADER = 16 << 20
"""Bytes: 100,000 tensors."""
MOST_SIDES = 64
META = "__metadata__"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of numbers by the format's names."""


class TensorFile:
    """A file whose tensors are read when they are asked for. Open only while it is read: there may be thousands.

    path: by which it is opened. name: for messages. layout: type, as the format calls it, and shape of each tensor.
    metadata: words that the file says of itself. Raises FormatError.
    """

    def __init__(self, path: Path, what: str = "weights", name: Path | None = None):
        self.path, self.name = path, name or path
        self._wrong = f"{self.name}: not usable as {what}"
        with refusing(self._wrong), open_file(path) as file:
            self._state = _state(file.fileno())
            length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
            if size < 8 or length > min(LARGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = strict_json.parse(file.read(length), LARGEST_HEADER)
            if not isinstance(header, dict) or not all(isinstance(each, dict) for each in header.values()):
                raise ValueError("its header is no list of tensors")
            self.metadata: dict[str, str] = header.pop(META, {})
            if not all(isinstance(word, str) for word in self.metadata.values()):
                raise ValueError("its metadata are no words")
            self.layout = {key: (str(said["dtype"]), tuple(said["shape"])) for key, said in header.items()}
            self._places = _places(header, 8 + length, size)

    def read(self, key: str) -> Tensor:
        """A tensor. Raises FormatError, when the file has changed since, and Vanished when it is gone."""
        dtype, shape = self.layout[key]
        tensor = torch.empty(shape, dtype=DTYPES[dtype])
        at, left = self._places[key], tensor.reshape(-1).view(torch.uint8).numpy().data
        try:
            with open_file(self.path) as file:
                now = _state(file.fileno())
                while left and (count := os.preadv(file.fileno(), [left], at)):
                    left, at = left[count:], at + count
        except FileNotFoundError as error:
            raise Vanished(f"{self.name}: is gone since it was found") from error
        except OSError as error:
            raise FormatError(f"{self._wrong}: {error.strerror or error}") from error
        if now[:2] != self._state[:2]:
            raise Vanished(f"{self.name}: another file has taken its place since it was found")
        if left or now != self._state:
            raise FormatError(f"{self.name}: has changed while it was read; put it right, or make it again")
        return tensor


def _state(handle: int) -> tuple[int, ...]:
    """The file's own number, and by what one sees that it has changed."""
    status = os.fstat(handle)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _places(header: dict[str, Any], begin: int, size: int) -> dict[str, int]:
    """The place in the file at which each tensor begins. Raises ValueError, and what else a strange header may cause.

    begin: of what follows the header. They fill it without gaps, as the format asks for.
    """
    end = 0
    for key, said in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, offsets = said["shape"], said["data_offsets"]
        if len(shape) > MOST_SIDES or not all(type(each) is int and 0 <= each < 1 << 60 for each in (*shape, *offsets)):
            raise ValueError(f"{key!r} has a shape or place that is none")
        if said["dtype"] not in DTYPES:
            raise ValueError(f"{key!r} is of {said['dtype']!r}, which is none of {', '.join(DTYPES)}")
        first, last = offsets
        if first != end or last - first != math.prod(shape) * DTYPES[said["dtype"]].itemsize:
            raise ValueError(f"{key!r} is not where, or as large as, the header says")
        end = last
    if begin + end != size:
        raise ValueError(f"tensors of {end} bytes, and {size - begin} follow the header")
    return {key: begin + said["data_offsets"][0] for key, said in header.items()}


def metadata(path: Path) -> dict[str, str]:
    """Words that the file says of itself. Raises FormatError where it is none of safetensors."""
    return TensorFile(path).metadata


def load(path: Path, name: Path | None = None) -> dict[str, Tensor]:
    """All tensors by name. name: of the file, for messages. Raises FormatError."""
    file = TensorFile(path, name=name)
    with refusing(f"{file.name}: not usable as weights"), bounded_memory(MOST_MORE + 2 * disk_bytes(path)):
        return {key: file.read(key) for key in file.layout}
