"""A trained network asked how well it removes noise: images of a dataset, each at many λ, with their losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli import __version__
from elbocli.core.adaptive import ErrorMoments, fit_schedule
from elbocli.core.loss import denoising_losses, step_coefficients
from elbocli.core.schedule import Schedule, check_range, make_schedule, parse_schedule
from elbocli.core.streams import Stream
from elbocli.core.weighting import Weighting
from elbocli.errors import DataError, FormatError, NonFiniteError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.dataset_block import LATENTS
from elbocli.files.latents import ATTRIBUTES
from elbocli.files.losslog import read_logs
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.run.open import open_run
from elbocli.runtime.device import autocast, choose_device
from elbocli.train.batches import normalised

DEFAULT_IMAGES = 1000
ALL = 10**12
FLOOR = 0.1
MEASURED = "fitted:gradient"


@dataclass(frozen=True)
class MeasureSettings:
    """images: how many (None: DEFAULT_IMAGES, or all if fewer; ALL). draws: noise levels per image, an even number.

    weights, average: as open_run takes them. batch: network inputs at a time; None is 256, fewer for images larger than 32 pixels in colour.
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


class Draws(NamedTuple):
    """Some images and what happened to them. pixels: [c, H, W, C] uint8. logsnr, loss, error: [c, 2, draws/2] float64 on the CPU.

    The two halves of an image's draws are independent; within a half, t is a comb with one uniform offset.
    loss, error: summed over dimensions; error is ‖ε−ε̂‖².
    """

    pixels: Tensor
    logsnr: Tensor
    loss: Tensor
    error: Tensor

    @property
    def x(self) -> Tensor:
        """The images in [-1, 1], float64 on the CPU."""
        return self.pixels.double() / 127.5 - 1


