"""Averages of the weights made after training: a safetensors file that says how it was made, and holds its digest.

Written one tensor at a time, so that a network need not fit into memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from elbocli.errors import DataError, FormatError
from elbocli.files import tensor_files
from elbocli.files.atomic import new_file
from elbocli.files.opening import open_file
from elbocli.files.reading import check_format, reading
from elbocli.files.records import Count, Record, parse_json, stored
from elbocli.files.snapshots import SnapshotLayout

FORMAT, VERSION = "elbo-ema", 1
SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DIGEST = "payload_sha256"
CHUNK = 1 << 24


@stored("`about` of an average (safetensors)", version=0)
class AverageFacts(Record, frozen=True):
    """Facts on how an average was made: of a run's snapshots up to a step, by their shares. trained: facts that tell that run from
    others. residual: how far the profile is off.
    """

    REST: ClassVar[str] = "more"

    spec: str
    std: float | None
    step: Count
    images: Count
    run: str | None
    trained: dict[str, Any]
    residual: float | None
    coefficients: dict[str, float] | None
    elbo_version: str | None
    command: str | None
    more: dict[str, Any] = {}


def writing_average(
    path: Path, layout: SnapshotLayout, about: AverageFacts, tensor: Callable[[str], Tensor]
) -> Iterator[int]:
    """Write a file of the tensors in `layout`, and yield how many are written after each.

    tensor: gives one by its name, when its turn comes. The file takes its
    name when the iterator ends.
    Raises FormatError for a type that safetensors can't hold, DataError when the disk is full.
    """
    unknown = [f"{key} is {dtype}" for key, (dtype, _) in layout.items() if dtype not in SIZES]
    if unknown:
        raise FormatError(f"{path}: {unknown[0]}; expected one of {', '.join(SIZES)}")
    # Wider types first: then every tensor is aligned to its own size, as readers that map the file need.
    names = sorted(layout, key=lambda key: (-SIZES[layout[key][0]], key))
    blank = "0" * 64
    meta = {
        "format": FORMAT,
        "version": str(VERSION),
        "about": json.dumps(about.json(), allow_nan=False),
        DIGEST: blank,
    }
    header: dict[str, Any] = {"__metadata__": meta}
    end = 0
    for name in names:
        dtype, shape = layout[name]
        begin, end = end, end + SIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    payload = hashlib.sha256()
    with new_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, name in enumerate(names, 1):
            content = tensor(name).detach().cpu().reshape(-1).view(torch.uint8).numpy().data
            file.write(content)
            payload.update(content)
            yield done
        file.seek(8 + text.index(f'"{DIGEST}":"{blank}"'.encode()) + len(DIGEST) + 4)
        file.write(payload.hexdigest().encode())


def read_about(path: Path) -> tuple[AverageFacts, str]:
    """(how the average was made, the digest of its tensors). Raises FormatError when the file is no such average."""
    meta = tensor_files.metadata(path)
    check_format(path, meta, FORMAT, VERSION, "; make them with 'elbo ema'")
    what = f"{path}: doesn't say how it was made"
    return AverageFacts.of(parse_json(meta.get("about", ""), what), what), meta.get(DIGEST, "")


def check(path: Path) -> None:
    """Compare the tensors with the file's digest. Raises FormatError when it differs."""
    payload = hashlib.sha256()
    with reading(path, kind=DataError), open_file(path) as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while content := file.read(CHUNK):
            payload.update(content)
    if payload.hexdigest() != read_about(path)[1]:
        raise FormatError(f"{path}: damaged: its tensors are not what was written; make it again with 'elbo ema'")


def load(path: Path) -> dict[str, Tensor]:
    """Read all tensors. Raises FormatError when they are not those that were written."""
    check(path)
    return tensor_files.load(path)
