"""Conventions of latents: what a network sees of them, and how they become pixels. Imports no numbers: help lists them.

A dataset of latents keeps mean and standard deviation of the autoencoder's posterior as they come out of it. A
convention says how a draw z becomes what a network sees, x0 = (z − shift)·scale by channel, which range of pixels
the autoencoder takes and gives, and which rounding makes levels of those that it gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from elbocli.core.registry import Declaration, Registry
from elbocli.core.sampling import ROUNDINGS
from elbocli.errors import FormatError, UsageError


class ConventionTraits(NamedTuple):
    """input: the range of pixels that the autoencoder was trained on, one of INPUTS. rounding: a name of ROUNDINGS."""

    input: str
    rounding: str = "nearest"


CONVENTIONS: Registry[ConventionTraits] = Registry("latent convention")
INPUTS = {"[-1,1]": (127.5, -1.0), "[0,1]": (255.0, 0.0)}
"""(divisor, offset) of each range: a level p of 0 to 255 goes in as p / divisor + offset."""

UNKNOWN = "unknown"
"""In place of the digest of an autoencoder's weights, where only its name is known."""

EDM2_MEAN = (5.81, 3.25, 0.12, -2.15)
EDM2_STD = (4.17, 4.62, 3.71, 3.28)
EDM2_TARGET_STD = 0.5

Affine = tuple[tuple[float, ...], tuple[float, ...]]


@CONVENTIONS.declare(
    "diffusers",
    formula="pixels in [-1,1], x0 = (z - shift) scale with the autoencoder's own shift and scaling factor",
    source="DiT, SiT, the pipelines of diffusers",
    traits=ConventionTraits("[-1,1]"),
)
def diffusers(config: Mapping[str, Any], channels: int) -> Affine:
    """Shift and scale by channel; where config.json has latents_mean and latents_std, these too."""
    (scale,) = _numbers([config.get("scaling_factor")], 1, "scaling_factor")
    if scale <= 0:
        raise FormatError(f"scaling_factor is {scale:g}, expected a number above 0")
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        spread = _numbers(std, channels, "latents_std")
        if min(spread) <= 0:
            raise FormatError(f"latents_std is {std!r}, expected numbers above 0")
        return _numbers(mean, channels, "latents_mean"), tuple(scale / each for each in spread)
    shift = config.get("shift_factor")
    return _numbers([0.0 if shift is None else shift] * channels, channels, "shift_factor"), (scale,) * channels


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


@dataclass(frozen=True)
class LatentSpace:
    """The autoencoder that made latents, the pixels that it made them of, and how a network sees them.

    convention: one of CONVENTIONS. shift, scale: a number per channel, x0 = (z − shift)·scale. input: a key of INPUTS.
    autoencoder: its folder, as given. pixel_size: side of the images. mirrored: every image is followed by its mirror image.
    Raises FormatError for what can't be.
    """

    convention: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    input: str
    autoencoder: str
    autoencoder_sha256: str
    pixel_size: int
    mirrored: bool

    def __post_init__(self) -> None:
        for name, value, known in (("convention", self.convention, CONVENTIONS), ("input", self.input, INPUTS)):
            if value not in known:
                raise FormatError(f"{ATTRIBUTES[name]} is {value!r}, expected one of {', '.join(known)}")
        _numbers(self.shift, len(self.scale), ATTRIBUTES["shift"])
        if 0 in _numbers(self.scale, len(self.shift), ATTRIBUTES["scale"]):
            raise FormatError(f"{ATTRIBUTES['scale']} is {list(self.scale)}: a scale of 0 leaves nothing")
        if self.pixel_size < 1:
            raise FormatError(f"{ATTRIBUTES['pixel_size']} is {self.pixel_size}, expected at least 1")

    @property
    def rounding(self) -> Declaration[None]:
        """The rounding of decoded pixels, where no other is asked for."""
        return ROUNDINGS[CONVENTIONS[self.convention].traits.rounding]

    def attributes(self) -> dict[str, Any]:
        """Plain values, for a dataset's attributes and a run's config."""
        plain = {**vars(self), "shift": list(self.shift), "scale": list(self.scale), "mirrored": int(self.mirrored)}
        return {key: plain[field] for field, key in ATTRIBUTES.items()}


_OF_LATENTS = ("convention", "shift", "scale", "input")
ATTRIBUTES = {each.name: f"{'latent_' * (each.name in _OF_LATENTS)}{each.name}" for each in fields(LatentSpace)}
"""The name of each field of LatentSpace in files."""


def read_space(attributes: Mapping[str, Any], channels: int, where: object) -> LatentSpace:
    """The latent space that attributes describe, for latents of that many channels. Raises FormatError naming `where`."""
    values = {field: attributes.get(key) for field, key in ATTRIBUTES.items()}
    missing = [ATTRIBUTES[field] for field, value in values.items() if value is None]
    if missing:
        remedy = "pack them again with 'elbo prep --latents DIR'"
        raise FormatError(f"{where}: latents without {', '.join(missing)}; {remedy}")
    try:
        for field in ("convention", "input", "autoencoder", "autoencoder_sha256"):
            if not isinstance(values[field], str) or not values[field]:
                raise FormatError(f"{ATTRIBUTES[field]} is {values[field]!r}, expected text")
        if not isinstance(values["pixel_size"], int) or values["mirrored"] not in (0, 1):
            found = f"pixel_size is {values['pixel_size']!r} and mirrored {values['mirrored']!r}"
            raise FormatError(f"{found}, expected a whole number, and 0 or 1")
        values["mirrored"] = bool(values["mirrored"])
        for field in ("shift", "scale"):
            values[field] = _numbers(values[field], channels, ATTRIBUTES[field])
        return LatentSpace(**values)  # type: ignore[arg-type]
    except FormatError as error:
        raise FormatError(f"{where}: {error}; pack it again") from None


def _numbers(values: object, count: int, name: str) -> tuple[float, ...]:
    """That many finite numbers. Raises FormatError."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        raise FormatError(f"{name} is {values!r}, expected {count} numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise FormatError(f"{name} holds {value!r}, expected finite numbers")
    return tuple(float(value) for value in values)
