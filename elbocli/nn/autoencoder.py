"""A diffusers AutoencoderKL from a folder on disk: pixels to latents and back. Never fetches, never unpickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.registry import Declaration
from elbocli.core.sampling import to_levels
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.latents import CONVENTIONS, INPUTS, LatentSpace
from elbocli.files.reading import file_sha256, quiet, reading
from elbocli.files.records import read_json
from elbocli.nn.networks.diffusers_unet import CONFIG, WEIGHTS, diffusers_class
from elbocli.runtime.device import sent

CLASS = "AutoencoderKL"


class Autoencoder:
    """An autoencoder on a device.

    config: its config.json, defaults filled in. channels: those of a latent. factor: pixels to a latent's side. sha256:
    that of the weights' file. Raises UsageError without diffusers; FormatError, DataError for an unusable folder.
    """

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        weights = weights_file(folder)
        with reading(weights, "; save it with diffusers' save_pretrained(…, safe_serialization=True)", DataError):
            self.sha256 = file_sha256(weights)
        self.model = _load(folder).to(device).eval().requires_grad_(False)
        self.config: dict[str, Any] = dict(self.model.config)
        self.channels = int(self.config["latent_channels"])
        self.factor = 2 ** (len(self.config["block_out_channels"]) - 1)
        colours = (self.config["in_channels"], self.config["out_channels"])
        if colours != (3, 3):
            raise FormatError(f"{folder / CONFIG}: takes {colours[0]} and gives {colours[1]} channels, expected RGB")

    def space(self, convention: str, pixel_size: int, mirrored: bool) -> LatentSpace:
        """The space of its latents under a convention. Raises UsageError, FormatError when they don't fit."""
        with reading(self.folder / CONFIG, kind=UsageError):
            return space_of(convention, self.config, self.channels, str(self.folder), self.sha256, pixel_size, mirrored)

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray, space: LatentSpace) -> tuple[Tensor, Tensor]:
        """Encode uint8 [B,H,W,3] to mean and standard deviation of the posterior, each [B,C,h,w], on the device."""
        divisor, offset = INPUTS[space.input]
        x = sent(torch.from_numpy(pixels), self.device).permute(0, 3, 1, 2).float().div_(divisor).add_(offset)
        posterior = self.model.encode(x.contiguous()).latent_dist
        return posterior.mean, posterior.std

    @torch.inference_mode()
    def decode(self, x0: Tensor, space: LatentSpace, rounding: Declaration | None = None) -> Tensor:
        """Decode [B,C,h,w] as a network sees them to uint8 [B,H,W,3] on the device. rounding: None is the convention's."""
        shift, scale = affine(space, self.device)
        x = self.model.decode((x0.float() / scale + shift).contiguous()).sample
        return to_levels(x, rounding or space.rounding, INPUTS[space.input])


def space_of(convention: str, config: Mapping[str, Any], channels: int, *facts: Any) -> LatentSpace:
    """The space of an autoencoder's latents. facts: autoencoder, autoencoder_sha256, pixel_size, mirrored, as LatentSpace has them."""
    declared = CONVENTIONS.find(convention)
    shift, scale = declared.make(config, channels)
    return LatentSpace(convention, shift, scale, declared.traits.input, *facts)


def comfortable_batch(pixel_size: int, cpu: bool) -> int:
    """Number of images at a time that keep memory small: within 1.6 GB on a CPU, for Stable Diffusion's."""
    return max(1, (4 if cpu else 32) * 256**2 // pixel_size**2)


def affine(space: LatentSpace, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shift and scale, each [1,C,1,1] float32: x0 = (z − shift)·scale."""
    shift, scale = (sent(torch.tensor(values).view(1, -1, 1, 1), device) for values in (space.shift, space.scale))
    return shift, scale


def weights_file(folder: Path) -> Path:
    """The file of the weights. Raises FormatError for a folder without an AutoencoderKL."""
    found = read_json(folder / CONFIG).get("_class_name")
    if found != CLASS:
        raise FormatError(f"{folder / CONFIG}: _class_name is {found!r}, expected {CLASS!r}")
    return folder / WEIGHTS


def _load(folder: Path) -> Any:
    model_class = diffusers_class(CLASS, folder)
    with quiet(), reading(f"{folder}: diffusers can't open it"):
        model, about = model_class.from_pretrained(
            str(folder), output_loading_info=True, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    # diffusers itself goes on with random numbers where weights are missing.
    if any(about.values()):
        raise FormatError(f"{folder}: {WEIGHTS} doesn't fit {CONFIG}: {str(about)[:160]}")
    return model
