"""Conventions of latents: what a network sees of them, and how they become pixels. Imports no numbers: help lists them.

A dataset of latents keeps mean and standard deviation of the autoencoder's posterior as they come out of it. A
convention says how a draw z becomes what a network sees, x0 = (z − shift)·scale by channel, which range of pixels
the autoencoder takes and gives, and which rounding makes levels of those that it gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct, json

from elbocli.core.registry import Declaration, Registry
from elbocli.core.sampling import ROUNDINGS
from elbocli.errors import FormatError, UsageError
from elbocli.files.records import convert


class ConventionTraits(NamedTuple):
    """input: the range of pixels that the autoencoder was trained on, one of INPUTS. rounding: a name of ROUNDINGS."""

    input: str
    rounding: str = "nearest"


CONVENTIONS = Registry("latent convention")
INPUTS = {"[-1,1]": (127.5, -1.0), "[0,1]": (255.0, 0.0)}
"""(divisor, offset) of each range: a level p of 0 to 255 goes in as p / divisor + offset."""

UNKNOWN = "unknown"
"""In place of the digest of an autoencoder's weights, where only its name is known."""

EDM2_MEAN = (5.81, 3.25, 0.12, -2.15)
EDM2_STD = (4.17, 4.62, 3.71, 3.28)
EDM2_TARGET_STD = 0.5

Text = Annotated[str, Meta(min_length=1)]
Positive = Annotated[float, Meta(gt=0)]
Affine = tuple[tuple[float, ...], tuple[float, ...]]


class ScalingConfig(Struct, frozen=True):
    """The latents' scale, shift and channels, as an autoencoder's config.json gives them."""

    scaling_factor: Positive
    shift_factor: float | None = None
    latents_mean: list[float] | None = None
    latents_std: list[Positive] | None = None


@CONVENTIONS.declare(
    "diffusers",
    formula="pixels in [-1,1], x0 = (z - shift) scale with the autoencoder's own shift and scaling factor",
    source="DiT, SiT, the pipelines of diffusers",
    traits=ConventionTraits("[-1,1]"),
)
def diffusers(config: Mapping[str, Any], channels: int) -> Affine:
    """Shift and scale by channel; where config.json has latents_mean and latents_std, these too."""
    known: ScalingConfig = convert(dict(config), ScalingConfig, "config.json")
    scale, mean, std = known.scaling_factor, known.latents_mean, known.latents_std
    if mean is None or std is None:
        return (known.shift_factor or 0.0,) * channels, (scale,) * channels
    if {len(mean), len(std)} != {channels}:
        raise FormatError(f"latents_mean and latents_std are not of {channels} channels")
    return tuple(mean), tuple(scale / each for each in std)


@CONVENTIONS.declare(
    "edm2",
    formula="pixels in [0,1], each of Stable Diffusion's 4 channels whitened to standard deviation 0.5; decoded levels "
    "are truncated",
    source="Karras et al. 2024 (EDM2), constants for ImageNet-512",
    traits=ConventionTraits("[0,1]", "truncate"),
)
def edm2(config: Mapping[str, Any], channels: int) -> Affine:
    """Shift and scale by channel."""
    if channels != len(EDM2_MEAN):
        found = f"{len(EDM2_MEAN)} channels, this autoencoder has {channels}"
        raise UsageError(f"the latent convention edm2 whitens {found}; use diffusers")
    return EDM2_MEAN, tuple(EDM2_TARGET_STD / std for std in EDM2_STD)


_OF_LATENTS = ("convention", "shift", "scale", "input")
_REST = ("autoencoder", "autoencoder_sha256", "pixel_size", "mirrored")
ATTRIBUTES = {**{name: f"latent_{name}" for name in _OF_LATENTS}, **{name: name for name in _REST}}
"""The name of each field of LatentSpace in files."""


class LatentSpace(Struct, frozen=True, rename=ATTRIBUTES):
    """The autoencoder that made latents, the pixels that it made them of, and how a network sees them.

    convention: one of CONVENTIONS. shift, scale: a number per channel, x0 = (z − shift)·scale. input: a key of INPUTS.
    autoencoder: its folder, as given. pixel_size: side of the images. mirrored: every image is followed by its mirror image.
    """

    convention: Text
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    input: str
    autoencoder: Text
    autoencoder_sha256: Text
    pixel_size: Annotated[int, Meta(ge=1)]
    mirrored: bool

    def __post_init__(self) -> None:
        for value, known in ((self.convention, CONVENTIONS), (self.input, INPUTS)):
            if value not in known:
                raise ValueError(f"{value!r} is none of {', '.join(known)}")
        if (
            len(self.shift) != len(self.scale)
            or 0 in self.scale
            or not all(map(math.isfinite, (*self.shift, *self.scale)))
        ):
            raise ValueError("shift and scale must be a finite number per channel")

    @property
    def rounding(self) -> Declaration:
        """The rounding of decoded pixels, where no other is asked for."""
        return ROUNDINGS[CONVENTIONS[self.convention].traits.rounding]

    def attributes(self) -> dict[str, Any]:
        """Plain values, for a dataset's attributes and a run's config."""
        return {**json.decode(json.encode(self)), "mirrored": int(self.mirrored)}


def read_space(attributes: Mapping[str, Any], channels: int, where: object) -> LatentSpace:
    """The latent space that attributes describe, for latents of that many channels. Raises FormatError naming `where`."""
    said = f"{where}: not usable as latents; pack them again with 'elbo prep --latents DIR'"
    content = {key: attributes[key] for key in ATTRIBUTES.values() if key in attributes}
    if content.get("mirrored") in (0, 1):
        content["mirrored"] = bool(content["mirrored"])
    space: LatentSpace = convert(content, LatentSpace, said)
    if len(space.shift) != channels:
        raise FormatError(f"{said}: shifts {len(space.shift)} channels, expected {channels}")
    return space
