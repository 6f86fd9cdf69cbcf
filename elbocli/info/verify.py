"""Is a file still what was written? Everything in it is read and compared with its digests."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.errors import DataError, FormatError
from elbocli.files.dataset import Dataset
from elbocli.files.dataset_block import ENCODED
from elbocli.files.hashing import add_rows, file_sha256
from elbocli.files.reading import open_file, reading
from elbocli.files.recognise import HDF5_MAGIC, begins_like_tensors, recognise
from elbocli.info.describe import describe
from elbocli.runtime.progress import Progress

BATCH = 64
PIECE = 1 << 20
"""Bytes of small images at a time."""
Facts = dict[str, Any]


def run(path: Path) -> Generator[Progress, None, Facts]:
    """Verify a file or folder that `describe` knows; what it says, what was verified, and what could not be.

    Raises DataError or FormatError naming the file, what differs and what to do.
    """
    dataset = not path.is_dir() and _head(path) == HDF5_MAGIC
    facts = describe(path)
    if dataset:
        return facts | (yield from _dataset(path))
    if path.is_dir():
        return facts | (yield from _folder(path))
    with reading(path, kind=DataError):
        tensors = begins_like_tensors(path)
    if tensors:
        from elbocli.files.features import is_features
        from elbocli.files.tensor_files import check_average

        if not is_features(path):
            check_average(path)
            return {**facts, "verified": ["payload_sha256"]}
    if _head(path).startswith((b"PK", b"\x93NUMPY")):
        yield from _samples(path)
    return {**facts, "verified": ["read whole; files of this kind hold no digest of their own"]}


def _head(path: Path) -> bytes:
    with reading(path, kind=DataError), open_file(path) as file:
        return file.read(len(HDF5_MAGIC))


def _dataset(path: Path) -> Generator[Progress, None, Facts]:
    data = Dataset(path, latents=True)
    said, verified, unverified = data.attributes.json(), [], []

    def compare(name: str, digest: str, content: str) -> None:
        if name not in said:
            unverified.append(f"{name}: not in this file, which another program wrote")
        elif digest != said[name]:
            raise DataError(f"{path}: damaged: its {content} are not what was written; pack it again")
        else:
            verified.append(name)

    for name in (data.attributes.digests or "").split():
        if name not in said:
            raise DataError(f"{path}: damaged: its attribute {name} is gone; pack it again")
    compare("contents_sha256", data.contents_digest(), "labels, names or attributes")
    verified += _counts(path, data)
    digest = hashlib.sha256()
    done = 0
    for rows in data.pieces():
        add_rows(digest, rows)
        done += len(rows)
        yield Progress(done, len(data), "img")
    compare("payload_sha256", digest.hexdigest(), "images")
    if data.kind == ENCODED:
        for done, rows in enumerate(data.batches(BATCH)):
            yield Progress(min((done + 1) * BATCH, len(data)), len(data), "img", values={"decoded": len(rows)})
        verified += ["offsets", "every image decodes"]
    for what in unverified:
        yield Progress(message=f"{path}: {what}", level="warning")
    return {"verified": verified, **({"unverified": unverified} if unverified else {})}


def _counts(path: Path, data: Dataset) -> list[str]:
    """Raise DataError when numbers that must agree don't; their names."""
    lengths, known = data.lengths(), data.attributes
    classes = data.num_classes if known.num_classes is None else known.num_classes
    facts = {
        "count": (known.count, len(data)),
        "labels": (max(int(data.labels.max()) + 1, classes), classes),
        "class_names": (lengths.get("class_names"), classes),
        "files": (lengths.get("files"), len(data)),
        "image_size": (known.image_size, data.image_size) if "latents" not in data.kind else (None, None),
    }
    if "class_counts" in lengths:
        with data.parsing():
            counts = np.asarray(data.member("class_counts")[()]).tolist()
        facts["class_counts"] = (counts, np.bincount(data.labels, minlength=len(counts)).tolist())
    for name, (found, expected) in facts.items():
        if found is not None and found != expected:
            says = f"{name} says {str(found)[:60]}, expected {str(expected)[:60]}"
            raise DataError(f"{path}: damaged: {says}; pack it again")
    return [name for name, (found, _) in facts.items() if found is not None]


def _folder(path: Path) -> Generator[Progress, None, Facts]:
    """A checkpoint, a snapshot, or all those of a run."""
    from elbocli.files import checkpoint as store

    files, run = _network_files(path), recognise(path) == "a run"
    folders = [*store.checkpoints(path), *store.snapshots(path)] if run else [path]
    whole, damaged = Counter[str](), list[str]()
    for index, folder in enumerate(folders):
        yield Progress(index, len(folders), "folder")
        snapshot = recognise(folder) == "a snapshot"
        kind, read = ("snapshots", store.read_snapshot) if snapshot else ("checkpoints", store.read_checkpoint)
        try:
            whole |= {kind: whole[kind] + 1, "files": whole["files"] + len(read(folder).meta.files)}
        except FormatError as error:
            damaged.append(str(error))
    total = " and ".join(f"{whole[kind]} {kind}" for kind in ("checkpoints", "snapshots") if whole[kind])
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if damaged[1:] else ""
        raise DataError(f"{damaged[0]}{more}; the run goes on without that folder once you delete it")
    return {"verified": [f"sha256 of {files + whole['files']} files in {total or 'no checkpoints'}"]}


def _network_files(path: Path) -> int:
    """Compare the file that a run's network is, beside config.yaml, with its digest; how many there are. Raises DataError."""
    from elbocli.files.checkpoint import CONFIG, read_config

    network = read_config(path).network if (path / CONFIG).exists() else {}
    if not {"file", "sha256"} <= network.keys():
        return 0
    file = path / Path(str(network["file"])).name
    with reading(file, kind=DataError):
        if file_sha256(file) != network["sha256"]:
            raise DataError(f"{file}: has changed since it was imported; put it back, or import it anew")
    return 1


def _samples(path: Path) -> Generator[Progress, None, None]:
    from elbocli.files.statistics import is_statistics
    from elbocli.images.samples import read_samples

    if path.suffix == ".npz" and is_statistics(path):
        return
    with read_samples(path) as reader:
        done = 0
        for rows in reader.batches(max(BATCH, PIECE // math.prod(reader.shape[1:]))):
            done += len(rows)
            yield Progress(done, reader.shape[0], "img")
