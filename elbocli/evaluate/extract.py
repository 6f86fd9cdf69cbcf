"""Compute the features of opened images on all ranks, or take saved ones."""

import hashlib
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from elbocli.core.estimate import NOTHING, StreamingFeatureMoments
from elbocli.core.metrics import Features, Need
from elbocli.errors import DataError
from elbocli.evaluate.opening import Opened, OpenedSet, Sides
from elbocli.files.features import LARGEST_FEATURE, SavedFeatures
from elbocli.files.reading import add_digests
from elbocli.nn.extractors import Extractor
from elbocli.runtime.background import Ahead
from elbocli.runtime.device import Precision, sent
from elbocli.runtime.processes import World
from elbocli.runtime.progress import log, progress


class ExtractedSet(NamedTuple):
    """A set with its features.

    opened: the set; its `about` has the digest of the images. features: on other ranks than 0, without features per image.
    """

    opened: OpenedSet
    features: Features


class Extracted(NamedTuple):
    """An evaluation with the features of its sets."""

    opened: Opened
    sides: Sides[ExtractedSet]


def extract(opened: Opened) -> Extracted:
    """Extract the features of all sets, the samples first. Raises DataError: when features are not finite or too large."""
    if opened.extractor:
        name, device, precision = opened.extractor.name, opened.world.device, opened.settings.precision
        log.info("extracting features with %s on %s, in %s precision", name, device, precision)
    return Extracted(opened, opened.sides.map(partial(extract_set, opened=opened)))


def extract_set(side: OpenedSet, opened: Opened) -> ExtractedSet:
    """Extract the features that the metrics need: those of the reference, of held-out images, or of samples otherwise."""
    settings = opened.settings
    wanted: dict[str, Any] = {"values": opened.compares_images or side is opened.sides.held_out}
    if side not in opened.sides.references:
        wanted = {
            "values": opened.compares_images or settings.needing(Need.REFERENCE) or settings.save_features,
            "logits": settings.needing(Need.LOGITS) or settings.save_features,
            "spatial_values": opened.spatial,
        }
    keep, spatial = (
        {name for name, reason in wanted.items() if reason},
        bool(opened.spatial) and side is not opened.sides.held_out,
    )
    return extract_features(side, opened.extractor, settings.batch_size, opened.world, keep, spatial)


def extract_features(
    side: OpenedSet, extractor: Extractor | None, batch: int, world: World, keep: Set[str], spatial: bool = False
) -> ExtractedSet:
    """Return a set with its features, extracted on all ranks.

    extractor: None if the set has no images.
    batch: number of images at a time, on each rank.
    keep: features to keep for each image: `values`, `logits`, `spatial_values`.
    spatial: whether to compute mean and covariance of spatial features, too.
    Raises DataError: when features are not finite or too large.
    """
    statistics, about, moments, kept = side.statistics, side.about, Moments(), dict[str, Tensor]()
    names = ("values", "spatial_values")[: 1 + spatial]
    if statistics:
        moments = {"values": statistics, "spatial_values": statistics.spatial}
        if keep:
            kept, _, _ = _of_images(side, extractor, batch, world, keep, ())
        else:
            about = structs.replace(about, images=None)
    elif side.saved:
        kept, moments = _of_saved(side.saved, keep, names)
    else:
        kept, moments, digest = _of_images(side, extractor, batch, world, keep, names)
        about = structs.replace(about, images_sha256=digest)
    spatial_moments = moments.get("spatial_values")
    features = Features(moments["values"], labels=side.labels, spatial=spatial_moments, device=world.device, **kept)
    return ExtractedSet(replace(side, about=about), features)


Moments = dict[str, Any]  # name of features → Gaussian of these


