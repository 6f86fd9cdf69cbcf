"""Tensors of other people's checkpoints: torch's own files, pickles of whole modules, and safetensors; nothing is run.

torch.load admits tensors alone (weights_only), and published checkpoints hold more: arguments, optimizers, pickled
modules. This reader makes tensors, containers and numbers, and names everything else without making it (Foreign).
Tensors get memory of their own: what is mapped would end the process when somebody cuts the file short. Work and memory
are bounded by the file's size.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elbocli.errors import FormatError
from elbocli.files.atomic import told
from elbocli.files.file_system import disk_bytes
from elbocli.files.file_values import FileValues
from elbocli.files.opening import open_file
from elbocli.files.pickled_module import Foreign
from elbocli.files.plain_pickle import VALUES, Machine, keyed
from elbocli.files.reading import naming, refusing
from elbocli.files.recognise import begins_like_tensors
from elbocli.files.tensor_files import load
from elbocli.files.zip_files import open_zip
from elbocli.runtime.memory_bound import MOST_MORE, bounded_memory

MOST_STEPS = 2_000_000
"""Steps of a pickle; published ones of 300 million weights take some 20,000."""
LARGEST_PICKLE = 256 << 20
"""Bytes of the pickle in torch's files, whose tensors lie outside it."""
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""Numbers that torch's files without a zip archive begin with."""
TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
STORAGES = {f"torch {name}Storage": dtype for name, dtype in TYPES.items()} | {
    "torch.storage UntypedStorage": torch.uint8,
    "torch UntypedStorage": torch.uint8,
}
DTYPES = {str(dtype).replace(".", " "): dtype for dtype in TYPES.values()}


class Found(NamedTuple):
    """tree: what the file holds. strangers: names of what it holds beside tensors and containers, none of them made."""

    tree: Any
    strangers: list[str]


class _Storage(NamedTuple):
    """values: [n] of its type, or of bytes."""

    values: Tensor


@dataclass(frozen=True)
class _Known:
    """A name that stands for something: called, it gives `make(*arguments)`."""

    name: str
    make: Callable[..., Any]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor on a storage. Raises FormatError where it reaches beyond it, or is larger than it."""
    numbers = [offset, *size, *stride] if isinstance(size, tuple) and isinstance(stride, tuple) else [None]
    if (
        not isinstance(storage, _Storage)
        or len(size) != len(stride)
        or not all(type(n) is int and n >= 0 for n in numbers)
    ):
        raise FormatError("it has a tensor whose storage, size and strides don't belong together")
    last = offset + sum((side - 1) * step for side, step in zip(size, stride))
    if math.prod(size) and (last >= len(storage.values) or math.prod(size) > len(storage.values)):
        raise FormatError(f"it has a tensor of {list(size)} values in a storage of {len(storage.values)}")
    return storage.values.as_strided(size, stride, offset)


def _typed(kind: Any, value: Any) -> Any:
    """A value of a subclass that torch rebuilds by itself: a tensor keeps what it is."""
    return value


KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    "torch.storage _load_from_bytes": lambda content: _storage_of(content),
    "torch Size": lambda sizes=(): tuple(sizes),
    "torch device": lambda *words: ":".join(str(word) for word in words),
    "collections OrderedDict": lambda pairs=(): keyed([each for pair in pairs for each in pair]),
    "collections defaultdict": lambda *_: {},
    "__builtin__ set": lambda values=(): list(values),
    "builtins set": lambda values=(): list(values),
    "_codecs encode": lambda text, kind: text.encode("latin-1") if kind == "latin1" else b"",
}
"""Functions that may be called, and ours in their place."""


class _Tensors(Machine):
    """Reads tensors and containers; whatever else is named becomes a Foreign. storages: by torch's ids of them."""

    values = VALUES | {"BINFLOAT"}
    most = MOST_STEPS

    def __init__(self, storages: Callable[[str, torch.dtype, int], Tensor] | None = None):
        super().__init__()
        self.storages, self.strangers = storages, set[str]()

    def step(self, name: str, value: Any) -> None:
        """Take one step, also of those that only objects take."""
        stack = self.stack
        if name == "BINPERSID":
            stack.append(self._stored(stack.pop()))
        elif name == "NEWOBJ":
            arguments = stack.pop()
            stack.append(self.called(stack.pop(), arguments))
        elif name == "EMPTY_SET":
            stack.append([])
        elif name == "ADDITEMS":
            self.unmark()
            self.extend(stack)
        elif name == "FROZENSET":
            self.unmark().append(list(stack))
        elif name == "POP":
            stack.pop()
        else:
            super().step(name, value)

    def _stored(self, said: Any) -> _Storage:
        kind, storage, key, _, count = said[:5]
        dtype = STORAGES.get(storage.name) if isinstance(storage, _Known | Foreign) else None
        if self.storages is None or kind != "storage" or dtype is None or type(count) is not int or count < 0:
            raise FormatError("it has a tensor outside the file")
        return _Storage(self.storages(str(key), dtype, count))

    def named(self, name: str) -> Any:
        """Return what stands for a name: what is known, a type of tensor, or a Foreign."""
        if name in DTYPES:
            return DTYPES[name]
        if name in KNOWN or name in STORAGES:
            return _Known(name, KNOWN.get(name, _typed))
        self.strangers.add(name.replace(" ", "."))
        return Foreign(name)

    def called(self, name: Any, arguments: Any) -> Any:
        """Return what stands for a call. Raises FormatError where it isn't one of a name."""
        if isinstance(name, _Known):
            made = name.make(*arguments)
            for key in islice(reversed(self.memo), 2 * isinstance(made, _Storage)):  # so that its bytes can go
                same = self.memo[key]
                self.memo[key] = (made,) if same is arguments else made if same is arguments[0] else same
            return made
        if isinstance(name, Foreign) and isinstance(arguments, tuple):
            return Foreign(name.name, arguments)
        raise FormatError("it calls what is no name")

    def build(self, target: Any, state: Any) -> None:
        """Give a Foreign its state; containers and tensors need none."""
        if isinstance(target, Foreign):
            target.state = state

    def extend(self, values: list[Any]) -> None:
        """Add to a list, or to a Foreign's."""
        if isinstance(self.stack[-1], Foreign):
            self.stack[-1].values.extend(values)
        else:
            super().extend(values)

    def update(self, pairs: list[Any]) -> None:
        """Fill a dict, or a Foreign's."""
        if isinstance(self.stack[-1], Foreign):
            self.stack[-1].items.update(keyed(pairs))
        else:
            super().update(pairs)


