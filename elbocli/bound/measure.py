"""Measure the errors of a network on images at many noise levels."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.settings import BoundSettings
from elbocli.core.adaptive import ErrorMoments, fit_schedule
from elbocli.core.elbo import prior
from elbocli.core.objective import NetworkFunction, Objective
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule, check_range, make_schedule, parse_schedule
from elbocli.core.streams import Stream
from elbocli.core.weighting import Weighting, parse_weighting
from elbocli.errors import DataError, FormatError, NonFiniteError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.losslog import read_losslog
from elbocli.files.records import JSON
from elbocli.runs.examples import Examples, ImageBatch, draw_noise
from elbocli.runs.open import TrainedRun, check_alike, dataset_of, open_run
from elbocli.runtime.device import Precision, choose_device
from elbocli.runtime.progress import log, progress
from elbocli.version import __version__

FLOOR = 0.1
PIXELS = 256 * 3072  # values in a default batch: 256 images of 32 × 32 × 3
PLAIN = parse_weighting("elbo")
DEFAULTS = BoundSettings()


class Draws(NamedTuple):
    """Errors of a network on B images at 2K noise levels each, float64 on the CPU.

    Axis 1 of [B, 2, K]: two independent sets of noise levels.
    logsnr: λ, [B, 2, K]. loss, error: weighted loss and ‖ε−ε̂‖², summed over dimensions, [B, 2, K].
    prior, reconstruction: terms of the bound, nats, [B].
    """

    logsnr: Tensor
    loss: Tensor
    error: Tensor
    prior: Tensor
    reconstruction: Tensor

    def shares(self, schedule: Schedule) -> Tensor:
        """Return terms in nats, [B, 2, K]; their sum over K estimates ½ ∫ ‖ε−ε̂‖² dλ. schedule: as for `draw`."""
        return 0.5 * self.error / schedule.density(self.logsnr) / self.error.shape[-1]


@dataclass(frozen=True)
class Measurement:
    """A network, and images to evaluate it on.

    network: (z [B, C, H, W] scaled as `prediction` says, logsnr [B], labels [B] or None) → output [B, C, H, W].
    low, high: range of λ. images: batches; iterated over several times.
    precision: of the network, with the device to compute on. batch_size: network inputs at a time.
    draws: noise levels per image, even.
    population: size of the dataset that the images come from; inf: images from a distribution.
    total: number of images, for progress messages; None: unknown.
    """

    network: NetworkFunction
    prediction: Prediction
    low: float
    high: float
    precision: Precision
    images: Iterable[ImageBatch]
    batch_size: int = 256
    draws: int = 16
    seed: int = 0
    name: str = "the network"
    population: float = math.inf
    total: int | None = None

    def draw_all(self, objective: Objective, purpose: str) -> Iterator[Draws]:
        """Yield the Draws of each batch, and report progress. objective, purpose: as for `draw`."""
        done = 0
        for batch in self.images:
            yield self.draw(batch, objective, purpose)
            done += len(batch.rows)
            progress(done, self.total, "img")

    @torch.inference_mode()
    def draw(self, images: ImageBatch, objective: Objective, purpose: str) -> Draws:
        """Evaluate the network on images at `draws` noise levels each.

        objective: its schedule draws the noise levels.
        purpose: name of the random stream; different purposes give independent draws.
        Raises UsageError: `draws` is odd or less than 2. Raises NonFiniteError: the loss is not finite.
        """
        if self.draws < 2 or self.draws % 2:
            raise UsageError(f"draws is {self.draws}; give an even number of 2 or more")
        logsnr = self._levels(images.rows, objective.schedule, purpose)
        batches = zip(images.copies(self.draws, self.batch_size), logsnr.flatten().split(self.batch_size))
        noise = Stream(self.seed, f"bound-noise-{purpose}")
        errors = torch.cat([self._errors(objective, copies, noise, levels) for copies, levels in batches], 1)
        loss, error = errors.view(2, *logsnr.shape)
        if not loss.isfinite().all():
            raise NonFiniteError(f"{self.name}: the loss is not finite; try precision fp32, or a narrower logsnr range")
        return Draws(logsnr, loss, error, prior(images.x, self.low), images.decoder_nats(self.high))

    def _levels(self, rows: Sequence[int], schedule: Schedule, purpose: str) -> Tensor:
        """Return two sets of evenly spaced λ(t) for each image, with a random offset each, [B, 2, draws / 2]."""
        offsets = Stream(self.seed, f"bound-t-{purpose}")
        comb = np.arange(self.draws // 2) / (self.draws // 2)
        t = (np.stack([offsets.uniform(row, 2) for row in rows])[:, :, None] + comb) % 1.0
        return schedule.logsnr(torch.from_numpy(t))

    def _errors(self, objective: Objective, copies: ImageBatch, noise: Stream, logsnr: Tensor) -> Tensor:
        """Return loss and error of n images at one λ each, [2, n], summed over dimensions."""
        x, labels = copies.placed(self.precision.device)
        eps = draw_noise(noise, copies.rows, x)
        with self.precision.applied(), self.precision.autocast():
            terms = objective.losses(self.network, x, eps, labels, logsnr)
        return torch.stack([terms.loss, terms.eps_mse]).double().cpu() * x[0].numel()


@dataclass(frozen=True, kw_only=True)
class RunMeasurement(Measurement):
    """A run's network, and images of a dataset to evaluate it on."""

    images: Examples
    trained: TrainedRun

    @property
    def dataset(self) -> Dataset:
        return self.images.dataset

    @property
    def rows(self) -> np.ndarray:
        return self.images.rows

    @property
    def dimensions(self) -> int:
        """Number of values of an image."""
        return math.prod(self.images.shape)

    def schedule(self, weighting: Weighting = PLAIN) -> Schedule:
        """Return a schedule of low variance of the loss, fitted to the run's loss log.

        weighting: of the loss. The schedule is uniform if the log is missing or doesn't cover the range of λ.
        """
        with suppress(DataError, FormatError):
            losses = read_losslog(self.trained.path)
            if float(losses.edges[0]) <= self.low and self.high <= float(losses.edges[-1]):
                moments = ErrorMoments.of_sums(losses.edges, losses.sums)
                # The density for the least variance with independent noise levels, which the bound has from image to image.
                fitted = fit_schedule(moments, weighting, FLOOR, moments.smoothed.second.sqrt())
                return make_schedule(fitted.curve, "fitted:second-moment", self.low, self.high)
        return parse_schedule("uniform", self.low, self.high)

    def about(self) -> dict[str, JSON]:
        """Return the run, dataset and settings as entries for the results of `elbo bound`."""
        return {
            "run": str(self.trained.path),
            "checkpoint": self.trained.checkpoint.path.name,
            **self.trained.about,
            "dataset": str(self.dataset.path),
            "payload_sha256": self.dataset.payload_sha256,
            "n_dataset": len(self.dataset),
            "conditional": self.images.conditional,
            "dimensions": self.dimensions,
            "logsnr_min": self.low,
            "logsnr_max": self.high,
            "precision": str(self.precision),
            "seed": self.seed,
            "elbo_version": __version__,
        }


