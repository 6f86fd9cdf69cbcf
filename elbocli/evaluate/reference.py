"""The reference that samples are scored against, and whether it was made as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from elbocli.core.metrics import Features
from elbocli.errors import FormatError
from elbocli.evaluate.extract import FeatureSource, Seen, described, open_feature_source, see
from elbocli.files.feature_facts import FeatureFacts
from elbocli.files.hashing import file_sha256
from elbocli.files.statistics import Statistics, is_pickle, is_statistics, read_statistics
from elbocli.images.samples import has_images
from elbocli.nn.extractors import STRICT, Extractor
from elbocli.runtime.processes import World
from elbocli.runtime.progress import Progress


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
    def class_names(self) -> list[str]:
        """Names of the classes of a dataset that has several."""
        return [] if self.source is None or self.source.reader is None else list(self.source.reader.class_names)

    @property
    def width(self) -> int | None:
        """Number of features of an image, where that is known beforehand."""
        if self.statistics is not None:
            return len(self.statistics.mu)
        return None if self.source is None or self.source.saved is None else self.source.saved.features.shape[1]

    @property
    def has_spatial(self) -> bool | None:
        """Whether it has spatial features; None where that is for the network to say, which has yet to see its images."""
        if self.statistics is not None:
            return self.statistics.spatial is not None
        return None if self.source is None or self.source.saved is None else self.source.saved.spatial is not None

    def fingerprint(self, extractor: Extractor | None) -> dict[str, Any]:
        """Facts on how it was made, or will be, as far as they are known."""
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


def mismatches(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    """Keys of fingerprints that both know and that differ, with both values."""
    return {key: [mine[key], other[key]] for key in mine if key in other and mine[key] != other[key]}
