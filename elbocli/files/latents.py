"""How latents are scaled for a network, and decoded to pixels.

Datasets store the mean and standard deviation of the autoencoder's posterior, unscaled.
"""

# No numeric library is imported, so that --help is fast.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from elbocli.core.registry import Declaration, Registry
from elbocli.errors import FormatError, UsageError

if TYPE_CHECKING:
    from elbocli.core.pixels import Rounding


Affine = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, repr=False)
class Convention(Declaration[[Mapping[str, Any], int], Affine]):
    """Latent convention: a function (config.json of the autoencoder, channels) → (shift, scale) of each channel.

    input: pixel range, a key of INPUTS. rounding: of decoded pixels, a key of ROUNDINGS.
    """

    input: str = field(kw_only=True)
    rounding: str = field(default="nearest", kw_only=True)


CONVENTIONS = Registry("latent convention", Convention)
INPUTS = {"[-1,1]": (127.5, -1.0), "[0,1]": (255.0, 0.0)}
"""Pixel range → (divisor, offset): the autoencoder's input for a pixel value p (0 to 255) is p / divisor + offset."""

UNKNOWN = "unknown"  # digest of an autoencoder of which only the name is known

EDM2_MEAN = (5.81, 3.25, 0.12, -2.15)
EDM2_STD = (4.17, 4.62, 3.71, 3.28)
EDM2_TARGET_STD = 0.5


@CONVENTIONS.declare(
    "diffusers",
    formula="pixels in [-1,1], x0 = (z - shift) scale with the autoencoder's own shift and scaling factor",
    source="DiT, SiT, the pipelines of diffusers",
    input="[-1,1]",
)
def diffusers(config: Mapping[str, Any], channels: int) -> Affine:
    """Return shift and scale of each channel. config: content of config.json. Raises FormatError."""
    from elbocli.files.reading import reading  # imported late: --help lists the conventions

    with reading("config.json"):
        scale = float(config["scaling_factor"])
        mean = config.get("latents_mean")
        std = config.get("latents_std")
        if mean is None or std is None:
            mean = [config.get("shift_factor") or 0] * channels
            std = [1] * channels
        if {len(mean), len(std)} != {channels}:
            raise ValueError(f"{len(mean)} latents_mean, {len(std)} latents_std for {channels} channels; correct config.json")
        return tuple(map(float, mean)), tuple(scale / each for each in std)


@CONVENTIONS.declare(
    "edm2",
    formula="pixels in [0,1], each of Stable Diffusion's 4 channels whitened to standard deviation 0.5; decoded levels "
    "are truncated",
    source="Karras et al. 2024 (EDM2), constants for ImageNet-512",
    input="[0,1]",
    rounding="truncate",
)
def edm2(config: Mapping[str, Any], channels: int) -> Affine:
    """Return shift and scale of each channel. Raises UsageError unless there are 4 channels."""
    if channels != len(EDM2_MEAN):
        found = f"{len(EDM2_MEAN)} channels, but this autoencoder has {channels}"
        raise UsageError(f"latent convention edm2 needs {found}; use --latent-convention diffusers")
    return EDM2_MEAN, tuple(EDM2_TARGET_STD / std for std in EDM2_STD)


@dataclass(frozen=True)
class LatentSpace:
    """Latents of an autoencoder, and the scaling of these latents for a network; the fields are attributes of datasets.

    latent_convention: one of CONVENTIONS.
    latent_shift, latent_scale: one number per channel; the network's input is (z − shift)·scale for a draw z of the posterior.
    latent_input: pixel range of the autoencoder, a key of INPUTS.
    autoencoder: folder, as the user gave it.
    autoencoder_sha256: digest of the weights, or UNKNOWN.
    pixel_size: side of the images.
    mirrored: 1 if every image is followed by its mirror image, else 0.
    Raises ValueError for impossible values.
    """

    latent_convention: str
    latent_shift: list[float]
    latent_scale: list[float]
    latent_input: str
    autoencoder: str
    autoencoder_sha256: str
    pixel_size: int
    mirrored: Literal[0, 1]

    def __post_init__(self) -> None:
        shift = self.latent_shift
        scale = self.latent_scale
        known = self.latent_convention in CONVENTIONS and self.latent_input in INPUTS and self.autoencoder
        finite = all(map(math.isfinite, (*shift, *scale))) and len(shift) == len(scale)
        if not known or not finite or min(*scale, self.pixel_size) <= 0:
            raise ValueError(f"unknown names, or numbers that are not finite or not above 0: {self}")

    @property
    def rounding(self) -> Rounding:
        """Default rounding of decoded pixels."""
        from elbocli.core.pixels import ROUNDINGS

        return ROUNDINGS[CONVENTIONS[self.latent_convention].rounding]


def read_space(attributes: Mapping[str, object], channels: int, where: object) -> LatentSpace:
    """Return the latent space that a file describes.

    attributes: of the file. channels: of the latents. where: file, for messages.
    Raises FormatError if an attribute is missing or wrong.
    """
    from elbocli.files.records import convert

    said = f"{where}: not usable as latents; pack them again with 'elbo prep --latents DIR'"
    space: LatentSpace = convert(attributes, LatentSpace, said)
    if len(space.latent_shift) != channels:
        raise FormatError(f"{said}: latent_shift has {len(space.latent_shift)} numbers for {channels} channels")
    return space
