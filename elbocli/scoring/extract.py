"""Compute the features of opened images on all ranks, or take saved ones."""

import hashlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from elbocli.core.moments import NOTHING, FeatureMoments, StreamingFeatureMoments
from elbocli.errors import DataError
from elbocli.files.features import LARGEST_FEATURE, SavedFeatures
from elbocli.files.reading import add_digests
from elbocli.runtime.background import Prefetcher
from elbocli.runtime.device import Precision, sent
from elbocli.runtime.progress import log, progress
from elbocli.scoring.metrics import Features, Need
from elbocli.scoring.opening import Opened, OpenedSet


def extract(opened: Opened) -> Opened:
    """Return the evaluation with the features of all sets. Raises DataError: when features are not finite or too large."""
    if opened.extractor:
        log.info(
            f"extracting features with {opened.extractor.name} on {opened.world.device}, in {opened.extractor.precision} precision"
        )
    return opened.map(partial(extract_set, opened=opened))


def extract_set(side: OpenedSet, opened: Opened) -> OpenedSet:
    """Return a set with the features that the metrics need. side: the evaluation's reference, or samples."""
    settings = opened.settings
    samples = side is not opened.reference
    wanted = {
        "values": opened.compares_images or (samples and (settings.needing(Need.REFERENCE) or settings.save_features)),
        "logits": samples and (settings.needing(Need.LOGITS) or settings.save_features),
        "spatial_values": samples and opened.spatial,
    }
    keep = {name for name, reason in wanted.items() if reason}
    return extract_features(side, opened, keep, bool(opened.spatial))


def extract_features(side: OpenedSet, opened: Opened, keep: Set[str], spatial: bool = False) -> OpenedSet:
    """Return a set with its features, extracted on all ranks, and the digest of its images.

    opened: the evaluation, for its extractor, batch size and ranks.
    keep: features to keep for each image: `values`, `logits`, `spatial_values`.
    spatial: whether to compute mean and covariance of spatial features, too.
    Raises DataError: when features are not finite or too large.
    """
    about = side.about
    statistics = side.statistics
    names = () if statistics else ("values", "spatial_values")[: 1 + spatial]
    if side.saved:
        kept, moments = _of_saved(side.saved, keep, names)
    elif names or keep:
        kept, moments, digest = _of_images(side, opened, keep, names)
        about = about if statistics else structs.replace(about, images_sha256=digest)
    else:
        kept = {}
        moments = {}
        about = structs.replace(about, images=None)
    if statistics:
        moments = {"values": statistics, "spatial_values": statistics.spatial}
    spatial_moments = moments.get("spatial_values")
    features = Features(moments["values"], labels=side.labels, spatial=spatial_moments, device=opened.world.device, **kept)
    return replace(side, about=about, features=features)


def _of_saved(saved: SavedFeatures, keep: Set[str], names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Any] = {"values": saved.features, "logits": saved.logits, "spatial_values": saved.spatial}
    rows = StreamingFeatureMoments.ROWS
    moments = {name: sum((FeatureMoments.of(part.numpy()) for part in tensors[name].split(rows)), NOTHING) for name in names}
    return {name: tensor for name, tensor in tensors.items() if name in keep and tensor is not None}, moments


def _of_images(
    side: OpenedSet, opened: Opened, keep: Set[str], names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    # Returns the features `keep` of each image (on rank 0), moments of the features `names`, and the digest of all images.
    sums = {name: StreamingFeatureMoments() for name in names}
    kept = dict[str, Tensor]()
    digests = list[str]()
    done = 0
    world = opened.world
    for outputs, some_digests in _outputs(side, opened, "spatial_values" in {*names, *keep}):
        digests += some_digests
        for name in names if outputs else ():
            sums[name].add(outputs[name].numpy())
        for rows in world.all({name: outputs[name] for name in keep if name in outputs}) if keep else ():
            for name, tensor in rows.items() if world.first else ():
                whole = kept.setdefault(name, tensor.new_empty(side.n, *tensor.shape[1:]))
                whole[done : done + len(tensor)] = tensor
            done += len(next(iter(rows.values()), ()))
    moments = {name: sum(world.all(part.moments()), NOTHING) for name, part in sums.items()}
    return kept, moments, add_digests(world.all(add_digests(digests)))


def _outputs(side: OpenedSet, opened: Opened, spatial: bool) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    # Yields this rank's part of each step: features of its batch by name, and digests of the images; both empty without a batch.
    world = opened.world
    batch = opened.settings.batch_size
    batch = world.broadcast(side.reader.batch(batch) if side.reader else batch)
    sharers = 1 if side.streamed else world.size  # each takes whole batches: the result doesn't depend on world.size

    def read(step: int) -> tuple[int, np.ndarray, list[str]] | None:
        begin = (step * sharers + world.rank) * batch
        if world.rank >= sharers or begin >= side.n or side.reader is None:
            return None
        images = side.reader.at(begin, min(batch, side.n - begin))
        # Each digest includes shape and position, so that the sum of all digests identifies the images and their order.
        texts = [f"{begin + k} {image.shape} ".encode() + image.tobytes() for k, image in enumerate(images)]
        return begin, images, [hashlib.sha256(text).hexdigest() for text in texts]

    get = read if side.streamed else Prefetcher(read, depth=1).get
    for step in range(-(-side.n // (batch * sharers))):
        outputs = dict[str, Tensor]()
        digests = list[str]()
        with world.together():
            if part := get(step):
                begin, images, digests = part
                outputs = _features_of(images, opened, spatial, side.name, begin)
        yield outputs, digests
        progress(min((step + 1) * batch * sharers, side.n), side.n, "img", of=side.name)


def _features_of(images: np.ndarray, opened: Opened, spatial: bool, where: str, begin: int) -> dict[str, Tensor]:
    # Returns values [B, D], logits [B, K] if any, spatial_values [B, S] if `spatial`. where, begin: for messages.
    extractor = opened.extractor
    device = opened.world.device
    assert extractor
    precision = Precision(extractor.precision, device)
    with torch.inference_mode(), precision.applied(), precision.autocast():
        pixels = sent(torch.from_numpy(images), device).permute(0, 3, 1, 2)
        features, logits, maps = extractor.with_spatial(pixels) if spatial else (*extractor(pixels), None)
    named = {"values": features, "logits": logits, "spatial_values": maps}
    outputs = {name: tensor.cpu() for name, tensor in named.items() if tensor is not None}
    for tensor in outputs.values():
        usable = (tensor.abs() <= LARGEST_FEATURE).all(1)
        if not usable.all():
            raise DataError(
                f"{where}: features of image {begin + int(usable.int().argmin())} are not finite, or larger than "
                f"{LARGEST_FEATURE:g}; the extractor {extractor.name} doesn't suit these images; choose another --extractor"
            )
    return outputs
