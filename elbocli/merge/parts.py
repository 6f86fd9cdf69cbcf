"""The parts of a merge: what each is, whether they belong together, and in which order."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import PREPROCESSING, Dataset
from elbocli.files.dataset_attributes import DatasetAttributes
from elbocli.files.dataset_block import ENCODED, BlockLayout
from elbocli.files.hashing import add_rows
from elbocli.files.records import Count, convert, parse_json
from elbocli.images.samples import drawn

WRITTEN = {"format", "version", "count", "digests", "payload_sha256", "contents_sha256", "source_sha256"}
OWN = WRITTEN | {"shard", "shard_of", "skipped", "changed", "command", "samples", "elbo_version", "pillow_version"}
"""Attributes in which parts of one dataset may differ; all others say how it was made."""


@dataclass(frozen=True)
class Part:
    """Everything about a part but its block.

    count: images. length: of the block, rows or bytes. drawn: how, if it holds samples.
    """

    path: Path
    kind: str
    store: str
    layout: BlockLayout
    count: int
    length: int
    attributes: DatasetAttributes
    drawn: dict[str, Any]
    arrays: dict[str, np.ndarray]
    names: dict[str, list[str]]

    @property
    def shard(self) -> tuple[int, int] | None:
        """The numbers (I, N) of shard I/N, or None."""
        match = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", self.attributes.shard or "")
        return (int(match[1]), int(match[2])) if match and self.attributes.shard_of is not None else None

    @property
    def changed(self) -> Counter[str]:
        """Number of images that were changed while decoding, by kind. Raises FormatError."""
        where = f"{self.path}: its attribute changed is no JSON of counts"
        return Counter(convert(parse_json(self.attributes.changed or "{}", where), dict[str, Count], where))

    def rows(self) -> Iterator[list[np.ndarray] | np.ndarray]:
        """Yield the rows, a few at a time. Raises DataError after the last when they are not what was written."""
        digest = hashlib.sha256()
        for rows in Dataset(self.path, latents=True).pieces():
            add_rows(digest, rows)
            yield rows
        if digest.hexdigest() != (self.attributes.payload_sha256 or digest.hexdigest()):
            raise DataError(f"{self.path}: damaged: its images are not what was written; pack it again")


def open_part(path: Path) -> Part:
    """Read a part but for its block. Raises FormatError, and DataError when it differs from its digest."""
    data = Dataset(path, latents=True)
    known = data.attributes.contents_sha256
    if known is not None and data.contents_digest() != known:
        raise DataError(f"{path}: damaged: its labels, names or attributes are not what was written; pack it again")
    arrays, names = data.contents()
    how = drawn(data.attributes, str(path)).facts()
    block = (data.kind, data.store, data.layout, len(data), len(data.block))
    return Part(path, *block, data.attributes, how, arrays, names)


def open_parts(paths: Sequence[Path]) -> list[Part]:
    """Read all parts but for their blocks. Raises UsageError when one is named twice."""
    seen: dict[Path, Path] = {}
    for path in paths:
        real = path.resolve()
        if real in seen:
            raise UsageError(f"{path}: named twice (also as {seen[real]}); name each part once")
        seen[real] = path
    return [open_part(path) for path in paths]


def refuse_strangers(parts: Sequence[Part]) -> None:
    """Raise DataError when a part is of another kind, or was made in another way, than the first."""

    def making(part: Part) -> dict[str, Any]:
        described = {key: part.drawn[key] for key in PREPROCESSING if key in part.drawn}
        described |= {key: value for key, value in part.attributes.json().items() if key not in OWN}
        row = list(part.layout.row) if part.kind != ENCODED else None
        classes = part.names.get("class_names", [])
        return {"kind": part.kind, "row": row, **described, "store": part.store, "class_names": classes}

    first = making(parts[0])
    for part in parts[1:]:
        other = making(part)
        for key in [*first, *other]:
            if first.get(key) != other.get(key):
                both = f"{_short(other.get(key))}, but {_short(first.get(key))} in {parts[0].path}"
                raise DataError(f"{part.path}: {key} is {both}; parts of one dataset are made in one way")
        here, there = (", ".join(sorted({*one.arrays, *one.names})) for one in (part, parts[0]))
        if here != there:
            both = f"holds {here}, but {parts[0].path} holds {there}"
            raise DataError(f"{part.path}: {both}; parts of one dataset hold the same")


def _short(value: Any) -> str:
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 80 else shown[:79] + "…"


def in_order(parts: Sequence[Part]) -> tuple[list[Part], str]:
    """Put the parts in order. Returns them and a message on it. Raises DataError when shards are missing or foreign."""
    without = [part.path for part in parts if part.shard is None]
    if len(without) == len(parts):
        return list(parts), "parts without shard numbers, joined in the order given"
    if without:
        raise DataError(f"{', '.join(map(str, without))}: no shard of a prep, the other parts are; merge them apart")
    prep, (_, total) = parts[0].attributes.shard_of, parts[0].shard or (0, 0)
    numbered: dict[int, Part] = {}
    for part in parts:
        index, of = part.shard or (0, 0)
        if part.attributes.shard_of != prep or of != total or index > total:
            remedy = "leave it out, or pack it again from the same source with the same settings"
            raise DataError(f"{part.path}: shard {index}/{of} of another prep than {parts[0].path}; {remedy}")
        if index in numbered:
            raise DataError(f"{part.path} and {numbered[index].path}: both are shard {index}/{total}; name one of them")
        numbered[index] = part
    missing = [f"{index}/{total}" for index in range(1, min(total, len(parts) + 10) + 1) if index not in numbered]
    if len(numbered) < total:
        more = " …" if total - len(numbered) > len(missing) else ""
        raise DataError(f"{', '.join(missing)}{more}: no such shard among the {len(parts)} parts; add what is missing")
    return [numbered[index] for index in sorted(numbered)], f"{total} of {total} shards of one prep"
