"""Open an evaluation's samples and references, and extract their features on all ranks."""

import contextlib
import hashlib
from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from elbocli.core.frechet import NOTHING, StreamingFeatureMoments
from elbocli.core.metrics import Features
from elbocli.errors import DataError
from elbocli.evaluate.result import Pairs
from elbocli.files.features import (
    LARGEST_FEATURE,
    SUFFIX,
    FeatureFacts,
    SavedFeatures,
    Statistics,
    arrays_in,
    read_features,
    read_statistics,
)
from elbocli.files.reading import add_digests, file_sha256
from elbocli.images.samples import SampleReader, read_samples
from elbocli.nn.extractors import DEFAULT, PUBLISHED_INCEPTION, STRICT, Extractor
from elbocli.runtime.background import Ahead
from elbocli.runtime.device import Precision, sent
from elbocli.runtime.processes import ALONE, World
from elbocli.runtime.progress import progress


@dataclass(eq=False)
class FeatureSource:
    """An opened file of samples or of a reference.

    name: of the file, for messages. n: number of images or features; 0 for statistics alone.
    about: how images and features were made.
    reader, saved, statistics: None if not in the file.
    labels: class of each image, [n]; None: the file has no labels.
    streamed: whether the images are a stream, which only rank 0 reads, once and in order.
    features: set by `extract_features`; on other ranks than 0, without features per image.
    mismatch: differences of samples from the reference. deviates: their deviations from the protocol.
    """

    name: str
    n: int
    about: FeatureFacts
    reader: SampleReader | None = None
    saved: SavedFeatures | None = None
    statistics: Statistics | None = None
    labels: np.ndarray | None = None
    streamed: bool = False
    features: Features | None = None
    mismatch: Pairs = field(default_factory=dict)
    deviates: Pairs = field(default_factory=dict)

    @property
    def width(self) -> int | None:
        """Features per image; None for a file of images alone."""
        if self.statistics:
            return len(self.statistics.mu)
        return None if self.saved is None else self.saved.features.shape[1]

    def class_counts(self, named: bool = False) -> dict[Any, int]:
        """Return the number of images of each non-empty class; {} without labels. named: by the class's name, else number."""
        if self.labels is None:
            return {}
        labels, counts = np.unique(self.labels, return_counts=True)
        names = self.reader.class_names if named and self.reader else ()
        return {names[label] if names else label: count for label, count in zip(labels.tolist(), counts.tolist(), strict=True)}


def open_source(source: Path | IO[bytes], stack: contextlib.ExitStack, world: World = ALONE) -> FeatureSource:
    """Open saved features (a path) or images (a path or stream) until `stack` closes. Raises FormatError, DataError."""
    if isinstance(source, Path) and source.suffix == SUFFIX:
        saved = read_features(source)
        n, labels = len(saved.features), None if saved.labels is None else saved.labels.numpy()
        return FeatureSource(str(source), n, structs.replace(saved.about, n=n), saved=saved, labels=labels)
    streamed = not isinstance(source, Path) or source.is_fifo()
    opened: Any = None
    reader = None
    with world.together():
        if world.first or not streamed:
            reader = stack.enter_context(read_samples(source))
            opened = replace(source_of(reader), reader=None, streamed=streamed)
    return replace(world.of_first(opened), reader=reader)


def source_of(reader: SampleReader) -> FeatureSource:
    """Return images as a source of features."""
    n, height, width, channels = reader.shape
    size = {"image_size": height if height == width else [height, width], "channels": channels}
    about = FeatureFacts(n=n, preprocessing={**size, **reader.preprocessing}, made=reader.made.facts() or None)
    return FeatureSource(reader.name, n, about, reader, labels=reader.labels)


def open_reference(path: Path, stack: contextlib.ExitStack, world: World = ALONE) -> FeatureSource:
    """Open a reference (images, features or statistics) until `stack` closes. Raises FormatError, DataError."""
    arrays = arrays_in(path)
    if not {"mu", "sigma"} <= arrays:
        return open_source(path, stack, world)
    statistics = read_statistics(path)
    about = structs.replace(statistics.about, sha256=file_sha256(path))
    if "arr_0" not in arrays:
        return FeatureSource(str(path), 0, about, statistics=statistics)
    images = open_source(path, stack, world)
    about = structs.replace(about, preprocessing=about.preprocessing or images.about.preprocessing, images=images.n)
    return replace(images, about=about, statistics=statistics)


