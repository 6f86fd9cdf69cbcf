"""Decoding what a network draws: its own pixels, or those that an autoencoder makes of latents."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from elbocli.core.registry import Declaration
from elbocli.core.sampling import NEAREST, to_levels
from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.files.checkpoint import RunData
from elbocli.files.latents import UNKNOWN, LatentSpace, read_space
from elbocli.nn.autoencoder import Autoencoder, comfortable_batch, memory_of
from elbocli.nn.networks import NetworkConfig
from elbocli.run.dataset_place import dataset_of


@dataclass(frozen=True)
class Decoder:
    """shape: (H, W, C) of the images. pixels: what the network draws [B,c,h,w] → uint8 [B,H,W,C], on its device.

    rounding: the one that makes levels of pixels.
    """

    shape: tuple[int, int, int]
    pixels: Callable[[Tensor], Tensor]
    rounding: Declaration[None] = NEAREST


def latent_space(data: RunData, network: NetworkConfig, where: object) -> LatentSpace | None:
    """The space of a run's latents, from the `data` of its config; None for pixels. Raises FormatError."""
    return read_space(data.more, network.image_channels, where) if data.latents else None


def open_decoder(
    data: RunData,
    network: NetworkConfig,
    device: torch.device,
    autoencoder: Path | None = None,
    where: object = "config.yaml",
    rounding: Declaration[None] | None = None,
) -> Decoder:
    """The decoder of a run. data: of its config. autoencoder: its folder, instead of the recorded one. rounding: None is
    the latents' own, or to the nearest level.

    Raises UsageError (not there, diffusers is missing), DataError (other weights), FormatError (doesn't fit).
    """
    space = latent_space(data, network, where)
    if space is None:
        if autoencoder is not None:
            raise UsageError(f"{autoencoder}: the run draws pixels, not latents; leave --autoencoder out")
        shape, chosen = (network.image_size, network.image_size, network.image_channels), rounding or NEAREST
        return Decoder(shape, lambda x: to_levels(x, chosen), chosen)
    folder = autoencoder or _recorded(space, dataset_of(data, Path(str(where)).parent))
    model = Autoencoder(folder, device)
    if space.autoencoder_sha256 == UNKNOWN:
        its = model.space(space.convention, space.pixel_size, space.mirrored)
        if (its.shift, its.scale) != (space.shift, space.scale):
            raise DataError(
                f"{folder}: shifts and scales latents by {its.shift} and {its.scale}, the run's by {space.shift} and "
                f"{space.scale}; name {space.autoencoder} with --autoencoder DIR"
            )
    elif model.sha256 != space.autoencoder_sha256:
        raise DataError(
            f"{folder}: its weights have sha256 {model.sha256}, the run's latents were made with {space.autoencoder_sha256} "
            f"({space.autoencoder}); name that one with --autoencoder DIR"
        )
    if (model.channels, model.factor * network.image_size) != (network.image_channels, space.pixel_size):
        raise FormatError(
            f"{folder}: makes {model.factor * network.image_size} pixels of {network.image_size} x {model.channels} latents; "
            f"the run has {network.image_channels} channels and {space.pixel_size} pixels"
        )
    batch = model.comfortable_batch(space.pixel_size)

    def decode(x: Tensor) -> Tensor:
        return torch.cat([model.decode(part, space, rounding) for part in x.split(batch)])

    return Decoder((space.pixel_size, space.pixel_size, 3), decode, rounding or space.rounding)


def decoding_memory(data: RunData, network: NetworkConfig, images: int, cpu: bool) -> tuple[int, int]:
    """Return (bytes of the autoencoder's weights, bytes of what it computes) for that many latents of a run drawn at once.

    data: of its config. (0, 0) for pixels, and where the autoencoder can't be opened.
    """
    with suppress(ElboError):
        space = latent_space(data, network, "config.yaml")
        if space is not None:
            at_once = min(images, comfortable_batch(space.pixel_size, cpu))
            return memory_of(_recorded(space, Path(str(data.path))), space.pixel_size, at_once)
    return 0, 0


def _recorded(space: LatentSpace, data: Path) -> Path:
    """The folder that the dataset names, as given or beside the dataset."""
    places = [Path(space.autoencoder), data.parent / space.autoencoder]
    for place in places:
        if place.is_dir():
            return place
    raise UsageError(
        f"{space.autoencoder}: the autoencoder of these latents is not there (nor at {places[1]}); "
        "name its folder with --autoencoder DIR"
    )
