"""One dataset of several: copied into one file, or one small file that refers to them."""

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

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.atomic import refuse_existing
from elbocli.files.dataset import PREPROCESSING, Dataset
from elbocli.files.dataset_block import ENCODED, BlockLayout
from elbocli.files.dataset_virtual import relative_name, write_virtual
from elbocli.files.dataset_writer import DatasetWriter, open_writer
from elbocli.files.hashing import add_digests
from elbocli.images.samples import drawn
from elbocli.runtime.progress import Progress
from elbocli.runtime.signals import Signals, catching_signals

SUFFIX = ".h5"
OWN = (
    "format",
    "version",
    "count",
    "digests",
    "payload_sha256",
    "contents_sha256",
    "source_sha256",
    "skipped",
    "changed",
    "shard",
    "shard_of",
    "command",
    "samples",
    "elbo_version",
    "pillow_version",
)
"""Attributes in which parts of one dataset may differ; all others say how it was made."""


@dataclass(frozen=True)
class Settings:
    """How to merge. virtual: refer to the parts instead of copying them."""

    virtual: bool = False
    overwrite: bool = False
    command: str = ""


@dataclass(frozen=True)
class _Part:
    """What there is to know of a part before its block is read. length: of the block; drawn: how, if it is of samples."""

    path: Path
    kind: str
    store: str
    layout: BlockLayout
    count: int
    length: int
    whole: bool
    attributes: dict[str, Any]
    drawn: dict[str, Any]
    arrays: dict[str, np.ndarray]
    names: dict[str, list[str]]

    @property
    def shard(self) -> tuple[int, int] | None:
        """(I, N) of shard I/N, or None."""
        match = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", str(self.attributes.get("shard", "")))
        return (int(match[1]), int(match[2])) if match and "shard_of" in self.attributes else None


def _part(path: Path) -> _Part:
    data = Dataset(path, latents=True)
    known = data.attributes.get("contents_sha256")
    if known is not None and data.contents_digest() != known:
        raise DataError(f"{path}: damaged: its labels, names or attributes are not what was written; pack it again")
    arrays, names = data.contents()
    return _Part(
        path,
        data.kind,
        data.store,
        data.layout,
        len(data),
        sum(map(len, data.block.parts)),
        data.self_contained,
        data.attributes,
        drawn(data.attributes, str(path)),
        arrays,
        names,
    )


def _refuse_strangers(parts: Sequence[_Part]) -> None:
    """Raise DataError when a part is of another kind, or was made in another way, than the first."""

    def making(part: _Part) -> dict[str, Any]:
        described = {key: part.drawn[key] for key in PREPROCESSING if key in part.drawn}
        described |= {key: value for key, value in part.attributes.items() if key not in OWN}
        row = list(part.layout.row) if part.kind != ENCODED else None
        return {
            "kind": part.kind,
            "row": row,
            **described,
            "store": part.store,
            "class_names": part.names.get("class_names", []),
        }

    first = making(parts[0])
    for part in parts[1:]:
        other = making(part)
        for key in [*first, *other]:
            if first.get(key) != other.get(key):
                raise DataError(
                    f"{part.path}: {key} is {_short(other.get(key))}, but {_short(first.get(key))} in {parts[0].path}; "
                    "parts of one dataset are made in one way"
                )
        if sorted({*part.arrays, *part.names}) != sorted({*parts[0].arrays, *parts[0].names}):
            raise DataError(
                f"{part.path}: holds {', '.join(sorted({*part.arrays, *part.names}))}, but {parts[0].path} holds "
                f"{', '.join(sorted({*parts[0].arrays, *parts[0].names}))}; parts of one dataset hold the same"
            )


def _short(value: Any) -> str:
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 80 else shown[:79] + "…"


def _in_order(parts: Sequence[_Part]) -> tuple[list[_Part], str]:
    """The parts in their order, and a message on it. Raises DataError when shards are missing or foreign."""
    without = [part.path for part in parts if part.shard is None]
    if len(without) == len(parts):
        return list(parts), "parts without shard numbers, joined in the order given"
    if without:
        raise DataError(f"{', '.join(map(str, without))}: no shard of a prep, the other parts are; merge them apart")
    prep, (_, total) = parts[0].attributes["shard_of"], parts[0].shard or (0, 0)
    numbered: dict[int, _Part] = {}
    for part in parts:
        index, of = part.shard or (0, 0)
        if part.attributes["shard_of"] != prep or of != total or index > total:
            raise DataError(
                f"{part.path}: shard {index}/{of} of another prep than {parts[0].path}; leave it out, or pack it again "
                "from the same source with the same settings"
            )
        if index in numbered:
            raise DataError(f"{part.path} and {numbered[index].path}: both are shard {index}/{total}; name one of them")
        numbered[index] = part
    missing = [f"{index}/{total}" for index in range(1, min(total, len(parts) + 10) + 1) if index not in numbered]
    if len(numbered) < total:
        more = " …" if total - len(numbered) > len(missing) else ""
        raise DataError(f"{', '.join(missing)}{more}: no such shard among the {len(parts)} parts; add what is missing")
    return [numbered[index] for index in sorted(numbered)], f"{total} of {total} shards of one prep"


