"""Files of tensors from anyone, read by the libraries that write them: safetensors, and torch.load of tensors alone.

Neither runs code.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from elbocli.errors import FormatError
from elbocli.files.reading import quiet, reading, utf8_path


class TensorFile:
    """A safetensors file whose tensors are read when they are asked for; they can be read even when it is deleted.

    path: by which it is opened. name: for messages. layout: type, as the format calls it, and shape of each tensor.
    metadata: text that the file says of itself. Raises FormatError.
    """

    def __init__(self, path: Path, what: str = "weights", name: Path | None = None):
        self.name = name or path
        self._wrong = f"{self.name}: not usable as {what}"
        with reading(self._wrong), utf8_path(path) as readable:
            self._file: Any = safe_open(readable, framework="pt")
            self.metadata: dict[str, str] = self._file.metadata() or {}
            slices = {key: self._file.get_slice(key) for key in self._file.keys()}  # noqa: SIM118 (it has no iterator)
            self.layout = {key: (each.get_dtype(), tuple(each.get_shape())) for key, each in slices.items()}

    def read(self, key: str) -> Tensor:
        """Return a copy of a tensor. Raises FormatError."""
        with reading(self._wrong):
            tensor: Tensor = self._file.get_tensor(key).clone()
        return tensor


def metadata(path: Path) -> dict[str, str]:
    """Return the text that a safetensors file says of itself. Raises FormatError for any other file."""
    return TensorFile(path).metadata


def load(path: Path, name: Path | None = None) -> dict[str, Tensor]:
    """Read all tensors by name. name: of the file, for messages. Raises FormatError."""
    file = TensorFile(path, name=name)
    return {key: file.read(key) for key in file.layout}


def load_tensors(source: Path | io.BytesIO, name: str = "") -> Any:
    """torch.load of tensors and plain values only. Raises FormatError when the file holds anything else."""
    what = name or source
    with reading(f"{what}: not a file of tensors"), contextlib.ExitStack() as stack, quiet():
        if isinstance(source, Path):
            source = stack.enter_context(utf8_path(source))
        try:
            found = torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise FormatError(f"{what}: refused: it holds more than tensors, and loading it could run code") from error
        _refuse_expanded(found)
        return found


def _refuse_expanded(tree: Any) -> None:
    """Raise ValueError where a tensor has more values than are stored: a copy of it would be of any size."""
    waiting, seen = [tree], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.numel() * value.itemsize > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of shape {list(value.shape)} has more values than are stored")
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
