"""Merge several datasets into one."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import CONTENTS, PAYLOAD, PREPROCESSING, Dataset, DatasetWriter, Members
from elbocli.files.reading import add_digests, reading
from elbocli.files.records import parse_json
from elbocli.files.resumable import ENCODED
from elbocli.files.sample_files import SamplesAbout
from elbocli.images.samples import about_samples
from elbocli.runtime.background import catching_signals, interrupted
from elbocli.runtime.progress import log, progress

WRITTEN = {"format", "version", "count", "digests", "payload_sha256", "contents_sha256", "source_sha256", "shard", "shard_of"}
# Attributes that may differ between the merged datasets.
OWN = WRITTEN | {"skipped", "changed", "command", "samples", "elbo_version", "pillow_version", "fast_decode"}


def merge_datasets(paths: Sequence[Path], out: Path, overwrite: bool = False, command: str = "") -> None:
    """Merge the datasets `paths` into `out`. After a kill, the same call resumes.

    command: command line, stored in `out`.
    Raises UsageError: `out` exists without `overwrite`, or a dataset is named twice. FormatError: a file is not a dataset.
    Raises DataError: unlike, equal or damaged datasets, a missing shard, or a full disk.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError(f"a dataset is named twice in {', '.join(map(str, paths))}; name each PART once")
    parts = in_order([open_part(path) for path in paths])
    contents = [part.contents() for part in parts]
    drawn = [about_samples(part.attributes.samples, part.path).facts() for part in parts]
    _check_alike(parts, contents, drawn)
    same = {part.payload_sha256: part.path for part in parts}
    for part in parts:
        if same[part.payload_sha256] != part.path and part.attributes.shard is None:
            raise DataError(f"{part.path}: holds the same images as {same[part.payload_sha256]}; name only one of them")
    total, layout = sum(map(len, parts)), parts[0].layout
    attributes = {**_join_attributes(parts), "command": command}
    if any(drawn):
        attributes["samples"] = json.dumps(SamplesAbout.of(_join_drawn(drawn), parts[0].path).json())
    if parts[0].kind == ENCODED:
        layout = replace(layout, claim=-(-sum(len(part.block) for part in parts) // total))
    with catching_signals() as signals, DatasetWriter(out, layout, total, _fingerprint(parts)).held(overwrite) as writer:
        done, before = writer.rows, int(writer.state.notes.get("parts", 0))
        if before:
            log.info(f"going on: {before} datasets are copied already")
        for index, part in enumerate(parts[before:], start=before):
            digest = hashlib.sha256()
            for rows in part.pieces():
                digest.update(b"".join(rows))
                writer.write(rows)
                done += len(rows)
                progress(done, total, "img")
                if signals.received:
                    safe = f"{index} of {len(parts)} datasets are safe in {writer.partial.name}"
                    raise interrupted(signals.received, f"{safe}; the same command goes on from there")
            part.check(PAYLOAD, digest.hexdigest())
            # A part counts as copied only after all of its rows were checked.
            writer.append([], done, {"parts": index + 1})
        writer.finish(_join_contents(contents), attributes)
    log.info(f"{out}: {total} images of {len(parts)} datasets")


def open_part(path: Path) -> Dataset:
    """Open a dataset to merge. Raises DataError for damaged labels, names or attributes."""
    data = Dataset(path, latents=True)
    data.check(CONTENTS, data.contents_digest())
    return data


def in_order(parts: Sequence[Dataset]) -> list[Dataset]:
    """Sort shards by number; other datasets keep their order. Raises DataError: missing or mixed shards."""
    preps = {part.attributes.shard_of for part in parts}
    if preps == {None}:
        return list(parts)
    shards = {part.attributes.shard: part for part in parts}
    expected = [f"{index + 1}/{len(parts)}" for index in range(len(parts))]
    names = ", ".join(str(part.path) for part in parts)
    if len(preps) > 1:
        raise DataError(f"{names}: are not shards of the same images and settings; name all shards of one 'elbo prep'")
    if set(shards) != set(expected):
        raise DataError(f"{names}: are shards {', '.join(map(str, shards))}; name all shards of one 'elbo prep', each once")
    return [shards[name] for name in expected]


def _check_alike(parts: Sequence[Dataset], contents: Sequence[Members], drawn: Sequence[dict[str, Any]]) -> None:
    first: dict[str, Any] = {}
    for part, members, about in zip(parts, contents, drawn):
        making = {
            "kind": part.kind,
            "row": part.layout.row,
            "class_names": members.get("class_names", []),
            "members": sorted(members),
            **{key: about[key] for key in PREPROCESSING if key in about},
            **{key: value for key, value in part.attributes.json().items() if key not in OWN},
        }
        first = first or making
        for key in {**first, **making}:
            if first.get(key) != making.get(key):
                both = f"{repr(making.get(key))[:80]}, but {repr(first.get(key))[:80]} in {parts[0].path}"
                raise DataError(f"{part.path}: {key} is {both}; merge only datasets that were made alike")


def _join_contents(parts: Sequence[Members]) -> Members:
    joined = Members()
    for name in set(parts[0]) - {"offsets"}:  # the writer makes offsets itself
        columns: list[Any] = [part[name] for part in parts]
        if name == "class_names":
            joined[name] = columns[0]
        elif name == "class_counts":
            joined[name] = np.stack(columns).sum(0)
        else:
            joined[name] = [*chain(*columns)] if isinstance(columns[0], list) else np.concatenate(columns)
    return joined


def _join_attributes(parts: Sequence[Dataset]) -> dict[str, Any]:
    said = [part.attributes.json() for part in parts]
    joined = {
        key: value for key, value in said[0].items() if key not in WRITTEN and all(other.get(key) == value for other in said)
    }
    if "skipped" in said[0]:
        joined["skipped"] = sum(other.get("skipped", 0) for other in said)
    with reading(f"{parts[0].path} or another PART: attribute 'changed' or 'source_sha256' is not usable"):
        if "changed" in said[0]:
            changed = Counter[str]()
            for other in said:
                changed.update(parse_json(other.get("changed", "{}"), "changed"))
            joined["changed"] = json.dumps(changed, sort_keys=True)
        if all("source_sha256" in other for other in said):
            joined["source_sha256"] = add_digests(other["source_sha256"] for other in said)
    return joined


def _join_drawn(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part.get(key) for part in parts]
        joined[key] = values[0]
        if any(value != values[0] for value in values):
            # Lists are joined item by item, so that merging in steps gives the same result as merging at once.
            single = [each for value in values for each in (value if isinstance(value, list) else [value])]
            joined[key] = [each for place, each in enumerate(single) if each not in single[:place]]
    return joined


def _fingerprint(parts: Sequence[Dataset]) -> str:
    digests = [[part.attributes.payload_sha256 or str(part.path), len(part), len(part.block)] for part in parts]
    return hashlib.sha256(json.dumps(["merge", parts[0].kind, parts[0].store, digests]).encode()).hexdigest()