def _joined_contents(parts: Sequence[_Part]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Arrays with a value per image one after the other, counts per class summed, others once."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    first = parts[0]
    for name in first.arrays:
        columns = [part.arrays[name] for part in parts]
        if name == "offsets" and first.kind == ENCODED:
            ends = np.cumsum([part.length for part in parts]).tolist()
            runs = [
                column[1:].astype(np.int64) + (end - part.length) for column, end, part in zip(columns, ends, parts)
            ]
            arrays[name] = np.concatenate([np.zeros(1, np.int64), *runs])
        elif name == "class_counts":
            arrays[name] = np.asarray(np.sum(columns, axis=0, dtype=np.int64))
        elif all(column.ndim and len(column) == part.count for column, part in zip(columns, parts)):
            arrays[name] = np.concatenate(columns)
        else:
            if not all(np.array_equal(column, columns[0]) for column in columns):
                raise DataError(f"{first.path}: {name!r} has no value per image, and another part has other values")
            arrays[name] = columns[0]
    for name in first.names:
        lists = [part.names[name] for part in parts]
        if name != "class_names" and all(len(words) == part.count for words, part in zip(lists, parts)):
            names[name] = [word for words in lists for word in words]
        else:
            if any(words != lists[0] for words in lists):
                raise DataError(f"{first.path}: {name!r} has no word per image, and another part has other words")
            names[name] = lists[0]
    return arrays, names


def _joined_attributes(parts: Sequence[_Part], command: str) -> dict[str, Any]:
    columns = {key: [part.attributes.get(key) for part in parts] for key in parts[0].attributes}
    found = {key: values[0] for key, values in columns.items() if all(value == values[0] for value in values)}
    for key in ("format", "version", "digests", "count", "payload_sha256", "contents_sha256", "shard", "shard_of"):
        found.pop(key, None)
    if "skipped" in columns:
        found["skipped"] = sum(int(part.attributes.get("skipped", 0)) for part in parts)
    if "changed" in columns:
        found["changed"] = json.dumps(dict(sum(map(_changed, parts), Counter())), sort_keys=True)
    sums = [str(part.attributes.get("source_sha256", "")) for part in parts]
    found.pop("source_sha256", None)
    if all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in sums):
        found["source_sha256"] = add_digests(sums)
    if any(part.drawn for part in parts):
        found["samples"] = json.dumps(_joined_description([part.drawn for part in parts]))
    return {**found, "command": command}


