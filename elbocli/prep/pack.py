"""Pack images into one elbo-dataset."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL

from elbocli.errors import DataError, UsageError
from elbocli.files import dataset_block
from elbocli.files.dataset_writer import DatasetWriter, open_writer
from elbocli.files.encodings import ENCODINGS, RAW
from elbocli.files.hashing import add_digests
from elbocli.images.crops import CROPS
from elbocli.images.decode import DecodeOptions
from elbocli.images.labels import utf8
from elbocli.images.sources import Source, choose, open_source, stop
from elbocli.prep.decode_ahead import Packed, packed_in_order
from elbocli.prep.defaults import chosen_channels, chosen_size, explained, look
from elbocli.prep.messages import count, introduced, list_skipped, named, summed_up
from elbocli.runtime.background import Signals, catching_signals
from elbocli.runtime.progress import Progress
from elbocli.version import __version__

if TYPE_CHECKING:
    from elbocli.prep.encode_latents import LatentEncoder

SAFE_EVERY_S = 2.0
SAFE_EVERY_BYTES = 16 << 20
LONG_LISTING_BYTES = 1 << 30


@dataclass(frozen=True)
class Settings:
    """Settings of a prep. workers: threads (Pillow decodes and resizes without the interpreter lock).

    size, channels: 0 to choose them by the images. grey_expected: one channel was chosen because those looked at are grey.
    """

    size: int = 0
    crop: str = "center"
    channels: int = 0
    grey_expected: bool = False
    background: str = ""
    auto_orient: bool = False
    fast_decode: bool = False
    store: str = RAW
    labels: Path | None = None
    classes: Path | None = None
    subset: tuple[str, float] | None = None
    shuffle_seed: int | None = None
    limit: int | None = None
    shard: tuple[int, int] | None = None
    latents: Path | None = None
    latent_convention: str = "diffusers"
    mirror: bool = False
    device: str = "auto"
    precision: str = "fp32"
    workers: int = 0
    on_error: str = "stop"
    preallocate: bool = True
    overwrite: bool = False
    command: str = ""

    @property
    def decode_options(self) -> DecodeOptions:
        """Settings that decide how files become squares."""
        shape = (self.size, self.channels, self.crop, self.background)
        return DecodeOptions(*shape, self.auto_orient, self.fast_decode, self.grey_expected)

    def about(self) -> dict[str, Any]:
        """Settings that decide the pixels, for the dataset's attributes."""
        return {
            "image_size": self.size,
            "channels": self.channels,
            "crop": self.crop,
            "filter": CROPS[self.crop].filter,
            "background": self.background or ("white" if self.crop == "pad" else "none"),
            "auto_orient": self.auto_orient,
            "fast_decode": self.fast_decode,
            "store": self.store,
            "shuffle_seed": "none" if self.shuffle_seed is None else self.shuffle_seed,
            "subset": "none" if self.subset is None else f"{self.subset[0]} {self.subset[1]:g}",
        }


def _fingerprint(source: Source, settings: Settings, encoder: LatentEncoder | None) -> str:
    """Digest everything that decides the result, file contents excepted."""
    about = {**settings.about(), "pillow": PIL.__version__}
    if encoder is not None:
        about["encoder"] = encoder.fingerprint
    digest = hashlib.sha256(json.dumps([about, source.class_names], sort_keys=True).encode())
    for file, label in zip(source.files, source.labels, strict=True):
        digest.update(os.fsencode(file) + b"\0%d\n" % label)
    return digest.hexdigest()


def _encoder(settings: Settings) -> LatentEncoder | None:
    if settings.latents is None:
        if settings.mirror:
            raise UsageError("--mirror is for --latents; pixels are mirrored while training: elbo train --flip")
        return None
    if settings.channels != 3 or settings.store != RAW:
        raise UsageError("--latents takes colour images and stores numbers; leave --channels and --store out")
    from elbocli.prep.encode_latents import LatentEncoder

    where: dict[str, Any] = {"device": settings.device, "precision": settings.precision}
    return LatentEncoder(settings.latents, settings.size, settings.latent_convention, mirror=settings.mirror, **where)


