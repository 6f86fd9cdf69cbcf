"""Samples and references: how they are opened and compared, and their features, extracted by all processes together."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from elbocli.core.estimate import FeatureMoments, StreamingFeatureMoments
from elbocli.core.metrics import Features
from elbocli.errors import DataError, FormatError
from elbocli.files.features import (
    LARGEST_FEATURE,
    SUFFIX,
    FeatureFacts,
    SavedFeatures,
    Statistics,
    is_pickle,
    is_statistics,
    read_features,
    read_statistics,
)
from elbocli.files.hashing import add_digests, file_sha256
from elbocli.images.samples import SampleReader, has_images, read_samples
from elbocli.nn.extractors import STRICT, Extractor
from elbocli.runtime.background import Ahead
from elbocli.runtime.device import Precision, sent
from elbocli.runtime.processes import World
from elbocli.runtime.progress import Progress


@dataclass(frozen=True)
class FeatureSource:
    """Images of which features are wanted: a reader of them, or features that were saved.

    alone: only the first process can read them, as they come through a pipe. ahead: a thread may read them, as they don't
    come through a pipe, where it might wait for ever. about: the facts that go with their
    features (n, preprocessing, …); with saved ones also extractor, weights_sha256 and images_sha256. labels: a class per
    image, where the file says.
    """

    name: str
    n: int
    about: FeatureFacts
    reader: SampleReader | None = None
    saved: SavedFeatures | None = None
    alone: bool = False
    ahead: bool = False
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
            labels, made, how = reader.labels, reader.made.facts(), reader.preprocessing
    name, shape = world.of_first(("", (0, 0, 0, 0)) if reader is None else (reader.name, reader.shape))
    size = shape[1] if shape[1] == shape[2] else list(shape[1:3])
    about = FeatureFacts(n=shape[0], preprocessing={"image_size": size, "channels": shape[3], **how}, made=made or None)
    ahead = isinstance(source, Path) and (source.is_file() or source.is_dir())
    return FeatureSource(name, shape[0], about, reader, None, streamed, ahead, labels)


def described(source: FeatureSource, extractor: Extractor | None) -> FeatureFacts:
    """A source's `about` with the network that its features are of."""
    if source.saved is not None or extractor is None:
        return source.about
    return structs.replace(
        source.about,
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        feature_precision=extractor.precision,
    )


def see(
    source: FeatureSource,
    extractor: Extractor | None,
    batch: int,
    world: World,
    keep: frozenset[str],
    what: str,
    check: Callable[[dict[str, Tensor]], None] = lambda found: None,
    spatial: bool = False,
) -> Generator[Progress, None, Seen]:
    """Features of a source. keep: `values`, `logits`, `spatial_values`, of every image, where there are any. what: for the
    progress bar. check: raises an ElboError for a first batch's values and logits that won't do, before others are extracted.
    spatial: moments of spatial features, too.

    Every process takes whole batches, so that the numbers don't depend on how many there are. Raises DataError.
    """
    own, of_spatial, digests = StreamingFeatureMoments(), StreamingFeatureMoments(), dict[int, list[str]]()
    if source.saved is not None or extractor is None:
        assert source.saved is not None
        saved = source.saved
        for values in saved.features.split(own.ROWS):
            own.add(values.numpy())
        for values in saved.spatial.split(own.ROWS) if saved.spatial is not None and spatial else ():
            of_spatial.add(values.numpy())
        features = Features(
            own.moments(),
            saved.features,
            saved.logits,
            source.labels,
            of_spatial.moments() if of_spatial.n else None,
            saved.spatial,
            device=world.device,
        )
        check({"values": saved.features} | ({} if saved.logits is None else {"logits": saved.logits}))
        return Seen(source.name, features, structs.replace(saved.about, n=source.n))
    held: dict[str, Tensor] = {}
    filled = 0
    sharers = 1 if source.alone else world.size
    batch = batch if source.reader is None else source.reader.batch(batch)

    def read(step: int) -> np.ndarray | None:
        """This process's images of a step, and their digests; None where there are none left for it."""
        begin = (step * sharers + world.rank) * batch
        if world.rank >= sharers or begin >= source.n or source.reader is None:
            return None
        images = source.reader.at(begin, min(batch, source.n - begin))
        digests[step] = [_digest(begin + k, image) for k, image in enumerate(images)]
        return images

    get = Ahead(read, depth=1).get if source.ahead else read
    for step, start in enumerate(range(0, source.n, batch * sharers)):
        begin = start + world.rank * batch
        found = None
        with world.together():
            if (images := get(step)) is not None:
                found = _extracted(images, extractor, world.device, source.name, begin, spatial)
                if not own.n:
                    check(found)
                own.add(found["values"].numpy())
                if spatial:
                    of_spatial.add(found["spatial_values"].numpy())
        wanted = None if found is None else {key: tensor for key, tensor in found.items() if key in keep}
        parts = world.all(wanted) if keep else []
        for part in filter(None, parts if world.first else []):
            rows = range(filled, filled + len(next(iter(part.values()))))
            for key, tensor in part.items():
                whole = held.setdefault(key, tensor.new_empty(source.n, *tensor.shape[1:]))
                whole[rows.start : rows.stop] = tensor
            filled = rows.stop
        yield Progress(min(start + batch * sharers, source.n), source.n, "img", values={"of": what})
    moments = _of_all(own, world)
    maps = _of_all(of_spatial, world) if spatial else None
    digest = add_digests(world.all(add_digests(each for step in digests.values() for each in step)))
    seen = Features(
        moments,
        held.get("values"),
        held.get("logits"),
        source.labels,
        maps,
        held.get("spatial_values"),
        device=world.device,
    )
    return Seen(
        source.name, seen if world.first else None, structs.replace(described(source, extractor), images_sha256=digest)
    )