def _joined_description(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How samples of all parts were drawn: what they share as it is, else a list of the values, each once, in order.

    A list's values count singly, so that parts that were merged before give what merging all at once gives.
    """
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part.get(key) for part in parts]
        if any(value != values[0] for value in values):
            single = [each for value in values for each in (value if isinstance(value, list) else [value])]
            joined[key] = [each for place, each in enumerate(single) if each not in single[:place]]
        else:
            joined[key] = values[0]
    return joined


def _changed(part: _Part) -> Counter[str]:
    """How many images of a part were changed while decoding, by kind."""
    try:
        return Counter({str(kind): int(count) for kind, count in json.loads(part.attributes["changed"]).items()})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"{part.path}: its attribute changed is no JSON of counts; pack it again") from error


def _opened(paths: Sequence[Path], out: Path) -> list[_Part]:
    seen: dict[Path, Path] = {}
    for path in paths:
        real = path.resolve()
        if real == out.resolve():
            raise UsageError(f"{path}: is the output, and can't be a part of itself; name another output")
        if real in seen:
            raise UsageError(f"{path}: named twice (also as {seen[real]}); name each part once")
        seen[real] = path
    return [_part(path) for path in paths]


def run(paths: Sequence[Path], out: Path, settings: Settings) -> Iterator[Progress]:
    """Merge the datasets `paths` into `out`. Rerun after a kill to go on where it stopped.

    Raises UsageError: `out` exists, a part twice, a part out of reach of a virtual dataset; DataError: parts that don't
    belong together, a shard missing, a damaged part, a full disk; FormatError: no dataset.
    """
    if out.suffix != SUFFIX:
        raise UsageError(f"{out}: is not the name of a dataset; name one that ends in {SUFFIX} as the first argument")
    refuse_existing(out, settings.overwrite)
    parts, message = _in_order(_opened(paths, out))
    _refuse_strangers(parts)
    total = sum(part.count for part in parts)
    yield Progress(0, total, "img", f"{message}: {total} images")
    for part in parts:
        if "payload_sha256" not in part.attributes:
            yield Progress(message=f"{part.path}: has no payload_sha256, taken as it is", level="warning")
    for key in ("elbo_version", "pillow_version"):
        found = {str(part.attributes.get(key)) for part in parts}
        if len(found) > 1:
            yield Progress(message=f"parts differ in {key}: {', '.join(sorted(found))}", level="warning")
    arrays, names = _joined_contents(parts)
    attributes = _joined_attributes(parts, settings.command)
    if settings.virtual:
        with catching_signals() as signals:
            yield from _refer(out, parts, arrays, names, attributes, signals)
    else:
        claim = -(-sum(part.length for part in parts) // total) if parts[0].kind == ENCODED else parts[0].layout.claim
        layout = BlockLayout(parts[0].layout.name, parts[0].layout.dtype, parts[0].layout.row, claim)
        with (
            catching_signals() as signals,
            open_writer(out, layout, total, _fingerprint(parts), overwrite=settings.overwrite) as writer,
        ):
            yield from _copy(writer, parts, signals)
            # The writer adds its own, from where the rows came to lie.
            arrays.pop("offsets" if parts[0].kind == ENCODED else "", None)
            writer.finish(arrays, names, attributes)
    yield Progress(message=f"{out}: {total} images of {len(parts)} parts, {out.stat().st_size / 1e6:.1f} MB")


def _fingerprint(parts: Sequence[_Part]) -> str:
    digests = [[part.attributes.get("payload_sha256", str(part.path)), part.count, part.length] for part in parts]
    return hashlib.sha256(json.dumps(["merge", parts[0].kind, parts[0].store, digests]).encode()).hexdigest()


def _checked(part: _Part) -> Iterator[list[np.ndarray] | np.ndarray]:
    """A part's rows, a few at a time. Raises DataError after the last when they are not what was written."""
    digest = hashlib.sha256()
    for rows in Dataset(part.path, latents=True).pieces():
        for run in rows if isinstance(rows, list) else [rows]:
            digest.update(np.ascontiguousarray(run).data)
        yield rows
    known = part.attributes.get("payload_sha256", digest.hexdigest())
    if digest.hexdigest() != known:
        raise DataError(f"{part.path}: damaged: its images are not what was written; pack it again")


def _copy(writer: DatasetWriter, parts: Sequence[_Part], signals: Signals) -> Iterator[Progress]:
    total = sum(part.count for part in parts)
    # What was copied of a part that wasn't checked to its end doesn't count: the part may have been replaced since.
    notes = writer.state["notes"]
    safe = [int(notes.get(key, 0)) for key in ("parts", "rows", "bytes")]
    if writer.rows != safe[1]:
        writer.rewind(safe[1], safe[2], safe[1], notes)
    if safe[0]:
        yield Progress(safe[1], total, "img", f"going on after {safe[0]} parts")
    for index, part in enumerate(parts[safe[0] :], start=safe[0] + 1):
        try:
            for rows in _checked(part):
                writer.append(rows, writer.rows + len(rows), notes)
                yield Progress(writer.rows, total, "img")
                if signals.received:
                    safe_in = f"{safe[0]} of {len(parts)} parts are safe in {writer.partial.name}"
                    raise signals.interrupted(f"{safe_in}; the same command goes on from there")
        except DataError:
            writer.rewind(safe[1], safe[2], safe[1], notes)
            raise
        safe = [index, writer.rows, int(writer.state["bytes"])]
        notes = dict(zip(("parts", "rows", "bytes"), safe))
        writer.append([], writer.rows, notes)


def _refer(
    out: Path,
    parts: Sequence[_Part],
    arrays: dict[str, np.ndarray],
    names: dict[str, list[str]],
    attributes: dict[str, Any],
    signals: Signals,
) -> Iterator[Progress]:
    for part in parts:
        relative_name(part.path, out)
        if not part.whole:
            raise UsageError(f"{part.path}: not one block of rows in one file; merge without --virtual")
    digest, done, total = hashlib.sha256(), 0, sum(part.count for part in parts)
    for part in parts:
        for rows in _checked(part):
            for run in rows if isinstance(rows, list) else [rows]:
                digest.update(np.ascontiguousarray(run).data)
            done += len(rows)
            yield Progress(done, total, "img")
            if signals.received:
                raise signals.interrupted(f"{out}: nothing was written")
    about = {**attributes, "count": total, "payload_sha256": digest.hexdigest()}
    write_virtual(out, parts[0].layout, [(part.path, part.length) for part in parts], arrays, names, about)
