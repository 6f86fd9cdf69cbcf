"""safetensors from anyone: their headers are checked before the library sees them.

Nothing else in elbo reads or writes them. Tensors lie in the file's own memory map.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from elbocli.files import strict_json
from elbocli.files.opening import open_file
from elbocli.files.reading import refusing, utf8_path

LARGEST_HEADER = 16 << 20
"""Bytes: 100,000 tensors."""


def begins_like_tensors(path: Path) -> bool:
    """Whether a file begins as one of safetensors: the length of a header that it can hold, and a brace. Raises OSError."""
    with open_file(path) as file:
        head, size = file.read(9), os.fstat(file.fileno()).st_size
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def read_header(path: Path, what: str = "weights") -> dict[str, Any]:
    """The header: type, shape and place of each tensor, and `__metadata__`. what: a word for messages.

    Raises FormatError.
    """
    with refusing(f"{path}: not usable as {what}"), open_file(path) as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = strict_json.parse(file.read(length), LARGEST_HEADER)
        if not isinstance(header, dict) or not all(isinstance(each, dict) for each in header.values()):
            raise ValueError("its header is no list of tensors")
        return header


def metadata(path: Path) -> dict[str, str]:
    """Words that the file says of itself. Raises FormatError where it is none of safetensors."""
    with open_tensors(path) as file:
        return dict(file.metadata() or {})


def open_tensors(path: Path, what: str = "weights") -> Any:
    """Open a file whose tensors are read when asked for, as safetensors has it. Raises FormatError."""
    read_header(path, what)
    with refusing(f"{path}: not usable as {what}"), utf8_path(path) as name:
        return safe_open(name, framework="pt")


def load(path: Path) -> dict[str, Tensor]:
    """All tensors by name. Raises FormatError."""
    read_header(path)
    with refusing(f"{path}: not usable as weights"), utf8_path(path) as name:
        return load_file(name)
