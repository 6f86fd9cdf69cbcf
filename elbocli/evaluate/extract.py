"""Images and references as they are opened to be scored, and their features, extracted by all processes together."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.feature_moments import StreamingFeatureMoments
from elbocli.core.metrics import Features
from elbocli.errors import DataError
from elbocli.files.feature_facts import LARGEST_FEATURE, FeatureFacts
from elbocli.files.features import SUFFIX, SavedFeatures, read_features
from elbocli.files.hashing import add_digests
from elbocli.images.samples import SampleReader, read_samples
from elbocli.nn.extractors import Extractor
from elbocli.runtime.device import Precision, sent
from elbocli.runtime.processes import World
from elbocli.runtime.progress import Progress

PRECISION = "fp32"
"""The one in which features are extracted: numbers that others publish are of that."""


@dataclass(frozen=True)
class FeatureSource:
    """Images of which features are wanted: a reader of them, or features that were saved.

    alone: only the first process can read them, as they come through a pipe. about: the facts that go with their
    features (n, preprocessing, …); with saved ones also extractor, weights_sha256 and images_sha256. labels: a class per
    image, where the file says.
    """

    name: str
    n: int
    about: FeatureFacts
    reader: SampleReader | None = None
    saved: SavedFeatures | None = None
    alone: bool = False
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Seen:
    """A source after its extraction. features: None in all processes but the first. about: as a file of them says it."""

    name: str
    features: Features | None
    about: FeatureFacts


def open_feature_source(source: Path | IO[bytes], stack: contextlib.ExitStack, world: World) -> FeatureSource:
    """Saved features, or images from a path or a binary stream, which only the first process reads.

    Raises FormatError, DataError.
    """
    if isinstance(source, Path) and source.suffix == SUFFIX:
        saved = read_features(source)
        labels = None if saved.labels is None else saved.labels.numpy()
        return FeatureSource(str(source), len(saved.features), saved.about, saved=saved, labels=labels)
    streamed = not isinstance(source, Path)
    reader, labels, made, how = None, None, dict[str, Any](), dict[str, Any]()
    with world.together():
        if world.first or not streamed:
            reader = stack.enter_context(read_samples(source))
            labels, made, how = reader.labels, reader.made.json(), reader.preprocessing
    name, shape = world.of_first(("", (0, 0, 0, 0)) if reader is None else (reader.name, reader.shape))
    size = shape[1] if shape[1] == shape[2] else list(shape[1:3])
    about = FeatureFacts(n=shape[0], preprocessing={"image_size": size, "channels": shape[3], **how}, made=made or None)
    return FeatureSource(name, shape[0], about, reader, None, streamed, labels)


def described(source: FeatureSource, extractor: Extractor | None) -> FeatureFacts:
    """A source's `about` with the network that its features are of."""
    if source.saved is not None or extractor is None:
        return source.about
    return replace(source.about, extractor=extractor.name, weights_sha256=extractor.weights_sha256)


def see(
    source: FeatureSource,
    extractor: Extractor | None,
    batch: int,
    world: World,
    keep: frozenset[str],
    what: str,
    check: Callable[[dict[str, Tensor]], None] = lambda found: None,
) -> Generator[Progress, None, Seen]:
    """Features of a source. keep: `values`, `logits`, of every image, where there are any. what: for the progress bar.
    check: raises an ElboError for a batch's values and logits that won't do, before all others are extracted.

    Every process takes whole batches, so that the numbers don't depend on how many there are. Raises DataError.
    """
    own, digests = StreamingFeatureMoments(), list[str]()
    if source.saved is not None or extractor is None:
        assert source.saved is not None
        saved = source.saved
        for values in saved.features.split(own.ROWS):
            own.add(values.numpy())
        features = Features(own.moments(), saved.features, saved.logits, source.labels)
        check({"values": saved.features} | ({} if saved.logits is None else {"logits": saved.logits}))
        return Seen(source.name, features, replace(saved.about, n=source.n))
    held: dict[str, Tensor] = {}
    filled = 0
    sharers = 1 if source.alone else world.size
    batch = batch if source.reader is None else source.reader.batch(batch)
    for start in range(0, source.n, batch * sharers):
        begin = start + world.rank * batch
        found = None
        with world.together():
            if world.rank < sharers and begin < source.n and source.reader is not None:
                images = source.reader.at(begin, min(batch, source.n - begin))
                digests += [_digest(begin + k, image) for k, image in enumerate(images)]
                found = _extracted(images, extractor, world.device, source.name, begin)
                check(found)
                own.add(found["values"].numpy())
        wanted = None if found is None else {key: tensor for key, tensor in found.items() if key in keep}
        parts = world.all(wanted) if keep else []
        for part in filter(None, parts if world.first else []):
            rows = range(filled, filled + len(next(iter(part.values()))))
            for key, tensor in part.items():
                whole = held.setdefault(key, tensor.new_empty(source.n, *tensor.shape[1:]))
                whole[rows.start : rows.stop] = tensor
            filled = rows.stop
        yield Progress(min(start + batch * sharers, source.n), source.n, "img", values={"of": what})
    moments = [part for part in world.all(own.moments() if own.n else None) if part is not None]
    digest = add_digests(world.all(add_digests(digests)))
    seen = Features(sum(moments[1:], moments[0]), labels=source.labels, **held) if world.first else None
    return Seen(source.name, seen, replace(described(source, extractor), images_sha256=digest))


def _extracted(
    images: np.ndarray, extractor: Extractor, device: torch.device, name: str, begin: int
) -> dict[str, Tensor]:
    """values [B, D], and logits [B, K] where there are any. Raises DataError when they are not finite, or absurd."""
    with torch.inference_mode(), Precision(PRECISION, device).applied():
        features, logits = extractor(sent(torch.from_numpy(images), device).permute(0, 3, 1, 2))
    found = {"values": features.cpu(), **({} if logits is None else {"logits": logits.cpu()})}
    for tensor in found.values():
        bad = (~(tensor.abs() <= LARGEST_FEATURE).all(1)).nonzero().flatten().tolist()
        if bad:
            raise DataError(
                f"{name}: features of image {begin + bad[0]} are not finite, or beyond "
                f"{LARGEST_FEATURE:g}; {extractor.name} doesn't suit these images"
            )
    return found


def _digest(index: int, image: np.ndarray) -> str:
    """sha256 of an image, its shape and its place: those of all images add up to a digest of them in their order."""
    digest = hashlib.sha256(f"{index} {image.shape} ".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