def _layout(settings: Settings, encoder: LatentEncoder | None) -> dataset_block.BlockLayout:
    if encoder is not None:
        return encoder.layout
    shape = (settings.size, settings.size, settings.channels)
    if settings.store == RAW:
        return dataset_block.plain(shape)
    return dataset_block.encoded(int(np.prod(shape) * ENCODINGS[settings.store].claim))


def run(sources: list[Path] | Path, out: Path, settings: Settings) -> Iterator[Progress]:
    """Pack `sources` into `out`. Rerun after a kill to go on where it stopped.

    Raises DataError: nothing to pack, an image that can't be used (with on_error 'stop'), a full disk;
    UsageError when `out` exists or is no name for a dataset; Interrupted after a signal, with all work saved.
    """
    replace(settings.decode_options, channels=settings.channels or 3).colour  # noqa: B018 refuse a bad colour before any work
    sources = [sources] if isinstance(sources, Path) else sources
    if sum(path.stat().st_size for path in sources if path.is_file()) > LONG_LISTING_BYTES:
        yield Progress(message=f"{named(sources)}: reading what is inside")
    complaints: list[str] = []
    complain = complaints.append if settings.on_error == "skip" else stop
    gc.disable()  # a million references are no garbage: looking for some would take a third of the time
    try:
        whole = open_source(sources, labels=settings.labels, classes=settings.classes, complain=complain)
    finally:
        gc.enable()
    looks, asked = look(whole), settings
    size = asked.size or chosen_size(looks, asked.crop)[0]
    channels = asked.channels or chosen_channels(looks, asked)
    settings = replace(asked, size=size, channels=channels, grey_expected=not asked.channels and channels == 1)
    encoder = _encoder(settings)
    every = choose(whole, subset=settings.subset, shuffle_seed=settings.shuffle_seed, limit=settings.limit)
    source = choose(every, shard=settings.shard, group=1 if encoder is None else encoder.batch)
    yield from introduced(source, sources, settings.decode_options, complaints)
    yield from explained(looks, asked, settings.size, settings.channels)
    if encoder is not None:
        yield Progress(message=f"latents of {settings.latents}; {encoder.device}, {encoder.precision}")
    shard_of = _fingerprint(every, settings, encoder)
    fingerprint = shard_of if settings.shard is None else f"{shard_of} {settings.shard}"
    copies = 1 if encoder is None else encoder.copies
    begun = time.monotonic()
    layout, limit = _layout(settings, encoder), len(source) * copies
    how = {"preallocate": settings.preallocate, "overwrite": settings.overwrite}
    with catching_signals() as signals, open_writer(out, layout, limit, fingerprint, **how) as writer:
        yield from (Progress(message=text, level="warning") for text in writer.warnings)
        before = writer.state.done
        yield from _fill(writer, source, settings, encoder, signals)
        notes = writer.state.notes
        skipped = {int(index): trouble for index, trouble in notes["skipped"].items()}
        if writer.rows == 0:
            raise DataError(f"{named(sources)}: none of its {len(source)} files is a usable image")
        kept: Sequence[int] = range(len(source))
        if skipped or copies > 1:
            kept = [index for index in kept if index not in skipped for _ in range(copies)]
        yield from list_skipped(out, source, skipped)
        labels, classes = np.array([source.labels[i] for i in kept], np.int64), source.class_names
        counts = np.bincount(labels, minlength=len(classes)).astype(np.int64)
        names = {"class_names": list(map(utf8, classes)), "files": [utf8(source.files[i]) for i in kept]}
        about = {
            "num_classes": len(classes),
            **settings.about(),
            "elbo_version": __version__,
            "pillow_version": PIL.__version__,
            "source_sha256": notes["source_sha256"],
            "skipped": len(skipped),
            "changed": json.dumps(notes["changed"], sort_keys=True),
            **({} if settings.shard is None else {"shard": "{}/{}".format(*settings.shard), "shard_of": shard_of}),
            **({} if encoder is None else encoder.attributes),
            "command": settings.command,
        }
        writer.finish({"labels": labels, "class_counts": counts}, names, about)
    yield from summed_up(out, len(source) - before, len(kept), notes, time.monotonic() - begun)


