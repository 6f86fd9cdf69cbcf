"""Read checkpoints of other training programs (.pt, .pth, .pkl) without running the code in their pickles."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import IO, TypeAlias

import torch
from torch import Tensor

from elbocli.errors import ElboError, FormatError
from elbocli.files.reading import open_file, reading
from elbocli.files.tensor_files import load, load_tensors

Tree: TypeAlias = (
    "Tensor | torch.dtype | OpaqueObject | Entries | Sequence[Tree] | AbstractSet[Hashable] | str | bytes | float | None"
)
Entries: TypeAlias = dict[Hashable, Tree]  # a dict in a checkpoint, whose keys may be numbers, too
LEGACY = bytes.fromhex("6cfc9c46f9206aa85019")  # first bytes of files by torch before 1.6, which are no zip archives


class OpaqueObject:
    """Stand-in for an object that a pickle makes with a class or function outside KNOWN.

    name: name of the class or function, with its module. args: arguments of the class or function.
    state: usually the object's __dict__. items: contents of an object like a dict.
    """

    name = ""
    args: tuple[Tree, ...]
    state: Tree
    items: Entries

    def __new__(cls, *args: Tree, **_: Tree) -> OpaqueObject:
        made = super().__new__(cls)
        made.args = args
        made.state = None
        made.items = {}
        return made

    def __setstate__(self, state: Tree) -> None:
        self.state = state

    def __setitem__(self, key: Hashable, value: Tree) -> None:
        self.items[key] = value

    def append(self, value: Tree) -> None:
        """Ignore an item of an object like a list or a set."""

    add = append


def _storage(content: bytes) -> Tensor:
    """Load a storage of n numbers, written by torch.save, as a tensor [n]. Raises FormatError."""
    stored = load_tensors(io.BytesIO(content), "a storage")
    return torch.empty(0, dtype=stored.dtype).set_(stored)


def _strided(stored: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Tree) -> Tensor:
    return stored.as_strided(size, stride, offset)


KNOWN: dict[str, torch.dtype | Callable[..., Tree]] = {  # name in a pickle → type or function that the unpickler uses instead
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


class Unpickler(pickle._Unpickler):  # the C version allocates 64 GB for a damaged PUT
    """Unpickler for tensors and containers. archive: zip archive of a .pt file; None: plain pickle (.pkl)."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile | None = None):
        super().__init__(file, encoding="latin-1")
        self._storages = dict[tuple[str, torch.dtype], Tensor]()
        self._archive = archive

    def find_class(self, module: str, name: str) -> torch.dtype | Callable[..., Tree]:
        full = f"{module}.{name}"
        if full in KNOWN:
            return KNOWN[full]
        if module == "torch":  # a dtype, or a class of storages such as FloatStorage, whose dtype FloatTensor has
            found = vars(torch).get(name.replace("Storage", "Tensor"))
            dtype = getattr(found, "dtype", found)
            if isinstance(dtype, torch.dtype):
                return dtype
        return type("OpaqueObject", (OpaqueObject,), {"name": full})

    def persistent_load(self, pid: Tree) -> Tensor:
        """Load a tensor [n]. pid: torch's (…, dtype, name, …). Raises FormatError: not in the archive."""
        match pid:
            case [_, torch.dtype() as dtype, str(key), *_] if self._archive is not None:
                if (key, dtype) not in self._storages:
                    content = bytearray(_member(self._archive, f"data/{key}"))
                    self._storages[key, dtype] = (
                        torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
                    )
                return self._storages[key, dtype]
        raise FormatError("the file lacks a tensor that its pickle refers to; get the file again")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a file in torch's zip archive. name: path in the archive, without the first folder."""
    for full in archive.namelist():
        if full.partition("/")[2] == name:
            return archive.read(full)
    raise FormatError(f"the archive has no {name}; save a state dict with torch.save")


def read_torch_file(path: Path) -> Tree:
    """Read a checkpoint: torch's .pt or .pth, a pickle of modules (.pkl), or safetensors.

    Returns: the stored object; unknown classes become OpaqueObject. Raises FormatError: damaged file, or another format.
    """
    with reading(f"{path}: not usable as a checkpoint"), open_file(path) as file:
        head = file.read(32)
        file.seek(0)
        if head[6:9] == b"\0\0{":  # a length below 2⁴⁸, and the first brace of safetensors' header
            return Entries(load(path).items())
        if LEGACY in head:
            return load_tensors(path, "torch's format of before 1.6")
        unpickler = Unpickler(file)
        if head.startswith(b"PK"):
            archive = zipfile.ZipFile(file)
            unpickler = Unpickler(io.BytesIO(_member(archive, "data.pkl")), archive)
        try:
            return unpickler.load()
        except (ElboError, MemoryError, OSError, zipfile.BadZipFile):
            raise
        except Exception as error:  # messages of pickle, such as "pop from empty list", describe its stack
            raise FormatError("the file holds neither safetensors nor a complete pickle; get the file again") from error


def contents(found: Tree) -> Entries:
    """Return a dict, or the items of a pickled object like a dict; {} for other objects."""
    held = found.items if isinstance(found, OpaqueObject) else found
    return held if isinstance(held, dict) else {}


def _meta(found: Tree) -> Entries:
    """Return the dict that EDM's torch_utils.persistence pickled for an object; else {}."""
    return contents(found.args[0]) if isinstance(found, OpaqueObject) and found.args else {}


def attributes(found: Tree) -> Entries:
    """Return a pickled object's __dict__; {} if it has none."""
    return contents(_meta(found).get("state") or (found.state if isinstance(found, OpaqueObject) else None))


def class_name(found: Tree) -> str:
    """Return a pickled object's class name, such as EDMPrecond; '' if it has none."""
    return str(_meta(found).get("class_name") or getattr(found, "name", "")).rpartition(".")[2]


def number(found: Entries, name: str, default: float) -> float:
    """Return a number among a pickled object's attributes; `default` if it is missing. Raises FormatError."""
    value = found.get(name, default)
    if not isinstance(value, int | float):
        raise FormatError(f"the file's {name} is no number; get the file again")
    return value


def submodules(module: Tree, name: str = "") -> Iterator[tuple[str, Entries]]:
    """Yield (name, attributes) of a pickled nn.Module and of all submodules; nothing for other objects."""
    told = attributes(module)
    if all(isinstance(told.get(kind), dict) for kind in ("_modules", "_parameters", "_buffers")):
        yield name, told
        for key, inner in contents(told["_modules"]).items():
            yield from submodules(inner, f"{name}.{key}".strip("."))


def module_tensors(module: Tree) -> dict[str, Tensor]:
    """Return a pickled nn.Module's tensors, named as in its state_dict; {} for other objects."""
    return {
        f"{name}.{key}".strip("."): value
        for name, told in submodules(module)
        for key, value in (contents(told["_parameters"]) | contents(told["_buffers"])).items()
        if isinstance(value, Tensor)
    }
