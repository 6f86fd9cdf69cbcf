"""The denoiser that draws a run's images, guided and clipped, and the decoder that makes pixels of its latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elbocli.core.registry import Declaration
from elbocli.core.samplers import Sampler, walk
from elbocli.core.sampling import NEAREST, Guidance, to_levels
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.checkpoint import RunData
from elbocli.files.latents import UNKNOWN, LatentSpace, read_space
from elbocli.nn.denoiser import UNCLIPPED, Denoiser
from elbocli.nn.networks import Network, NetworkConfig
from elbocli.nn.networks.diffusers import Autoencoder, comfortable_batch
from elbocli.run.open import TrainedRun, dataset_of
from elbocli.runtime.device import CudaGraphs


class Wrapped(Network):
    """A network that is called through a function of its inputs."""

    def __init__(self, network: Network, call: Callable[..., Tensor]):
        super().__init__(network.config)
        self.network, self.call = network, call

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """See networks."""
        return self.call(z, logsnr, labels)


@dataclass(frozen=True)
class GuidedRun:
    """A run, perhaps guided: by another network, or (guide is None) by itself without classes."""

    trained: TrainedRun
    guidance: Guidance = Guidance()
    guide: TrainedRun | None = None
    clip: Declaration = UNCLIPPED

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the network's output."""
        config = self.trained.network.config
        return config.image_size, config.image_size, config.image_channels

    def denoiser(self, labels: Tensor | None) -> Denoiser:
        """D(z, λ) for images of these classes, with its count of evaluations at zero."""
        guide = None
        if self.guide is not None:
            known = labels if self.guide.network.config.num_classes else None
            guide = Denoiser(self.guide.network, self.guide.prediction, labels=known)
        return Denoiser(self.trained.network, self.trained.prediction, self.guidance, labels, guide, self.clip)

    def hastened(self, compile: bool, graphs: CudaGraphs | None) -> GuidedRun:
        """The same with networks compiled if asked for, and with graphs captured. Such networks should always get the same
        number of images.
        """

        def ready(run: TrainedRun) -> TrainedRun:
            network = run.network
            if compile:
                network.compile(dynamic=False)
            return replace(run, network=Wrapped(network, partial(graphs.call, network))) if graphs else run

        return replace(self, trained=ready(self.trained), guide=self.guide and ready(self.guide))

    def with_variance(self) -> GuidedRun:
        """The same, with the learned variance of the run's network. Raises UsageError when it has none."""
        run = self.trained
        if not getattr(run.network.config, "variance", False):
            raise UsageError(f"{run.path}: its network has learned no variance; use --sampler ddpm:gamma=G")
        return replace(self, trained=replace(run, network=Wrapped(run.network, run.network.outputs)))

    def evaluations(self, sampler: Sampler, grid: list[float]) -> int:
        """Calls of networks that an image takes, counted on a walk with networks that do nothing."""
        labels = torch.zeros(1, dtype=torch.long) if self.trained.network.config.num_classes else None
        denoiser, z = self.denoiser(labels), torch.zeros(1, 1)
        for one in filter(None, (denoiser, denoiser.guide)):
            one.network = lambda z, *_: torch.cat([z, z], 1)
        walk(sampler, z, grid, denoiser.asked_by(sampler), lambda: z)
        return denoiser.evaluations

    def about(self) -> dict[str, Any]:
        """For the record: guidance, where it acts if not everywhere, the guide and its weights, clipping."""
        given = self.guidance
        numbers = {"": given.scale, "_low": given.low, "_high": given.high, "_channels": given.channels or math.inf}
        facts: dict[str, Any] = {f"guidance{key}": value for key, value in numbers.items() if math.isfinite(value)}
        if self.guide is not None:
            facts |= {"guide": str(self.guide.path), **{f"guide_{key}": to for key, to in self.guide.about.items()}}
        return {**facts, "clip": self.clip.spec}

    def check(self, grid: list[float]) -> None:
        """Raise UsageError when the run, its guide, guidance, clipping and the levels to be visited don't go together."""
        trained, guide, scale, channels = self.trained, self.guide, self.guidance.scale, self.guidance.channels
        config, path = trained.network.config, trained.path
        if self.clip.name != "none" and trained.data.latents:
            raise UsageError(f"--clip {self.clip.spec}: {path} draws latents, which have no range; leave it out")
        if channels > config.image_channels:
            raise UsageError(f"--guidance-channels {channels}: {path} draws {config.image_channels} channels")
        if guide is None:
            if scale != 1 and not (config.num_classes and trained.settings.label_dropout):
                raise UsageError(f"{path}: was not trained on classes with --label-dropout; only --guide can guide it")
            return
        if scale == 1:
            raise UsageError("a guide does nothing at --guidance 1; try --guidance 2")
        known = [(run.network.config.num_classes, run.data.class_names or []) for run in (trained, guide)]
        if _images(trained) != _images(guide) or (known[1][0] and known[0] != known[1]):
            raise UsageError(
                f"--guide {guide.path}: knows other images or classes than {path}; "
                "a guide must know the same images, and the same classes or none"
            )
        low, high = guide.settings.logsnr_min, guide.settings.logsnr_max
        beyond = [at for at in grid[:-1] if self.guidance.active(at) and not low - 1e-6 <= at <= high + 1e-6]
        if beyond:
            raise UsageError(
                f"--guide {guide.path}: was trained on logsnr {low:g} to {high:g}, and would guide at {beyond[0]:.4g}; "
                f"add --guidance-interval {low:g} {high:g}"
            )