def extract_features(
    source: FeatureSource,
    extractor: Extractor | None,
    batch: int,
    world: World,
    keep: Set[str],
    check: Callable[[dict[str, Tensor], FeatureSource], None] = lambda found, source: None,
    spatial: bool = False,
) -> None:
    """Extract features on all ranks, and set `source.features`. A second call does nothing.

    extractor: None if the source has no images.
    batch: number of images at a time, on each rank.
    keep: features to keep for each image: `values`, `logits`, `spatial_values`.
    check: function of the first batch's features and the source; raises an ElboError for unsuitable features.
    spatial: whether to compute mean and covariance of spatial features, too.
    Raises DataError: when features are not finite or too large.
    """
    statistics, saved = source.statistics, source.saved
    if source.features:
        return
    if statistics and not keep:
        source.features = Features(statistics, spatial=statistics.spatial)
        source.about = structs.replace(source.about, images=None)
        return
    names = ["values", "spatial_values"] if spatial and not statistics else ["values"]
    sums = {name: StreamingFeatureMoments() for name in names}
    held, digests, filled = dict[str, Tensor](), list[str](), 0
    if saved:  # each rank has read all saved features, and works alone
        world, batch = replace(ALONE, device=world.device), StreamingFeatureMoments.ROWS
    batch = world.of_first(source.reader.batch(batch) if source.reader else batch)
    sharers = 1 if source.streamed else world.size  # each takes whole batches: the result doesn't depend on world.size

    def read(step: int) -> tuple[int, np.ndarray, list[str]] | None:
        begin = (step * sharers + world.rank) * batch
        if world.rank >= sharers or begin >= source.n or source.reader is None:
            return None
        images = source.reader.at(begin, min(batch, source.n - begin))
        # Each digest includes shape and position, so that the sum of all digests identifies the images and their order.
        told = [f"{begin + k} {image.shape} ".encode() + image.tobytes() for k, image in enumerate(images)]
        return begin, images, [hashlib.sha256(each).hexdigest() for each in told]

    get = read if source.streamed else Ahead(read, depth=1).get
    for step, start in enumerate(range(0, source.n, batch * sharers)):
        part: dict[str, Tensor] = {}
        with world.together():
            if saved:
                whole = {"values": saved.features, "logits": saved.logits, "spatial_values": saved.spatial}
                part = {name: tensor[start : start + batch] for name, tensor in whole.items() if tensor is not None}
            elif extractor and (task := get(step)):
                begin, images, own = task
                digests += own
                part = _features_of(images, extractor, world.device, source.name, begin, spatial)
            if part and not sums["values"].n:
                check(part, source)
            for name, moments in sums.items() if part else ():
                moments.add(part[name].numpy())
        for part in world.all({name: part[name] for name in keep if name in part}) if keep else ():
            for name, rows in part.items() if world.first else ():
                all_rows = held.setdefault(name, rows.new_empty(source.n, *rows.shape[1:]))
                all_rows[filled : filled + len(rows)] = rows
            filled += len(next(iter(part.values()), ()))
        progress(min(start + batch * sharers, source.n), source.n, "img", of=source.name)
    if not statistics and not saved:
        source.about = structs.replace(source.about, images_sha256=add_digests(world.all(add_digests(digests))))
    totals: dict[str, Any] = {name: sum(world.all(own.moments()), NOTHING) for name, own in sums.items()}
    if statistics:
        totals = {"values": statistics, "spatial_values": statistics.spatial}
    spatial_total = totals.get("spatial_values")
    source.features = Features(totals["values"], labels=source.labels, spatial=spatial_total, device=world.device, **held)


def _features_of(
    images: np.ndarray, extractor: Extractor, device: torch.device, where: str, begin: int, spatial: bool
) -> dict[str, Tensor]:
    # Returns values [B, D], logits [B, K] if any, spatial_values [B, S] if `spatial`. For errors: where, begin.
    precision = Precision(extractor.precision, device)
    with torch.inference_mode(), precision.applied(), precision.autocast():
        pixels = sent(torch.from_numpy(images), device).permute(0, 3, 1, 2)
        features, logits, maps = extractor.with_spatial(pixels) if spatial else (*extractor(pixels), None)
    named = {"values": features, "logits": logits, "spatial_values": maps}
    found = {name: tensor.cpu() for name, tensor in named.items() if tensor is not None}
    for tensor in found.values():
        usable = (tensor.abs() <= LARGEST_FEATURE).all(1)
        if not usable.all():
            raise DataError(
                f"{where}: features of image {begin + int(usable.int().argmin())} are not finite, or larger than "
                f"{LARGEST_FEATURE:g}; the extractor {extractor.name} doesn't suit these images; choose another --extractor"
            )
    return found


def naming_network(about: FeatureFacts) -> str | None:
    """Return the extractor's name, for names of scores; None for the published Inception in fp32, whose scores omit it."""
    published = about.extractor == DEFAULT and str(about.weights_sha256).startswith(PUBLISHED_INCEPTION)
    return None if published and about.feature_precision in (None, STRICT) else str(about.extractor)


def fingerprint(about: FeatureFacts) -> dict[str, Any]:
    """Return the settings that samples and reference must share, where known."""
    found = {
        **(about.preprocessing or {}),
        "extractor": about.extractor,
        "weights_sha256": about.weights_sha256,
        # absent in files of earlier versions
        "feature_precision": about.feature_precision or (STRICT if about.extractor else None),
    }
    return {key: value for key, value in found.items() if value is not None}
