"""Copy several datasets into one."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.errors import DataError
from elbocli.files.dataset_block import ENCODED
from elbocli.files.dataset_file import Arrays, Names
from elbocli.files.dataset_writer import DatasetWriter, open_writer
from elbocli.files.hashing import add_digests
from elbocli.files.sample_writers.header import SamplesAbout
from elbocli.merge.parts import WRITTEN, Part, in_order, open_parts, refuse_strangers
from elbocli.runtime.background import Signals, catching_signals
from elbocli.runtime.progress import Progress


def _joined_contents(parts: Sequence[Part]) -> tuple[Arrays, Names]:
    """Join arrays with a value per image, sum counts per class, and keep others once. Raises DataError when they differ."""
    arrays, names, first = Arrays(), Names(), parts[0]
    for name in first.arrays:
        columns = [part.arrays[name] for part in parts]
        if name == "offsets" and first.kind == ENCODED:
            continue  # the writer adds its own
        if name == "class_counts":
            arrays[name] = np.asarray(np.sum(columns, axis=0, dtype=np.int64))
        elif all(column.ndim and len(column) == part.count for column, part in zip(columns, parts)):
            arrays[name] = np.concatenate(columns)
        elif all(np.array_equal(column, columns[0]) for column in columns):
            arrays[name] = columns[0]
        else:
            raise DataError(f"{first.path}: {name!r} has no value per image, and another part has other values")
    for name in first.names:
        lists = [part.names[name] for part in parts]
        if name != "class_names" and all(len(words) == part.count for words, part in zip(lists, parts)):
            names[name] = [word for words in lists for word in words]
        elif all(words == lists[0] for words in lists):
            names[name] = lists[0]
        else:
            raise DataError(f"{first.path}: {name!r} has no word per image, and another part has other words")
    return arrays, names


def _joined_attributes(parts: Sequence[Part], command: str) -> dict[str, Any]:
    each = [part.attributes.json() for part in parts]
    columns = {key: [said.get(key) for said in each] for key in each[0]}
    found = {key: values[0] for key, values in columns.items() if all(value == values[0] for value in values)}
    found = {key: value for key, value in found.items() if key not in WRITTEN | {"shard", "shard_of"}}
    if "skipped" in columns:
        found["skipped"] = sum(part.attributes.skipped or 0 for part in parts)
    if "changed" in columns:
        found["changed"] = json.dumps(dict(sum((part.changed for part in parts), Counter())), sort_keys=True)
    sums = [part.attributes.source_sha256 or "" for part in parts]

    if all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in sums):
        found["source_sha256"] = add_digests(sums)
    if any(part.drawn for part in parts):
        drawn = _joined_description([part.drawn for part in parts])
        found["samples"] = json.dumps(SamplesAbout.of(drawn, parts[0].path).json())
    return {**found, "command": command}


def _joined_description(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Say how samples of all parts were drawn: what they share as it is, else a list of the values, each once, in order.

    A list's values count singly, so that parts that were merged before give what merging all at once gives.
    """
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part.get(key) for part in parts]
        joined[key] = values[0]
        if any(value != values[0] for value in values):
            single = [each for value in values for each in (value if isinstance(value, list) else [value])]
            joined[key] = [each for place, each in enumerate(single) if each not in single[:place]]
    return joined


def run(paths: Sequence[Path], out: Path, overwrite: bool = False, command: str = "") -> Iterator[Progress]:
    """Merge the datasets `paths` into `out`. Rerun after a kill to go on where it stopped.

    Raises UsageError: `out` exists, a part twice; DataError: parts that don't belong together, a shard missing, a damaged
    part, a full disk; FormatError: no dataset.
    """
    parts, message = in_order(open_parts(paths))
    refuse_strangers(parts)
    total = sum(part.count for part in parts)
    yield Progress(0, total, "img", f"{message}: {total} images")
    for part in parts:
        if part.attributes.payload_sha256 is None:
            yield Progress(message=f"{part.path}: has no payload_sha256, taken as it is", level="warning")
    for key in ("elbo_version", "pillow_version"):
        found = {str(getattr(part.attributes, key)) for part in parts}
        if len(found) > 1:
            yield Progress(message=f"parts differ in {key}: {', '.join(sorted(found))}", level="warning")
    arrays, names = _joined_contents(parts)
    attributes = _joined_attributes(parts, command)
    layout = parts[0].layout
    if parts[0].kind == ENCODED:
        layout = replace(layout, claim=-(-sum(part.length for part in parts) // total))
    with (
        catching_signals() as signals,
        open_writer(out, layout, total, _fingerprint(parts), overwrite=overwrite) as writer,
    ):
        yield from (Progress(message=text, level="warning") for text in writer.warnings)
        yield from _copy(writer, parts, signals)
        writer.finish(arrays, names, attributes)
    yield Progress(message=f"{out}: {total} images of {len(parts)} parts, {out.stat().st_size / 1e6:.1f} MB")


def _fingerprint(parts: Sequence[Part]) -> str:
    digests = [[part.attributes.payload_sha256 or str(part.path), part.count, part.length] for part in parts]
    return hashlib.sha256(json.dumps(["merge", parts[0].kind, parts[0].store, digests]).encode()).hexdigest()


def _copy(writer: DatasetWriter, parts: Sequence[Part], signals: Signals) -> Iterator[Progress]:
    total = sum(part.count for part in parts)
    done, before = writer.rows, int(writer.state.notes.get("parts", 0))
    if before:
        yield Progress(done, total, "img", f"going on after {before} parts")
    for index, part in enumerate(parts[before:], start=before):
        for rows in part.rows():
            writer.write(rows)
            done += len(rows)
            yield Progress(done, total, "img")
            if signals.received:
                safe = f"{index} of {len(parts)} parts are safe in {writer.partial.name}"
                raise signals.interrupted(f"{safe}; the same command goes on from there")
        # Not earlier: a part counts when it was checked to its end.
        writer.append([], done, {"parts": index + 1})