def _images(run: TrainedRun) -> tuple[Any, ...]:
    """Facts that the images of two runs must share."""
    config, latents = run.network.config, ("latent_shift", "latent_scale", "autoencoder_sha256")
    return config.image_size, config.image_channels, *map(run.data.more.get, latents)


# Pixels


class Decoder(NamedTuple):
    """shape: (H, W, C) of the images. pixels: the network's output [B,c,h,w] → uint8 [B,H,W,C], on its device.

    rounding: the one that makes levels of pixels.
    """

    shape: tuple[int, int, int]
    pixels: Callable[[Tensor], Tensor]
    rounding: Declaration = NEAREST


def latent_space(data: RunData, network: NetworkConfig) -> LatentSpace | None:
    """The space of a run's latents, from the `data` of its config; None for pixels. Raises FormatError."""
    return read_space(data.more, network.image_channels, "config.yaml") if data.latents else None


def open_decoder(
    data: RunData,
    network: NetworkConfig,
    device: torch.device,
    autoencoder: Path | None = None,
    run: Path = Path(),
    rounding: Declaration | None = None,
) -> Decoder:
    """The decoder of a run, a folder. data: of its config. autoencoder: its folder, instead of the recorded one. rounding: None is
    the latents' own, or to the nearest level.

    Raises UsageError (not there, diffusers is missing), DataError (other weights), FormatError (doesn't fit).
    """
    space = latent_space(data, network)
    if space is None:
        if autoencoder is not None:
            raise UsageError(f"{autoencoder}: the run draws pixels, not latents; leave --autoencoder out")
        shape, chosen = (network.image_size, network.image_size, network.image_channels), rounding or NEAREST
        return Decoder(shape, lambda x: to_levels(x, chosen), chosen)
    folder = autoencoder or _recorded(space, dataset_of(data, run))
    model, size = Autoencoder(folder, device), space.pixel_size
    its = model.space(space.convention, size, space.mirrored)
    same = (its.shift, its.scale) == (space.shift, space.scale)
    if not (same if space.autoencoder_sha256 == UNKNOWN else model.sha256 == space.autoencoder_sha256):
        raise DataError(
            f"{folder}: is not the autoencoder that made the run's latents; name {space.autoencoder} with --autoencoder DIR"
        )
    if (model.channels, model.factor * network.image_size) != (network.image_channels, size):
        raise FormatError(f"{folder}: doesn't make {size} pixels of the run's {network.image_channels} channels")
    batch = comfortable_batch(size, device.type == "cpu")

    def decode(x: Tensor) -> Tensor:
        return torch.cat([model.decode(part, space, rounding) for part in x.split(batch)])

    return Decoder((size, size, 3), decode, rounding or space.rounding)


def _recorded(space: LatentSpace, data: Path) -> Path:
    """The folder that the dataset names, as given or beside the dataset."""
    for place in (Path(space.autoencoder), data.parent / space.autoencoder):
        if place.is_dir():
            return place
    raise UsageError(
        f"{space.autoencoder}: the autoencoder of these latents is not there; name its folder with --autoencoder DIR"
    )