def _of_all(own: StreamingFeatureMoments, world: World) -> FeatureMoments:
    """Moments of the vectors that all processes have seen. Needs one."""
    parts = [part for part in world.all(own.moments() if own.n else None) if part is not None]
    return sum(parts[1:], parts[0])


def _extracted(
    images: np.ndarray, extractor: Extractor, device: torch.device, name: str, begin: int, spatial: bool
) -> dict[str, Tensor]:
    """values [B, D], logits [B, K] where there are any, and spatial_values [B, S] if asked for.

    Raises DataError when they are not finite, or absurd.
    """
    precision = Precision(extractor.precision, device)
    with torch.inference_mode(), precision.applied(), precision.autocast():
        pixels = sent(torch.from_numpy(images), device).permute(0, 3, 1, 2)
        features, logits, maps = extractor.with_spatial(pixels) if spatial else (*extractor(pixels), None)
    named = {"values": features, "logits": logits, "spatial_values": maps}
    found = {name: tensor.cpu() for name, tensor in named.items() if tensor is not None}
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


@dataclass(frozen=True)
class Reference:
    """Images or features, statistics, or (as in ADM's files) statistics of all images beside some of the images.

    sha256: of a file of statistics.
    """

    path: Path
    source: FeatureSource | None
    statistics: Statistics | None
    sha256: str | None

    @property
    def layout(self) -> tuple[int, bool] | None:
        """(Features of an image, whether there are spatial ones), where that is known before its images are seen."""
        if self.statistics is not None:
            return len(self.statistics.mu), self.statistics.spatial is not None
        saved = None if self.source is None else self.source.saved
        return None if saved is None else (saved.features.shape[1], saved.spatial is not None)

    def fingerprint(self, extractor: Extractor | None) -> dict[str, Any]:
        """Return the known facts about how the features were made."""
        images = {} if self.source is None else fingerprint(described(self.source, extractor))
        return {**images, **({} if self.statistics is None else fingerprint(self.statistics.about))}

    def sees_images(self, features: bool) -> bool:
        """Whether a network must see its images. features: whether theirs are needed."""
        return self.source is not None and (self.statistics is None or features)

    def see(
        self, extractor: Extractor | None, batch: int, world: World, features: bool, spatial: bool
    ) -> Generator[Progress, None, Seen]:
        """Its statistics, those of spatial features if asked for; its features too, where they are needed."""
        if self.source is None or not self.sees_images(features):
            assert self.statistics is not None
            held = Features(self.statistics, spatial=self.statistics.spatial)
            return Seen(str(self.path), held, structs.replace(self.statistics.about, sha256=self.sha256))
        keep = frozenset(["values"] if features else [])
        images_say = spatial and self.statistics is None
        seen = yield from see(self.source, extractor, batch, world, keep, "reference", spatial=images_say)
        if self.statistics is None or seen.features is None:
            return seen
        about = self.statistics.about
        how = seen.about.preprocessing if about.preprocessing is None else about.preprocessing
        about = structs.replace(about, preprocessing=how, sha256=self.sha256, images=self.source.n)
        return Seen(
            str(self.path), replace(seen.features, moments=self.statistics, spatial=self.statistics.spatial), about
        )


def open_reference(path: Path, stack: contextlib.ExitStack, world: World) -> Reference:
    """A dataset or other images, saved features, or statistics. Raises FormatError."""
    if path.is_file() and is_pickle(path):
        raise FormatError(
            f"{path}: a pickle, which is never opened, because that can run code; make an .npz of its mu and sigma "
            "(numpy.savez(path, mu=mu, sigma=sigma)), or name the images themselves"
        )
    if not is_statistics(path):
        return Reference(path, open_feature_source(path, stack, world), None, None)
    images = open_feature_source(path, stack, world) if has_images(path) else None
    return Reference(path, images, read_statistics(path), file_sha256(path))


def fingerprint(about: FeatureFacts) -> dict[str, Any]:
    """The part of a file's `about` that must be the same on both sides: size, channels, crop, filter, network, weights and
    precision, which is STRICT in files of an elbo that had no other.
    """
    network = {"extractor": about.extractor, "weights_sha256": about.weights_sha256}
    precision = about.feature_precision or (STRICT if about.extractor else None)
    found = {**(about.preprocessing or {}), **network, "feature_precision": precision}
    return {key: value for key, value in found.items() if value is not None}
