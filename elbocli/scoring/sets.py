"""Sets of images and sets of features: the inputs of an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from msgspec import structs

from elbocli.data.samples import BlackRows, SampleReader, read_samples
from elbocli.files.features import FeatureFacts, Statistics, read_features, read_statistics
from elbocli.files.reading import file_sha256
from elbocli.files.recognise import arrays_in, recognise
from elbocli.files.sample_files import SamplesAbout
from elbocli.runtime.processes import ALONE, World
from elbocli.scoring.metrics import Features

Source = Path | IO[bytes] | SampleReader
"""Images or features: a file or folder, an NPY stream, or an open reader, as `array_reader` returns."""


def class_sizes(labels: np.ndarray | None) -> list[int]:
    """Return the number of images of each non-empty class; [] without labels."""
    return [] if labels is None else np.unique(labels, return_counts=True)[1].tolist()


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images whose features can be extracted.

    about: how the images and, once the extractor is known, the features are made.
    labels: class of each image, [N]; None: unknown.
    streamed: whether only rank 0 reads the images, once and in order; on other ranks the reader's images are black.
    statistics: mean and covariance of the features of further images, stored beside these (ADM's references); None: not stored.
    """

    reader: SampleReader
    about: FeatureFacts
    labels: np.ndarray | None
    streamed: bool = False
    statistics: Statistics | None = None

    @classmethod
    def of(cls, reader: SampleReader, streamed: bool = False) -> ImageSet:
        """Return the images of a reader."""
        n, height, width, channels = reader.shape
        size = {"image_size": height if height == width else [height, width], "channels": channels}
        about = FeatureFacts(n=n, preprocessing={**size, **reader.preprocessing}, made=reader.made.facts() or None)
        return cls(reader, about, reader.labels, streamed)

    @property
    def name(self) -> str:
        """File, for messages."""
        return self.reader.name

    @property
    def n(self) -> int:
        """Number of images."""
        return self.reader.shape[0]

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes; (): unknown."""
        return self.reader.class_names

    def with_labels(self, labels: np.ndarray | None) -> ImageSet:
        """Return a copy with other labels, [N]."""
        return replace(self, labels=labels)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of images, from a file or extracted.

    name: file, for messages. about: how images and features were made. class_names: (): unknown.
    """

    name: str
    about: FeatureFacts
    features: Features
    class_names: Sequence[str] = ()

    @classmethod
    def of_statistics(cls, name: str, statistics: Statistics, device: torch.device | str = "cpu") -> FeatureSet:
        """Return a set without features of single images."""
        spatial = statistics.spatial
        features = Features(torch.empty(0, len(statistics.mu)), moments=statistics, spatial_moments=spatial, device=device)
        return cls(name, statistics.about, features)

    @property
    def labels(self) -> np.ndarray | None:
        """Class of each image, [N]; None: unknown."""
        return self.features.labels

    @property
    def n(self) -> int:
        """Number of images whose features are known; 0: only their mean and covariance."""
        return len(self.features.values)

    def with_labels(self, labels: np.ndarray | None) -> FeatureSet:
        """Return a copy with other labels, [N]."""
        return replace(self, features=self.features.with_labels(labels))


SomeSet = ImageSet | FeatureSet


def open_set(source: Source, stack: contextlib.ExitStack, world: World = ALONE) -> SomeSet:
    """Open images or saved features until `stack` closes. Raises FormatError, DataError."""
    if isinstance(source, SampleReader):
        return ImageSet.of(source)
    if isinstance(source, Path) and recognise(source) == "features":
        saved = read_features(source)
        labels = None if saved.labels is None else saved.labels.numpy()
        features = Features(saved.features, saved.logits, saved.spatial, labels, device=world.device)
        return FeatureSet(str(source), structs.replace(saved.about, n=len(saved.features)), features)
    return open_images(source, stack, world)


def open_images(source: Path | IO[bytes], stack: contextlib.ExitStack, world: World = ALONE) -> ImageSet:
    """Open images until `stack` closes. Raises FormatError, DataError."""
    streamed = not isinstance(source, Path) or source.is_fifo()
    if not streamed:
        with world.together():
            return ImageSet.of(stack.enter_context(read_samples(source)))
    black: SampleReader | None = None
    with world.together():
        if world.first:
            reader = stack.enter_context(read_samples(source))
            black = replace(reader, rows=BlackRows(reader.shape))
    black = world.broadcast(black)
    assert black is not None  # rank 0 has one
    return ImageSet.of(reader if world.first else black, streamed=True)


def open_reference(source: Source, stack: contextlib.ExitStack, world: World = ALONE) -> SomeSet:
    """Open images, saved features or statistics until `stack` closes. Raises FormatError, DataError."""
    if not isinstance(source, Path) or recognise(source) != "statistics":
        return open_set(source, stack, world)
    statistics = read_statistics(source)
    about = structs.replace(statistics.about, sha256=file_sha256(source))
    if "arr_0" not in arrays_in(source):
        return FeatureSet.of_statistics(str(source), statistics._replace(about=about), world.device)
    images = open_images(source, stack, world)
    about = structs.replace(about, preprocessing=about.preprocessing or images.about.preprocessing, images=images.n)
    return replace(images, about=about, statistics=statistics)


def array_reader(images: np.ndarray, labels: np.ndarray | None = None, name: str = "the array") -> SampleReader:
    """Return a reader of images, uint8 [N, H, W, C]. labels: class of each image, [N]; None: unknown."""
    return SampleReader(name, images, labels, SamplesAbout(), [], {})
