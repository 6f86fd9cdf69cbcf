"""Checkpoints of other people's training scripts (.pt, .pth, .pkl), read without running what they name.

A pickle is a program that may call any function. This unpickler knows a few that make tensors and containers; every
other name becomes a Foreign, which keeps what it is given and does nothing.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from elbocli.errors import FormatError
from elbocli.files.reading import open_file, reading
from elbocli.files.recognise import begins_like_tensors
from elbocli.files.tensor_files import load, load_tensors

LEGACY = bytes.fromhex("6cfc9c46f9206aa85019")
"""Number that torch's files of before 1.6 begin with; they are no archives."""
DTYPES = "Double float64 Float float32 Half float16 BFloat16 bfloat16 Long int64 Int int32 Short int16 Char int8 Byte uint8 Bool bool"
"""Names of torch's storages, each with the type of its numbers."""


class Foreign:
    """Stand-in for an object of a class, or for what a function returns, that a file names.

    name: of the class or function, with its module. args: what it was called with. state: mostly its __dict__. items,
    values: what a dict or a list of its class holds.
    """

    name = ""
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]
    values: list[Any]

    def __new__(cls, *args: Any, **_: Any) -> Foreign:
        """Keep the arguments."""
        made = super().__new__(cls)
        made.args, made.state, made.items, made.values = args, None, {}, []
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Keep an item of a list."""
        self.values.append(value)

    add = append


def _storage(content: bytes) -> Tensor:
    """Return a storage that torch.save made into bytes as [n]. Raises FormatError."""
    stored = load_tensors(io.BytesIO(content), "a storage")
    return torch.empty(0, dtype=stored.dtype).set_(stored)


def _strided(stored: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Return a tensor of a storage."""
    return stored.as_strided(size, stride, offset)


KNOWN: dict[str, Any] = {
    **{f"torch.{name}Storage": getattr(torch, dtype) for name, dtype in zip(DTYPES.split()[::2], DTYPES.split()[1::2])},
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor": _strided,
    "torch._utils._rebuild_tensor_v2": _strided,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": tuple,
    "torch.device": lambda *words: words,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "builtins.set": set,
    "__builtin__.set": set,
    "_codecs.encode": lambda text, _: text.encode("latin-1"),
}
"""The only names with a meaning: types of storages, and functions that make tensors and containers."""


class Unpickler(pickle._Unpickler):  # the one in C takes 64 GB of memory for a damaged PUT
    """Reads tensors and containers. archive: with the tensors of a .pt file."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile | None = None):
        super().__init__(file, encoding="latin-1")
        self._storages, self._archive = dict[tuple[str, torch.dtype], Tensor](), archive

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name: one of ours, a type of numbers, or a class of Foreign."""
        full = f"{module}.{name}"
        if full in KNOWN:
            return KNOWN[full]
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        return type("Foreign", (Foreign,), {"name": full})

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage in the archive as [n]. Raises FormatError where it lies elsewhere."""
        _, dtype, key, *_ = pid
        if self._archive is None or type(key) is not str or not isinstance(dtype, torch.dtype):
            raise FormatError("it has a tensor outside the file")
        if (key, dtype) not in self._storages:
            content = bytearray(_member(self._archive, f"data/{key}"))
            self._storages[key, dtype] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        return self._storages[key, dtype]


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a part of torch's archive by its name behind the first slash."""
    return next(archive.read(full) for full in archive.namelist() if full.partition("/")[2] == name)


def read_torch_file(path: Path) -> Any:
    """The content of a checkpoint of torch (.pt, .pth), a pickle of modules (.pkl), or safetensors.

    Raises FormatError when it is none, or damaged; runs nothing.
    """
    with reading(f"{path}: not usable as a checkpoint"), open_file(path) as file:
        if begins_like_tensors(path):
            return load(path)
        head = file.read(32)
        file.seek(0)
        if LEGACY in head:
            return load_tensors(path, "torch's format of before 1.6")
        unpickler = Unpickler(file)
        if head.startswith(b"PK"):
            archive = zipfile.ZipFile(file)
            unpickler = Unpickler(io.BytesIO(_member(archive, "data.pkl")), archive)
        return unpickler.load()


def _meta(found: Any) -> dict[Any, Any]:
    """Return what EDM's torch_utils.persistence says of an object, in the only argument of a call."""
    meta = found.args[0] if isinstance(found, Foreign) and found.args else None
    meta = meta.items if isinstance(meta, Foreign) else meta
    return meta if isinstance(meta, dict) else {}


def attributes(found: Any) -> dict[Any, Any]:
    """Return a pickled object's attributes, its __dict__; none where it is no object, or its file doesn't say them."""
    state = _meta(found).get("state") or getattr(found, "state", None)
    return state if isinstance(state, dict) else {}


def class_name(found: Any) -> str:
    """Return the name of a pickled object's class: EDMPrecond, Linear; '' where it has none."""
    return str(_meta(found).get("class_name") or getattr(found, "name", "")).rpartition(".")[2]


def module_state(module: Any) -> dict[Any, Any]:
    """Return a pickled module's attributes. Raises FormatError for what is no module."""
    state = attributes(module)
    if not all(isinstance(state.get(kind), dict) for kind in ("_modules", "_parameters", "_buffers")):
        raise FormatError("it is no pickled network")
    return state


def module_tensors(module: Any) -> dict[str, Tensor]:
    """Return the tensors of a pickled nn.Module by the names that its state_dict would have. Raises FormatError.

    module: a Foreign of torch's own pickling, or one wrapped by EDM's torch_utils.persistence.
    """
    return dict(_tensors_of(module, ""))


def _tensors_of(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    state = module_state(module)
    for name, value in (state["_parameters"] | state["_buffers"]).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
    for name, inner in state["_modules"].items():
        if inner is not None:
            yield from _tensors_of(inner, f"{prefix}{name}.")
