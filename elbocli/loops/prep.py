"""Pack a folder of images into one elbo-dataset."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL

from elbocli import __version__
from elbocli.errors import DataError, ElboError
from elbocli.files import pixels
from elbocli.files.atomic import refuse_existing, writing
from elbocli.files.dataset_writer import DatasetWriter, open_writer
from elbocli.files.payload import plain
from elbocli.files.sources import Source, open_source
from elbocli.loops.report import Report

SAFE_EVERY_S = 2.0
SAFE_EVERY_BYTES = 64 << 20
PUBLISHED_SKIPS = 100


@dataclass(frozen=True)
class Settings:
    """How to pack. workers: threads (Pillow decodes and resizes without the interpreter lock)."""

    size: int = 64
    crop: str = "center"
    channels: int = 3
    workers: int = 0
    limit: int | None = None
    on_error: str = "stop"
    overwrite: bool = False
    command: str = ""


@dataclass(frozen=True)
class _Packed:
    """One image, or why it isn't one."""

    file: str
    digest: str
    pixels: np.ndarray | None
    change: str
    trouble: str


def _pack(source: Source, file: str, settings: Settings) -> _Packed:
    digest = ""
    try:
        content = pixels.read_bytes(source.root / file)
        digest = hashlib.sha256(content).hexdigest()
        square, change = pixels.square(content, settings.size, settings.channels, settings.crop)
        return _Packed(file, digest, square, change, "")
    except ElboError as error:
        return _Packed(file, digest, None, "", str(error))


def _in_order(source: Source, start: int, settings: Settings) -> Iterator[_Packed]:
    """Packed images in source order, at most a few per worker ahead."""
    workers = settings.workers or os.cpu_count() or 1
    waiting: deque[Future[_Packed]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="elbo-prep") as pool:
        try:
            for file in source.files[start:]:
                waiting.append(pool.submit(_pack, source, file, settings))
                if len(waiting) >= 8 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _fingerprint(source: Source, settings: Settings) -> str:
    """A digest of everything that decides the result, file contents excepted."""
    shape = {key: value for key, value in asdict(settings).items() if key in ("size", "crop", "channels", "on_error")}
    listing = json.dumps([shape, [os.fsencode(f).hex() for f in source.files], source.labels])
    return hashlib.sha256(listing.encode()).hexdigest()


def run(src: Path, out: Path, settings: Settings) -> Iterator[Report]:
    """Pack `src` into `out`. Rerun after a kill to go on where it stopped.

    Raises DataError: nothing to pack, an image that can't be used (with on_error 'stop'), a full disk;
    UsageError when `out` exists.
    """
    refuse_existing(out, settings.overwrite)
    source = open_source(src, settings.limit)
    total = len(source.files)
    yield Report(
        0,
        total,
        "img",
        f"{src}: {total} images in {len(source.class_names)} classes -> {settings.size} x {settings.size} x {settings.channels}",
    )
    shape = (settings.size, settings.size, settings.channels)
    with open_writer(out, plain(shape), total, _fingerprint(source, settings)) as writer:
        yield from _fill(writer, source, settings)
        notes = writer.state["notes"]
        skipped = {int(index): trouble for index, trouble in notes.get("skipped", {}).items()}
        if writer.rows == 0:
            raise DataError(f"{src}: none of its {total} files is a usable image")
        kept = [index for index in range(total) if index not in skipped]
        writer.finish(
            {"labels": np.array([source.labels[i] for i in kept], np.int64)},
            {
                "class_names": [_utf8(name) for name in source.class_names],
                "files": [_utf8(source.files[i]) for i in kept],
            },
            {
                "num_classes": len(source.class_names),
                "image_size": settings.size,
                "crop": settings.crop,
                "elbo_version": __version__,
                "pillow_version": PIL.__version__,
                "source_sha256": notes["source_sha256"],
                "skipped": len(skipped),
                "command": settings.command,
            },
        )
    sidecar = out.with_name(out.name.removesuffix(".h5") + ".skipped.jsonl")
    if skipped:
        with writing(sidecar, "w") as file:
            for index, trouble in sorted(skipped.items()):
                file.write(json.dumps({"file": _utf8(source.files[index]), "trouble": trouble}) + "\n")
        yield Report(message=f"{len(skipped)} files skipped, listed in {sidecar}", level="warning")
    changed = ", ".join(f"{count} {change}" for change, count in sorted(notes.get("changed", {}).items()))
    if changed:
        yield Report(message=f"changed while decoding: {changed}", level="warning" if "alpha" in changed else "info")
    yield Report(message=f"{out}: {total - len(skipped)} images, {out.stat().st_size / 1e6:.1f} MB")


def _fill(writer: DatasetWriter, source: Source, settings: Settings) -> Iterator[Report]:
    notes = writer.state["notes"]
    digest, skipped = notes.get("source_sha256", ""), dict(notes.get("skipped", {}))
    changed = Counter(notes.get("changed", {}))
    total, done = len(source.files), int(writer.state["done"])
    if done:
        yield Report(done, total, "img", f"going on after {done} images")
    rows: list[np.ndarray] = []

    def save() -> None:
        writer.append(rows, done, {"source_sha256": digest, "skipped": skipped, "changed": dict(changed)})
        rows.clear()

    safe_at = time.monotonic()
    for packed in _in_order(source, done, settings):
        if packed.trouble:
            if settings.on_error == "stop":
                save()
                raise DataError(f"{source.root / packed.file}: {packed.trouble}; remove it, or add --on-error skip")
            skipped[str(done)] = packed.trouble
        elif packed.pixels is not None:
            rows.append(packed.pixels)
        if packed.change:
            changed[packed.change] += 1
        digest = hashlib.sha256(digest.encode() + os.fsencode(packed.file) + b"\0" + packed.digest.encode()).hexdigest()
        done += 1
        if time.monotonic() - safe_at > SAFE_EVERY_S or len(rows) * writer.layout.row_bytes > SAFE_EVERY_BYTES:
            save()
            safe_at = time.monotonic()
        yield Report(done, total, "img", values={"skipped": len(skipped)} if skipped else {})
    if rows or not total or done > int(writer.state["done"]):
        save()


def _utf8(name: str) -> str:
    """A file name as text, bytes that are not UTF-8 shown as replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")
