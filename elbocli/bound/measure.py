"""A trained run and the images of a dataset that it is asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elbocli.bound.draws import Draws, Images, MeasuredNetwork
from elbocli.core.adaptive import ErrorMoments, fit_schedule
from elbocli.core.schedule import Schedule, check_range, make_schedule, parse_schedule
from elbocli.core.streams import Stream
from elbocli.core.weighting import Weighting
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.losslog import read_logs
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.nn.denoiser import cast_weights
from elbocli.run.content import check_content
from elbocli.run.dataset_place import dataset_of
from elbocli.run.open import TrainedRun, open_run
from elbocli.runtime.device import Precision, choose_device
from elbocli.train.batches import Posterior
from elbocli.version import __version__

DEFAULT_IMAGES = 1000
ALL = 10**12
FLOOR = 0.1
FITTED = "fitted"
PIXELS = 256 * 3072
"""Numbers that the network sees at a time, unless told otherwise."""


@dataclass(frozen=True)
class MeasureSettings:
    """Settings of a measurement.

    images: how many (None: DEFAULT_IMAGES, or all if fewer; ALL). draws: noise levels per image, an even number.
    weights, average: as open_run takes them. batch: network inputs at a time; None is 256, fewer for images larger than
    32 pixels in colour. logsnr_min, logsnr_max: None is the run's.
    """

    images: int | None = None
    draws: int = 16
    seed: int = 0
    batch: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    weights: str = "ema"
    average: str = ""
    logsnr_min: float | None = None
    logsnr_max: float | None = None


@dataclass(frozen=True)
class Measurement:
    """A run, a dataset that fits it, which of its images to ask about (rows), and from which logsnr to which."""

    settings: MeasureSettings
    trained: TrainedRun
    dataset: Dataset
    rows: np.ndarray
    low: float
    high: float
    device: torch.device

    @property
    def precision(self) -> Precision:
        """The network's."""
        return Precision(self.settings.precision, self.device)

    @property
    def dimensions(self) -> int:
        """D, numbers in an image."""
        return int(np.prod(self.dataset.shape[1:]))

    @property
    def conditional(self) -> bool:
        """Whether the network is told classes."""
        return self.trained.network.config.num_classes > 0

    @cached_property
    def denoiser(self) -> MeasuredNetwork:
        """The run's network, no longer to be trained."""
        batch = self.settings.batch or max(8, min(256, PIXELS // self.dimensions))
        network, prediction, name = self.trained.network, self.trained.prediction, str(self.trained.checkpoint.path)
        cast_weights(network, self.precision)
        how = self.device, self.settings.precision, batch, name
        return MeasuredNetwork(network, prediction, self.low, self.high, *how)

    def __iter__(self) -> Iterator[Images]:
        """Go through the chosen images, as many at a time as the network sees all draws of; labels where it is told
        classes. It can be done again.
        """
        size = max(1, self.denoiser.batch // self.settings.draws)
        for start in range(0, len(self.rows), size):
            rows = self.rows[start : start + size]
            labels = torch.from_numpy(self.dataset.labels[rows]) if self.conditional else None
            yield Images(self.content(rows), labels, rows.tolist())

    def content(self, rows: np.ndarray) -> torch.Tensor:
        """Pixels, or latents as the network sees them, drawn from their mean and std: the same draw of an image each time."""
        stored = torch.from_numpy(self.dataset.batch(rows))
        space = self.dataset.latent_space
        if space is None:
            return stored
        eta = Stream(self.settings.seed, "bound-posterior").normal(
            rows.tolist(), (stored.shape[1] // 2, *stored.shape[2:])
        )
        return Posterior(space, torch.device("cpu")).at(stored, eta)

    def draws(self, weighting: Weighting, schedule: Schedule, purpose: str) -> Iterator[Draws]:
        """The chosen images with their draws. Another purpose is another independent set."""
        return self.denoiser.draws(self, weighting, schedule, self.settings.draws, self.settings.seed, purpose)

    def fitted(self, weighting: Weighting, criterion: str = "second-moment", floor: float = FLOOR) -> Schedule:
        """The schedule that samples this weighting well, by the run's own loss log; uniform where that can't say."""
        with suppress(DataError, FormatError):
            log = read_logs([self.trained.path])
            if float(log.edges[0]) <= self.low and self.high <= float(log.edges[-1]):
                schedule = fit_schedule(ErrorMoments.of_sums(log.edges, log.sums), weighting, criterion, floor)
                return make_schedule(schedule.curve, f"{FITTED}:{criterion}", self.low, self.high)
        return parse_schedule("uniform", self.low, self.high)

    def weightings(self, specs: tuple[str, ...]) -> list[Weighting]:
        """Weightings as the user wrote them; the run's own when none is. Raises ElboError."""
        size = self.trained.network.config.image_size
        return [resolve_weighting(spec, size=size) for spec in specs] or [self.trained.weighting()]

    def schedule(self, spec: str, weighting: Weighting) -> Schedule:
        """A schedule as the user wrote it, or `fitted[:CRITERION]` from the run's log; '' is `fitted()`. Raises ElboError."""
        if not spec:
            return self.fitted(weighting)
        name, _, criterion = spec.partition(":")
        if name == FITTED:
            return self.fitted(weighting, criterion or "loss", floor=self.trained.settings.floor)
        return resolve_schedule(spec, self.low, self.high, clip=True, size=self.trained.network.config.image_size)

    def about(self) -> dict[str, Any]:
        """Facts that every result says about itself."""
        return {
            "run": str(self.trained.path),
            "checkpoint": self.trained.checkpoint.path.name,
            **self.trained.about,
            "dataset": str(self.dataset.path),
            "payload_sha256": self.dataset.attributes.payload_sha256,
            "n_dataset": len(self.dataset),
            "conditional": self.conditional,
            "dimensions": self.dimensions,
            "logsnr_min": self.low,
            "logsnr_max": self.high,
            "precision": str(self.precision),
            "seed": self.settings.seed,
            "elbo_version": __version__,
        }


def open_measurement(
    path: Path, data: Path | None, settings: MeasureSettings, warn: Callable[[str], None]
) -> Measurement:
    """A run at `path`, asked about a dataset (None: its own).

    Raises UsageError, DataError and FormatError when they don't fit each other.
    """
    device = choose_device(settings.device)
    trained = open_run(path, device, warn, settings.weights, settings.average)
    dataset = _open_data(trained, data)
    known = trained.settings.logsnr_min, trained.settings.logsnr_max
    asked = settings.logsnr_min, settings.logsnr_max
    low, high = (usual if own is None else own for usual, own in zip(known, asked))
    check_range(low, high)
    if low < known[0] or high > known[1]:
        warn(f"logsnr {low:g} to {high:g} goes beyond the {known[0]:g} to {known[1]:g} the network was trained on")
    count = len(dataset)
    wanted = DEFAULT_IMAGES if settings.images is None else settings.images
    if settings.images not in (None, ALL) and wanted > count:
        warn(f"{dataset.path} has {count} images, not {wanted}: all are used")
    if min(wanted, count) < 2:
        raise UsageError("a standard error needs at least two images")
    rows = Stream(settings.seed, "bound-images").permutation(0, count)[: min(wanted, count)]
    return Measurement(settings, trained, dataset, rows, low, high, device)


def _open_data(trained: TrainedRun, data: Path | None) -> Dataset:
    known = trained.data
    if data is None and known.path is None:
        raise UsageError(
            f"{trained.path}: was imported, and has no dataset of its own; name one, DATA.h5, after the run"
        )
    path = data or dataset_of(known, trained.path)
    dataset = Dataset(path, latents=True)
    dataset.check_square()
    check_content(dataset.identity(), dataset.kind, known, trained.path)
    if data is None and dataset.identity().payload_sha256 != known.payload_sha256:
        raise DataError(f"{path}: has changed since the run was trained on it; name the dataset to use")
    config = trained.network.config
    shape, expected = (dataset.image_size, dataset.channels), (config.image_size, config.image_channels)
    if shape != expected:
        raise UsageError(f"{path}: images have (side, channels) = {shape}, the run's have {expected}")
    if config.num_classes and dataset.num_classes > config.num_classes:
        raise UsageError(
            f"{path}: has {dataset.num_classes} classes, the run knows {config.num_classes}; 'elbo prep --classes FILE' "
            "packs chosen ones"
        )
    return dataset
