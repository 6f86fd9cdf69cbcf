"""Pack images into one elbo-dataset."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from elbocli.data.decode import CROPS, header_shape, square
from elbocli.data.labels import utf8
from elbocli.data.registry import ArrayRow, ImageRef, Images, Shape
from elbocli.data.settings import PrepSettings
from elbocli.data.sources import choose, open_source
from elbocli.errors import DataError, ElboError, UsageError
from elbocli.files.atomic import write_text
from elbocli.files.dataset import DatasetWriter, Members
from elbocli.files.reading import add_digests
from elbocli.files.resumable import IMAGES, LATENTS, BlockLayout, Journal
from elbocli.runtime.background import Prefetcher, Signals, catching_signals, interrupted
from elbocli.runtime.progress import log, progress
from elbocli.version import __version__

USUAL_SIZE = 64  # default size in pixels; smaller images of one size keep their size
LOOKED_AT = 1000  # most image files whose size and channels are read to choose the defaults
COMPARED = 1000  # most images whose contents are read to tell whether a source has changed
# pixels × channels in a task of a thread, and tasks computed ahead per thread
AT_ONCE = 1 << 16
AHEAD = 8
SAFE_EVERY_S = 2.0
SAFE_EVERY_BYTES = 16 << 20


def pack_images(sources: Sequence[Path], out: Path, settings: PrepSettings) -> None:
    """Pack `sources` into the dataset `out`. After a kill, the same call resumes.

    Raises DataError if there are no images, for an unusable image (with on_error 'stop'), and for a full disk.
    Raises UsageError if `out` exists or is not a name for a dataset.
    Raises Interrupted after a signal; all work is saved.
    """
    whole = open_source(sources, labels=settings.labels, class_names=settings.class_names)
    settings = _with_shape(settings, look(whole))
    encoder = _encoder(settings)
    source = choose(whole, subset=settings.subset, limit=settings.limit)
    classes = source.class_names
    shape = f"{settings.size} x {settings.size} pixels, {settings.channels} channels"
    log.info(f"{sources[0]}: {len(source)} images, {len(classes)} classes -> {shape}")
    identity = _identity(source, settings, encoder)

    unfinished = DatasetWriter(out, encoder.layout, len(source) * encoder.copies, identity)
    with catching_signals() as signals, unfinished.held(settings.overwrite, unchanged=partial(_unchanged, source)) as writer:
        _fill(writer, source, settings, encoder, signals)
        notes = writer.state.notes
        if writer.rows == 0:
            raise DataError(f"{sources[0]}: no usable image among {len(source)} files; to see why, add --on-error stop")
        sidecar = out.with_suffix(".skipped.jsonl")
        sidecar.unlink(missing_ok=True)
        if notes["skipped"]:
            skipped = [{"file": utf8(source.files[int(i)]), "trouble": why} for i, why in notes["skipped"].items()]
            write_text(sidecar, "".join(json.dumps(row) + "\n" for row in skipped))
            log.warning(f"{len(skipped)} files skipped, listed in {sidecar}")
        kept = [i for i in range(len(source)) if str(i) not in notes["skipped"] for _ in range(encoder.copies)]
        labels = np.array([source.labels[i] for i in kept], np.int64)
        members: Members = {
            "labels": labels,
            "class_counts": np.bincount(labels, minlength=len(classes)),
            "class_names": list(map(utf8, classes)),
            "files": [utf8(source.files[i]) for i in kept],
        }
        about = {
            "num_classes": len(classes),
            **_pixel_settings(settings),
            "elbo_version": __version__,
            "pillow_version": PIL.__version__,
            "source_sha256": notes["source_sha256"],
            "skipped": len(notes["skipped"]),
            "changed": json.dumps(notes["changed"], sort_keys=True),
            **encoder.attributes,
            "command": settings.command,
        }
        writer.finish(members, about)
    changed = ", ".join(f"{count} {change}" for change, count in sorted(notes["changed"].items()))
    if changed:
        log.warning(f"decoding changed some images: {changed}")
    log.info(f"{out}: {len(kept)} images")


# Default size and channels


def look(source: Images) -> set[Shape]:
    """Return the shapes (H, W, C) of images; at most LOOKED_AT files are read."""
    shapes = {ref.array.shape[1:] for ref in source.refs if isinstance(ref, ArrayRow)}
    files = [ref for ref in source.refs if not isinstance(ref, ArrayRow)]
    for ref in files[:: -(-len(files) // LOOKED_AT) or 1]:
        with suppress(Exception):
            content = ref.read()
            shapes.add(header_shape(content) if isinstance(content, bytes) else content.shape)
    return shapes


def _pixel_settings(settings: PrepSettings) -> dict[str, str | int]:
    # Settings that the pixels depend on.
    return {
        "image_size": settings.size,
        "channels": settings.channels,
        "crop": settings.crop,
        "filter": CROPS[settings.crop][1],
        "subset": "none" if settings.subset is None else f"{settings.subset[0]} {settings.subset[1]:g}",
    }


def _with_shape(settings: PrepSettings, shapes: set[Shape]) -> PrepSettings:
    # Images of one size keep it if it is at most USUAL_SIZE, or if crop is 'none'.
    sizes = {shape[:2] for shape in shapes}
    sides = list(map(min, sizes)) or [USUAL_SIZE]
    keep = len(sizes) == 1 and (sides[0] <= USUAL_SIZE or settings.crop == "none")
    size = settings.size or (sides[0] if keep else USUAL_SIZE)
    channels = settings.channels
    if not channels:
        grey = shapes and all(shape[2] == 1 for shape in shapes)
        channels = 1 if grey and settings.latents is None else 3
    if min(sides) < size and settings.crop != "none":
        log.warning(f"images are enlarged to {size} x {size} pixels; --size {min(sides)} avoids enlarging")
    return replace(settings, size=size, channels=channels, grey_expected=not settings.channels and channels == 1)


# Encoders


class Encoder(NamedTuple):
    """Way from images to the rows of a dataset.

    batch: images per call of `rows`, except the last call. copies: rows per image. attributes: to add to the dataset's.
    fingerprint: settings and versions on which the rows depend.
    rows: function of images, uint8 [H, W, C], that returns `copies` rows per image.
    """

    layout: BlockLayout
    batch: int = 1
    copies: int = 1
    attributes: Mapping[str, object] = {}
    fingerprint: Mapping[str, object] = {}
    rows: Callable[[list[np.ndarray]], list[np.ndarray]] = lambda images: images


def _encoder(settings: PrepSettings) -> Encoder:
    if settings.latents is None:
        if settings.mirror:
            raise UsageError("--mirror is for --latents; pixels are mirrored while training: elbo train --flip")
        return Encoder(BlockLayout(IMAGES, (settings.size, settings.size, settings.channels)))
    if settings.channels != 3:
        raise UsageError("--latents needs RGB images; leave --channels out")
    return latent_encoder(settings.latents, settings)


def latent_encoder(folder: Path, settings: PrepSettings) -> Encoder:
    """Return an encoder of RGB images to latents, float16 [2C, h, w]: mean and standard deviation of the posterior.

    folder: a diffusers AutoencoderKL.
    Raises UsageError without diffusers or for a wrong size, FormatError or DataError for an unusable folder.
    `rows` raises DataError if a latent is not finite in float16.
    """
    import torch  # imported here, like modules that use torch, because packing pixels needs no torch

    from elbocli.networks.diffusers import Autoencoder
    from elbocli.runtime.device import Precision, choose_device

    size = settings.size
    device = choose_device(settings.device)
    precision = Precision(settings.precision, device)
    autoencoder = Autoencoder(folder, device)
    factor = autoencoder.factor
    if size % factor:
        raise UsageError(f"--size {size}: {folder} downsamples images by {factor}; choose a multiple of {factor}")
    space = autoencoder.space(settings.latent_convention, size, settings.mirror)
    layout = BlockLayout(LATENTS, (2 * autoencoder.channels, size // factor, size // factor))
    batch = autoencoder.comfortable_batch(size)
    copies = 2 if settings.mirror else 1
    attributes = {
        **asdict(space),
        "latent_precision": str(precision),
        "torch_version": version("torch"),
        "diffusers_version": version("diffusers"),
    }
    fingerprint = {**attributes, "batch": batch, "device": device.type}
    del fingerprint["autoencoder"]  # the folder may be moved

    def rows(images: list[np.ndarray]) -> list[np.ndarray]:
        straight = np.stack(images)
        views = [straight, np.ascontiguousarray(straight[:, :, ::-1])][:copies]
        with precision.applied(), precision.autocast():
            moments = [torch.cat(autoencoder.encode(view, space), 1).half().cpu() for view in views]
        latents = torch.stack(moments, 1).numpy().reshape(-1, *layout.row)
        if not np.isfinite(latents).all():
            raise DataError(f"{folder}: its latents are not finite in float16; name the right autoencoder with --latents")
        return list(latents)

    log.info(f"encoding latents with {folder} on {device} in {precision}")
    return Encoder(layout, batch, copies, attributes, fingerprint, rows)


def _identity(source: Images, settings: PrepSettings, encoder: Encoder) -> dict[str, str]:
    # Everything that the result depends on, except the contents of images, by name for messages.
    files = hashlib.sha256()
    classes = hashlib.sha256(json.dumps(source.class_names).encode())
    for file, label in zip(source.files, source.labels):
        files.update(os.fsencode(file) + b"\n")
        classes.update(b"%d\n" % label)
    about = {**_pixel_settings(settings), "pillow_version": PIL.__version__, **encoder.fingerprint}
    return {**{key: str(value) for key, value in about.items()}, "files": files.hexdigest(), "classes": classes.hexdigest()}


def _unchanged(source: Images, journal: Journal) -> bool:
    # A file name doesn't tell which image it names: another version of a data set has equal names, and a moved data set has
    # other paths. So the contents of up to COMPARED images, spread over the source, are compared. To compare all would take
    # as long as packing where reading is slow.
    return all(_read(source.refs[int(index)])[0] == digest for index, digest in journal.notes["compared"].items())


def _read(ref: ImageRef) -> tuple[str, bytes | np.ndarray | ElboError]:
    # Returns the digest of an image's bytes, and the bytes or pixels; ("", the error) for an unreadable image.
    try:
        content = ref.read()
    except ElboError as error:
        return "", error
    return hashlib.sha256(content if isinstance(content, bytes) else content.data).hexdigest(), content


# Writing of rows


class Packed(NamedTuple):
    """An image as stored in a dataset, or the reason why the image is unusable.

    digest: sha256 of the bytes that were read. row: pixels [H, W, C].
    change: made while decoding, such as 'alpha dropped'. trouble: reason; "" for a usable image.
    """

    digest: str
    row: np.ndarray = np.empty(0, np.uint8)
    change: str = ""
    trouble: str = ""


def _fill(writer: DatasetWriter, source: Images, settings: PrepSettings, encoder: Encoder, signals: Signals) -> None:
    # The notes' `source_sha256` is a sum of digests, to which a resumed run adds. Rows are flushed only between batches of the
    # encoder, so that batches, and thus the stored values, are the same after a kill.
    notes = writer.state.notes or {"compared": {}, "source_sha256": add_digests([]), "skipped": {}, "changed": {}}
    total = len(source)
    done = writer.state.done
    rows: list[np.ndarray] = []
    batch: list[np.ndarray] = []
    if done:
        log.info(f"going on after {done} images, which are packed already")
    safe_at = time.monotonic()
    unsaved_bytes = 0
    for packed in _packed_in_order(source, done, settings):
        if packed.trouble:
            notes["skipped"][str(done)] = packed.trouble
        else:
            batch.append(packed.row)
        if settings.on_error == "stop" and notes["skipped"]:  # skipped now, or by an earlier prep with --on-error skip
            index, trouble = notes["skipped"].popitem()
            if not batch:
                writer.append(rows, done, notes)
            remedy = "repair the image, or add --on-error skip to leave the image out"
            raise DataError(f"{source.prefix}{source.files[int(index)]}: {trouble}; {remedy}")
        name_and_digest = os.fsencode(source.files[done]) + b"\0" + packed.digest.encode()
        notes["source_sha256"] = add_digests([notes["source_sha256"], hashlib.sha256(name_and_digest).hexdigest()])
        if done % -(-total // COMPARED) == 0:
            notes["compared"][str(done)] = packed.digest
        if packed.change:
            notes["changed"][packed.change] = notes["changed"].get(packed.change, 0) + 1
        done = done + 1
        unsaved_bytes = unsaved_bytes + packed.row.nbytes
        if batch and (len(batch) >= encoder.batch or done == total):
            rows += encoder.rows(batch)
            batch.clear()
        late = time.monotonic() - safe_at > SAFE_EVERY_S or unsaved_bytes > SAFE_EVERY_BYTES
        if not batch and (late or signals.received or done == total):
            writer.append(rows, done, notes)
            rows.clear()
            safe_at = time.monotonic()
            unsaved_bytes = 0
        if signals.received and done < total:
            safe = f"{writer.state.done} of {total} images are safe in {writer.partial.name}"
            raise interrupted(signals.received, f"{safe}; the same command goes on from there")
        progress(done, total, "img")


def _packed_in_order(source: Images, start: int, settings: PrepSettings) -> Iterator[Packed]:
    threads = len(os.sched_getaffinity(0))
    step = 1 + AT_ONCE // (settings.size**2 * settings.channels)

    def pack(task: int) -> list[Packed]:
        first = start + task * step
        return [_pack(ref, settings) for ref in source.refs[first : first + step]]

    ahead = Prefetcher(pack, AHEAD * threads, threads)
    for task in range(-(-(len(source) - start) // step)):
        yield from ahead.get(task)


def _pack(ref: ImageRef, settings: PrepSettings) -> Packed:
    digest, content = _read(ref)
    try:
        if isinstance(content, ElboError):
            raise content
        pixels, change = square(content, settings)
    except ElboError as error:
        return Packed(digest, trouble=str(error))
    return Packed(digest, pixels, change)
