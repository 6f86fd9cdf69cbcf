"""The denoiser that draws images: a run's network, what guides it, and how its estimates are cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from elbocli.core.samplers import Sampler, walk
from elbocli.core.sampling import Clip, Guidance
from elbocli.errors import UsageError
from elbocli.nn.denoiser import UNCLIPPED, Denoiser, cast_weights
from elbocli.nn.networks import Network
from elbocli.run.open import TrainedRun
from elbocli.runtime.device import CudaGraphs, Precision
from elbocli.sample.decode import latent_space


class Wrapped(Network):
    """A network that is called through a function of its inputs."""

    def __init__(self, network: Network, call: Callable[..., Tensor]):
        super().__init__(network.config)
        self.network, self.call = network, call

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """See networks."""
        return self.call(z, logsnr, labels)


def giving_variance(run: TrainedRun) -> TrainedRun:
    """The run with a network that gives its learned variance too. Raises UsageError when it has none."""
    if not getattr(run.network.config, "variance", False):
        raise UsageError(
            f"{run.path}: its network has learned no variance; use --sampler ddpm:gamma=G, from 0 (the smallest) to 1 (the "
            "largest)"
        )
    return replace(run, network=Wrapped(run.network, run.network.outputs))


@dataclass(frozen=True)
class GuidedRun:
    """A run, perhaps guided: by another network, or (guide is None) by itself without classes."""

    trained: TrainedRun
    guidance: Guidance = Guidance()
    guide: TrainedRun | None = None
    clip: Clip = UNCLIPPED

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what the network draws."""
        config = self.trained.network.config
        return config.image_size, config.image_size, config.image_channels

    def denoiser(self, labels: Tensor | None) -> Denoiser:
        """D(z, λ) for images of these classes, with its count of evaluations at zero."""
        guide = None
        if self.guide is not None:
            known = labels if self.guide.network.config.num_classes else None
            guide = Denoiser(self.guide.network, self.guide.prediction, labels=known)
        return Denoiser(self.trained.network, self.trained.prediction, self.guidance, labels, guide, self.clip)

    def hastened(self, precision: Precision, compile: bool, graphs: CudaGraphs | None) -> GuidedRun:
        """The same for drawing alone: weights cast to `precision` once, networks compiled if asked for, and with graphs
        captured. Compiled and captured networks should always get the same number of images.
        """

        def ready(run: TrainedRun) -> TrainedRun:
            cast_weights(run.network, precision)
            if compile:
                run.network.compile(dynamic=False)
            return (
                run if graphs is None else replace(run, network=Wrapped(run.network, partial(graphs.call, run.network)))
            )

        return replace(self, trained=ready(self.trained), guide=None if self.guide is None else ready(self.guide))

    def evaluations(self, sampler: Sampler, grid: list[float]) -> int:
        """Calls of networks that an image takes, counted on a walk with networks that do nothing."""

        def idle(run: TrainedRun) -> TrainedRun:
            return replace(run, network=Wrapped(run.network, lambda z, *_: torch.cat([z, z], 1)))

        rehearsal = replace(self, trained=idle(self.trained), guide=None if self.guide is None else idle(self.guide))
        labels = torch.zeros(1, dtype=torch.long) if self.trained.network.config.num_classes else None
        denoiser, z = rehearsal.denoiser(labels), torch.zeros(1, 1)
        walk(sampler, z, grid, denoiser.asked_by(sampler), lambda: z)
        return denoiser.evaluations

    @property
    def about(self) -> dict[str, Any]:
        """For the record: guidance, where it acts if not everywhere, the guide and its weights, clipping."""
        ends = {"guidance_low": self.guidance.low, "guidance_high": self.guidance.high}
        told: dict[str, Any] = {"guidance": self.guidance.scale}
        told |= {end: at for end, at in ends.items() if math.isfinite(at)}
        if self.guidance.channels:
            told["guidance_channels"] = self.guidance.channels
        if self.guide is not None:
            told["guide"] = str(self.guide.path)
            told |= {f"guide_{key}": value for key, value in self.guide.about.items()}
        return {**told, "clip": self.clip.spec}

    def check(self, grid: list[float]) -> None:
        """Raise UsageError when the run, its guide, guidance, clipping and the levels to be visited don't go together."""
        if self.clip.cuts and _space(self.trained) is not None:
            raise UsageError(
                f"--clip {self.clip.spec}: {self.trained.path} draws latents, which have no range to be cut to; leave it out"
            )
        if self.guidance.channels > self.trained.network.config.image_channels:
            raise UsageError(
                f"--guidance-channels {self.guidance.channels}: {self.trained.path} draws "
                f"{self.trained.network.config.image_channels} channels"
            )
        if self.guide is not None:
            self._check_guide(self.guide, grid)
        elif self.guidance.scale != 1 and not self.trained.network.config.num_classes:
            raise UsageError(
                "guidance needs a class-conditional run; this one is unconditional, and only --guide can guide it"
            )
        elif self.guidance.scale != 1 and self.trained.settings.label_dropout == 0:
            raise UsageError(
                "guidance needs a run trained with --label-dropout above 0; this one never saw 'no class', and only "
                "--guide can guide it"
            )

    def _check_guide(self, guide: TrainedRun, grid: list[float]) -> None:
        if self.guidance.scale == 1:
            raise UsageError("a guide does nothing at --guidance 1; try --guidance 2")
        ours, theirs = (run.network.config for run in (self.trained, guide))
        names = [run.data.class_names or [] for run in (self.trained, guide)]
        for what, mine, its, checked in (
            ("pixels", ours.image_size, theirs.image_size, True),
            ("channels", ours.image_channels, theirs.image_channels, True),
            # A guide without classes is classifier-free guidance by a network of its own.
            ("classes", ours.num_classes, theirs.num_classes, theirs.num_classes > 0),
            ("class names", *names, theirs.num_classes > 0),
            ("latents", _space(self.trained), _space(guide), True),
        ):
            if checked and mine != its:
                raise UsageError(
                    f"--guide {guide.path}: has {_said(its)} {what}, {self.trained.path} has {_said(mine)}; "
                    "a guide must know the same images, and the same classes or none"
                )
        low, high = guide.settings.logsnr_min, guide.settings.logsnr_max
        beyond = [at for at in grid[:-1] if self.guidance.active(at) and not low - 1e-6 <= at <= high + 1e-6]
        if beyond:
            raise UsageError(
                f"--guide {guide.path}: was trained on logsnr {low:g} to {high:g}, and would guide at {beyond[0]:.4g}; "
                f"add --guidance-interval {low:g} {high:g}"
            )


def _space(run: TrainedRun) -> tuple[Any, ...] | None:
    """Facts that two runs of latents must share; None for pixels."""
    space = latent_space(run.data, run.network.config, run.path / "config.yaml")
    return None if space is None else (space.shift, space.scale, space.autoencoder_sha256)


def _said(value: Any) -> str:
    return "no" if value in (None, 0, []) else "other" if isinstance(value, list | tuple) else str(value)