class Measurement:
    """A run, a dataset, and which of its images to ask about. Raises ElboError when they don't fit."""

    def __init__(self, path: Path, data: Path | None, settings: MeasureSettings, warn: Callable[[str], None]):
        if settings.draws < 2 or settings.draws % 2:
            raise UsageError(
                f"draws is {settings.draws}; it must be even, because two independent halves tell the error"
            )
        self.settings, self.device = settings, choose_device(settings.device)
        self.trained = open_run(path, self.device, warn, settings.weights, settings.average)
        self.dataset = self._open_data(data)
        self.low, self.high = self._range(warn)
        self.dimensions = int(np.prod(self.dataset.shape[1:]))
        self.batch = settings.batch or max(8, min(256, 256 * 3072 // self.dimensions))
        count = len(self.dataset)
        wanted = DEFAULT_IMAGES if settings.images is None else settings.images
        chosen = Stream(settings.seed, "bound-images").permutation(0, count)[: min(wanted, count)]
        if settings.images not in (None, ALL) and wanted > count:
            warn(f"{self.dataset.path} has {count} images, not {wanted}: all are used")
        self.rows = np.asarray(chosen)
        self.conditional = self.trained.network.config.num_classes > 0

    def _open_data(self, data: Path | None) -> Dataset:
        known = self.trained.data
        path = self._own_data(Path(str(known.get("path")))) if data is None else data
        dataset = Dataset(path, latents=True)
        if dataset.kind == LATENTS or ATTRIBUTES["convention"] in known:
            raise UsageError(
                f"{path if dataset.kind == LATENTS else self.trained.path}: holds latents; a bound in bits is one of 256-level pixels, and latents have no levels"
            )
        if data is None and dataset.identity()["payload_sha256"] != known.get("payload_sha256"):
            raise DataError(f"{path}: has changed since the run was trained on it; name the dataset to use")
        config = self.trained.network.config
        for what, found, expected in (
            ("pixels", dataset.image_size, config.image_size),
            ("channels", dataset.channels, config.image_channels),
        ):
            if found != expected:
                raise UsageError(f"{path}: images have {found} {what}, the run's have {expected}")
        if config.num_classes and dataset.num_classes > config.num_classes:
            raise UsageError(f"{path}: has {dataset.num_classes} classes, the run knows {config.num_classes}")
        return dataset

    def _own_data(self, path: Path) -> Path:
        """The run's dataset, also where its path was relative to the folder that holds the run."""
        beside = self.trained.path.parent / path
        return beside if beside.exists() and not path.exists() else path

    def _range(self, warn: Callable[[str], None]) -> tuple[float, float]:
        settings, trained = self.settings, self.trained.settings
        low = trained.logsnr_min if settings.logsnr_min is None else settings.logsnr_min
        high = trained.logsnr_max if settings.logsnr_max is None else settings.logsnr_max
        check_range(low, high)
        if low < trained.logsnr_min or high > trained.logsnr_max:
            warn(
                f"logsnr {low:g} to {high:g} goes beyond the {trained.logsnr_min:g} to {trained.logsnr_max:g} "
                "the network was trained on"
            )
        return low, high

    def fitted(self, weighting: Weighting, criterion: str = "second-moment", floor: float = FLOOR) -> Schedule:
        """The schedule that samples this weighting well, by the run's own loss log; uniform where that can't say."""
        try:
            log = read_logs([self.trained.path])
            if float(log.edges[0]) <= self.low and self.high <= float(log.edges[-1]):
                schedule = fit_schedule(ErrorMoments.of_sums(log.edges, log.sums), weighting, criterion, floor)
                return make_schedule(schedule.curve, f"fitted:{criterion}", self.low, self.high)
        except (DataError, FormatError):
            pass
        return parse_schedule("uniform", self.low, self.high)

    def weightings(self, specs: tuple[str, ...]) -> list[Weighting]:
        """Weightings as the user wrote them; the run's own when none is. Raises ElboError."""
        size = self.trained.network.config.image_size
        return [resolve_weighting(spec, size=size) for spec in specs] or [self.trained.objective.weighting]

    def schedule(self, spec: str, weighting: Weighting) -> Schedule:
        """A schedule as the user wrote it, or `fitted[:CRITERION]` from the run's log. Raises ElboError."""
        if spec == MEASURED:
            raise UsageError(f"{MEASURED} is measured, by --gradient-variance only; with -o it is written to a file")
        if spec.partition(":")[0] == "fitted":
            return self.fitted(weighting, spec.partition(":")[2] or "loss", floor=self.trained.settings.floor)
        return resolve_schedule(spec, self.low, self.high, clip=True, size=self.trained.network.config.image_size)

    def images(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """(pixels [B,H,W,C] uint8 on the CPU, labels [B] or None on the device)."""
        labels = torch.from_numpy(self.dataset.labels[rows]).to(self.device) if self.conditional else None
        return torch.from_numpy(self.dataset.batch(rows)), labels

    @torch.inference_mode()
    def draws(self, weighting: Weighting, schedule: Schedule, purpose: str) -> Iterator[Draws]:
        """Every chosen image with its draws, some images at a time. Another purpose is another independent set."""
        each = self.settings.draws
        size = max(1, self.batch // each)
        for start in range(0, len(self.rows), size):
            yield self._draw(self.rows[start : start + size], weighting, schedule, purpose)

    def _draw(self, rows: np.ndarray, weighting: Weighting, schedule: Schedule, purpose: str) -> Draws:
        each, seed = self.settings.draws, self.settings.seed
        offsets, noise = (Stream(seed, f"bound-{what}-{purpose}") for what in ("t", "noise"))
        comb = np.arange(each // 2) / (each // 2)
        t = (np.stack([offsets.uniform(int(row), 2) for row in rows])[:, :, None] + comb) % 1.0
        logsnr = schedule.logsnr(torch.from_numpy(t))
        pixels, labels = self.images(rows)
        x = normalised(pixels.numpy(), self.device)
        parts = []
        for part in torch.arange(len(rows) * each).split(self.batch):
            image = (part // each).to(self.device)
            indices = [int(rows[k // each]) * each + k % each for k in part.tolist()]
            eps = noise.normal(indices, (*x.shape[2:], x.shape[1])).to(self.device, non_blocking=True)
            level = logsnr.flatten()[part]
            c = step_coefficients(level, weighting, schedule, self.trained.prediction, self.device)
            with autocast(self.device, self.settings.precision):
                given = None if labels is None else labels[image]
                parts.append(
                    torch.stack(denoising_losses(self.trained.network, x[image], eps.permute(0, 3, 1, 2), given, c))
                )
        loss, error = (torch.cat(parts, 1).double().cpu() * self.dimensions).view(2, *logsnr.shape)
        if not bool(loss.isfinite().all()):
            worst = float(logsnr[~loss.isfinite()][0])
            raise NonFiniteError(
                f"{self.trained.checkpoint.path}: the loss is not finite at logsnr {worst:.4g}; try --precision fp32, "
                "or a narrower range"
            )
        return Draws(pixels, logsnr, loss, error)

    def about(self) -> dict[str, Any]:
        """What every result says about itself."""
        return {
            "run": str(self.trained.path),
            "checkpoint": self.trained.checkpoint.path.name,
            **self.trained.about,
            "dataset": str(self.dataset.path),
            "payload_sha256": self.dataset.attributes.get("payload_sha256"),
            "n_dataset": len(self.dataset),
            "conditional": self.conditional,
            "dimensions": self.dimensions,
            "logsnr_min": self.low,
            "logsnr_max": self.high,
            "precision": self.settings.precision,
            "seed": self.settings.seed,
            "elbo_version": __version__,
        }