def _of_saved(saved: SavedFeatures, keep: Set[str], names: Sequence[str]) -> tuple[dict[str, Tensor], Moments]:
    tensors: dict[str, Any] = {"values": saved.features, "logits": saved.logits, "spatial_values": saved.spatial}
    moments = {}
    for name in names:
        sums = StreamingFeatureMoments()
        for part in tensors[name].split(sums.ROWS):
            sums.add(part.numpy())
        moments[name] = sums.moments()
    return {name: tensor for name, tensor in tensors.items() if name in keep and tensor is not None}, moments


class Batch(NamedTuple):
    """Images uint8 [B, H, W, C] of a set. begin: index of the first. digests: of each image, with its shape and index."""

    begin: int
    images: np.ndarray
    digests: list[str]


def _of_images(
    side: OpenedSet, extractor: Any, batch: int, world: World, keep: Set[str], names: Sequence[str]
) -> tuple[dict[str, Tensor], Moments, str]:
    # Returns the features `keep` of each image (on rank 0), moments of the features `names`, and the digest of all images.
    batch = world.of_first(side.reader.batch(batch) if side.reader else batch)
    sharers = 1 if side.streamed else world.size  # each takes whole batches: the result doesn't depend on world.size
    read, spatial = _batches(side, batch, world.rank, sharers), "spatial_values" in {*names, *keep}
    sums, kept, digests, done = {name: StreamingFeatureMoments() for name in names}, dict[str, Tensor](), list[str](), 0
    for step in range(-(-side.n // (batch * sharers))):
        outputs: dict[str, Tensor] = {}
        with world.together():
            if part := read(step):
                outputs = _outputs(part, extractor, world.device, side.name, spatial)
                digests += part.digests
                for name, moments in sums.items():
                    moments.add(outputs[name].numpy())
        for rows in world.all({name: outputs[name] for name in keep if name in outputs}) if keep else ():
            for name, tensor in rows.items() if world.first else ():
                whole = kept.setdefault(name, tensor.new_empty(side.n, *tensor.shape[1:]))
                whole[done : done + len(tensor)] = tensor
            done += len(next(iter(rows.values()), ()))
        progress(min((step + 1) * batch * sharers, side.n), side.n, "img", of=side.name)
    totals = {name: sum(world.all(moments.moments()), NOTHING) for name, moments in sums.items()}
    return kept, totals, add_digests(world.all(add_digests(digests)))


def _batches(side: OpenedSet, batch: int, rank: int, sharers: int) -> Callable[[int], Batch | None]:
    # Returns a function: step → this rank's batch, or None if it has none.
    def read(step: int) -> Batch | None:
        begin = (step * sharers + rank) * batch
        if rank >= sharers or begin >= side.n or side.reader is None:
            return None
        images = side.reader.at(begin, min(batch, side.n - begin))
        # Each digest includes shape and position, so that the sum of all digests identifies the images and their order.
        texts = [f"{begin + k} {image.shape} ".encode() + image.tobytes() for k, image in enumerate(images)]
        return Batch(begin, images, [hashlib.sha256(text).hexdigest() for text in texts])

    return read if side.streamed else Ahead(read, depth=1).get


def _outputs(part: Batch, extractor: Extractor, device: torch.device, where: str, spatial: bool) -> dict[str, Tensor]:
    # Returns values [B, D], logits [B, K] if any, spatial_values [B, S] if `spatial`.
    precision = Precision(extractor.precision, device)
    with torch.inference_mode(), precision.applied(), precision.autocast():
        pixels = sent(torch.from_numpy(part.images), device).permute(0, 3, 1, 2)
        features, logits, maps = extractor.with_spatial(pixels) if spatial else (*extractor(pixels), None)
    tensors = {"values": features, "logits": logits, "spatial_values": maps}
    outputs = {name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None}
    for tensor in outputs.values():
        usable = (tensor.abs() <= LARGEST_FEATURE).all(1)
        if not usable.all():
            raise DataError(
                f"{where}: features of image {part.begin + int(usable.int().argmin())} are not finite, or larger than "
                f"{LARGEST_FEATURE:g}; the extractor {extractor.name} doesn't suit these images; choose another --extractor"
            )
    return outputs