def _storage_of(content: Any) -> _Storage:
    """The storage in bytes that torch.save made of it; one that was read already."""
    found = _legacy(io.BytesIO(content))[0] if type(content) is bytes else content
    if not isinstance(found, _Storage):
        raise FormatError("it has a tensor whose bytes are none")
    return found


def _legacy(file: io.BufferedReader | io.BytesIO) -> tuple[Any, set[str]]:
    """Read a file of torch without an archive: four pickles, keys, and the values of each storage behind them."""
    values = FileValues(file)
    magic, protocol, system = (_Tensors().read(file) for _ in range(3))
    if magic != MAGIC or protocol != PROTOCOL or not system.get("little_endian", False):
        raise FormatError("it is none of torch's files, or was written on a big-endian machine")
    begin, types = file.tell(), dict[str, torch.dtype]()

    def noted(key: str, dtype: torch.dtype, count: int) -> Tensor:
        types[key] = dtype
        return torch.empty(count, dtype=dtype, device="meta")

    _Tensors(noted).read(file)
    keys, places = _Tensors().read(file), dict[str, tuple[int, int]]()
    at = file.tell()
    for key in keys:
        (count,) = struct.unpack("<q", values.some(at, 8))
        places[str(key)] = at + 8, count
        at += 8 + count * types[str(key)].itemsize
        if count < 0:
            raise FormatError("it is damaged: a tensor's values lie beyond its end")

    @cache
    def stored(key: str, dtype: torch.dtype, count: int) -> Tensor:
        offset, held = places[key]
        if held != count:
            raise FormatError("it is damaged: a tensor has another number of values than it says")
        return values.read(offset, dtype, count)

    file.seek(begin)
    machine = _Tensors(stored)
    return machine.read(file), machine.strangers


def _archived(file: io.BufferedReader | io.BytesIO) -> tuple[Any, set[str]]:
    """Read torch's zip archive. Its members are stored as they are; a compressed one is refused unread."""
    values = FileValues(file)
    with open_zip(file) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise FormatError("it has compressed parts, which torch doesn't write")
        main = members.get("data.pkl")
        if main is None or main.file_size > LARGEST_PICKLE:
            raise FormatError("it has no data.pkl of a sane size, so torch.save didn't write it")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise FormatError("it was written on a big-endian machine")

        @cache
        def stored(key: str, dtype: torch.dtype, count: int) -> Tensor:
            info = members[f"data/{key}"]
            if count * dtype.itemsize != info.file_size:
                raise FormatError(f"it is damaged: tensor {key} has another number of bytes than it says")
            name, extra = struct.unpack("<HH", values.some(info.header_offset + 26, 4))
            return values.read(info.header_offset + 30 + name + extra, dtype, count)

        machine = _Tensors(stored)
        return machine.read(io.BytesIO(archive.read(main))), machine.strangers


def read_torch_file(path: Path) -> Found:
    """Read a checkpoint of torch (.pt, .pth), a pickle of modules (.pkl), or safetensors, by its content.

    Raises FormatError when it is none, damaged, or beyond bounds; runs nothing.
    """
    where = naming(f"{path}: not usable as a checkpoint", FormatError)
    with told(path, "read"), open_file(path) as file, where, refusing("it is damaged"):
        head = file.read(32)
        file.seek(0)
        if begins_like_tensors(path):
            return Found(load(path), [])
        if not head:
            raise FormatError("it is empty")
        with bounded_memory(MOST_MORE + 2 * disk_bytes(path)):
            if head.startswith(b"PK"):
                tree, strangers = _archived(file)
            elif head.find(MAGIC.to_bytes(10, "little")) > 0:
                tree, strangers = _legacy(file)
            else:
                machine = _Tensors()
                tree, strangers = machine.read(file), machine.strangers
        return Found(tree, sorted(strangers))