def _note(notes: dict[str, Any], index: int, files: list[str], packed: Packed) -> None:
    """Add what was packed, from an image's number on, to what a resumed prep must know of those that are done.

    The digest is a sum, so that the parts of a source add up to it.
    """
    named_digests = zip(files[index : index + len(packed.digests)], packed.digests, strict=True)
    digests = [
        hashlib.sha256(os.fsencode(name) + b"\0" + digest.encode()).hexdigest() for name, digest in named_digests
    ]
    notes["source_sha256"] = add_digests([notes["source_sha256"], *digests])
    if packed.trouble:
        notes["skipped"][str(index)] = packed.trouble
    if packed.change:
        notes["changed"][packed.change] = notes["changed"].get(packed.change, 0) + 1


def _stopped(source: Source, index: int, trouble: str) -> DataError:
    return DataError(f"{source.shown(index)}: {trouble}; put it right, or add --on-error skip to go on without it")


def _fill(
    writer: DatasetWriter, source: Source, settings: Settings, encoder: LatentEncoder | None, signals: Signals
) -> Iterator[Progress]:
    blank: dict[str, Any] = {"source_sha256": add_digests([]), "skipped": {}, "changed": {}}
    notes = copy.deepcopy(writer.state.notes) or blank
    total, done, skipped = len(source), writer.state.done, notes["skipped"]
    if notes["skipped"] and settings.on_error == "stop":
        index, trouble = next(iter(notes["skipped"].items()))
        raise _stopped(source, int(index), trouble)
    if done:
        yield Progress(done, total, "img", f"going on after {count(done, 'image', 'images')}")
    rows: list[Any] = []
    pending: list[Any] = []
    begun, read = time.monotonic(), 0

    def encode() -> None:
        if encoder is not None and pending:
            rows.extend(encoder.rows(pending))
            pending.clear()

    def save() -> None:
        """Make rows safe, unless a batch of latents is incomplete: it is encoded whole, so that its numbers are the same."""
        if not pending:
            writer.append(rows, done, copy.deepcopy(notes))
            rows.clear()

    safe_at, held = begun, 0
    # One by one into batches of latents, so that what is safe ends with a batch often.
    how = (settings.decode_options, settings.store, settings.workers, encoder is None)
    for packed in packed_in_order(source, done, *how):
        if packed.trouble and settings.on_error == "stop":
            save()
            raise _stopped(source, done, packed.trouble)
        _note(notes, done, source.files, packed)
        done, read = done + len(packed.digests), read + packed.size
        if not packed.trouble:
            held += len(packed.rows) if isinstance(packed.rows, bytes) else packed.rows.nbytes
            if encoder is None:
                rows.append(packed.rows)
            else:
                pending.extend(packed.rows)
                if len(pending) >= encoder.batch:
                    encode()
        if time.monotonic() - safe_at > SAFE_EVERY_S or held > SAFE_EVERY_BYTES or signals.received:
            save()
            safe_at, held = time.monotonic(), 0
        if signals.received and done < total:
            safe = f"{writer.state.done} of {total} images are safe in {writer.partial.name}"
            raise signals.interrupted(f"{safe}; the same command goes on from there")
        values = {"MB/s": read / 1e6 / max(time.monotonic() - begun, 1e-9)}
        yield Progress(done, total, "img", values=values | ({"skipped": len(skipped)} if skipped else {}))
    encode()
    if done > writer.state.done or not writer.state.notes:
        save()