def open_measurement(path: Path, data: Path | None, settings: BoundSettings = DEFAULTS) -> RunMeasurement:
    """Open a run, and a dataset to evaluate the run on. Raises UsageError, DataError, FormatError.

    path: run or checkpoint. data: dataset; None: the run's training dataset.
    """
    place = choose_device(settings.device)
    trained = open_run(path, place, settings.weights)
    dataset = open_data(trained, data)
    low = trained.settings.logsnr_min if settings.logsnr_min is None else settings.logsnr_min
    high = trained.settings.logsnr_max if settings.logsnr_max is None else settings.logsnr_max
    check_range(low, high)
    rows = Stream(settings.seed, "bound-images").permutation(0, len(dataset))[: settings.images]
    batch_size = settings.batch_size or max(8, min(256, PIXELS // math.prod(dataset.shape[1:])))
    posterior = Stream(settings.seed, "bound-posterior")
    conditional = trained.network.config.num_classes > 0
    size = max(1, batch_size // settings.draws)  # all draws of the images are one network batch
    measured = RunMeasurement(
        trained.network,
        trained.prediction,
        low,
        high,
        trained.precision(settings.precision, place),
        images=Examples(dataset, rows, conditional, posterior, size=size),
        batch_size=batch_size,
        draws=settings.draws,
        seed=settings.seed,
        name=str(trained.checkpoint.path),
        population=len(dataset),
        total=len(rows),
        trained=trained,
    )
    log.info(
        f"{measured.name}: evaluating on {len(rows)} of {len(dataset)} images, {measured.draws} noise levels each; "
        f"{place}, {measured.precision}"
    )
    return measured


def open_data(trained: TrainedRun, data: Path | None) -> Dataset:
    """Open a dataset to evaluate a run on. Raises UsageError, DataError, FormatError.

    data: dataset; None: the run's training dataset.
    """
    identity = trained.data
    config = trained.network.config
    if data is None and identity.path is None:
        raise UsageError(f"{trained.path}: names no dataset to evaluate on; add a dataset, as in RUN DATA.h5")
    dataset = Dataset(data or dataset_of(identity, trained.path), latents=True)
    dataset.check_square()
    check_alike(dataset.identity(), identity, trained.path, ["image_size", "channels"])
    if data is None and dataset.identity().differs(identity):
        raise DataError(f"{dataset.path}: has changed since the run was trained on it; restore it, or add a dataset: RUN DATA.h5")
    if dataset.num_classes > config.num_classes > 0:
        raise UsageError(
            f"{dataset.path}: has {dataset.num_classes} classes; choose a dataset with the run's {config.num_classes}"
        )
    return dataset
