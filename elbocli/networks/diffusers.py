"""Networks of the optional package diffusers: UNet2DModel and AutoencoderKL.

Models are read from local folders, weights only as safetensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.pixels import Rounding, from_levels, to_levels
from elbocli.core.schedule import parse_level_code
from elbocli.errors import DataError, FormatError, Parameter, UsageError
from elbocli.files.latents import CONVENTIONS, INPUTS, LatentSpace
from elbocli.files.reading import file_sha256, quiet, reading
from elbocli.files.records import JSON, parse_json, read_json
from elbocli.networks import Network, NetworkConfig, network
from elbocli.networks.unet import ClassTable, named_labels
from elbocli.runtime.device import sent

UNET = "UNet2DModel"
AUTOENCODER = "AutoencoderKL"
EXTRA = "needs the extra 'latents': pip install 'elbocli[latents]'"
# file names in the folder of a diffusers model
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class DiffusersUNetConfig(NetworkConfig):
    """Config of a UNet2DModel."""

    model: str  # JSON of the settings of diffusers' UNet2DModel, without size, channels and classes
    code: str = "t-linear"  # level code: the number that tells the network its noise level
    null_class: bool = False  # whether 'no class' has a learned embedding, the last; False: zeros
    variance: bool = False  # whether the output has C further channels, for a learned variance


@network("diffusers-unet", config=DiffusersUNetConfig, source="diffusers: UNet2DModel")
class DiffusersUNet(Network):
    """UNet2DModel. Raises UsageError or FormatError for unusable settings, UsageError without diffusers."""

    def __init__(self, config: DiffusersUNetConfig):
        super().__init__(config)
        with quiet(), reading(f"network: {EXTRA}", kind=UsageError):
            import diffusers

            make: Any = diffusers.UNet2DModel
        with quiet(), reading(f"network: diffusers can't make a {UNET} from these settings"):
            self.model: Any = make(
                **parse_json(config.model, "network: model"),
                sample_size=config.image_size,
                in_channels=config.image_channels,
                out_channels=config.image_channels * (1 + config.variance),
                dropout=config.dropout,
            )
        if config.num_classes:
            width = self.model.time_embedding.linear_2.out_features
            self.model.class_embedding = ClassTable(config.num_classes, width, config.null_class)
        multiple = 1 << len(self.model.config.block_out_channels) - 1
        if config.image_size % multiple:
            raise UsageError(
                f"network: this {UNET} needs images whose side is a multiple of {multiple}, but the side is "
                f"{config.image_size} pixels; pack with another ",
                Parameter("size"),
            )
        self.code = parse_level_code(config.code)

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = None if self.model.class_embedding is None else named_labels(labels, -1, logsnr)
        return self.model(z, self.code(logsnr), labels, return_dict=False)[0]


class Autoencoder:
    """AutoencoderKL of diffusers on a device.

    config: contents of config.json with defaults.
    channels: channels of a latent.
    factor: side of an image / side of a latent.
    sha256: digest of the weight file.
    Raises UsageError: without diffusers. Raises FormatError or DataError: for an unusable folder.
    """

    def __init__(self, folder: Path, device: torch.device):
        self.folder = folder
        self.device = device
        found = read_json(folder / CONFIG).get("_class_name")
        weights = folder / WEIGHTS
        if found != AUTOENCODER:
            raise FormatError(f"{folder / CONFIG}: _class_name is {found!r}; name the folder of an {AUTOENCODER} instead")
        with reading(weights, "; save it with diffusers' save_pretrained(…, safe_serialization=True)", DataError):
            self.sha256 = file_sha256(weights)
        with quiet(), reading(f"{folder}: {EXTRA}", kind=UsageError):
            from diffusers import AutoencoderKL
        with quiet(), reading(f"{folder}: diffusers can't open it"):
            model, about = AutoencoderKL.from_pretrained(
                str(folder),
                output_loading_info=True,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
            )
        # diffusers would use random numbers for missing weights.
        if any(about.values()):
            raise FormatError(f"{folder}: {WEIGHTS} doesn't fit {CONFIG} ({str(about)[:160]}); get both files again")
        self.model = model.to(device).eval().requires_grad_(False)
        self.config = dict(model.config)
        self.channels = int(self.config["latent_channels"])
        self.factor = 2 ** (len(self.config["block_out_channels"]) - 1)
        if not self.config["in_channels"] == self.config["out_channels"] == 3:
            raise FormatError(f"{folder / CONFIG}: in_channels or out_channels is not 3; choose an RGB autoencoder")

    def space(self, convention: str, pixel_size: int, mirrored: bool) -> LatentSpace:
        """Return this autoencoder's latent space; the parameters are fields of LatentSpace, the first one latent_convention.

        Raises UsageError if the convention doesn't fit the autoencoder.
        """
        with reading(self.folder / CONFIG, kind=UsageError):
            return space_of(convention, self.config, self.channels, str(self.folder), self.sha256, pixel_size, mirrored)

    def comfortable_batch(self, pixel_size: int) -> int:
        """Return a batch size for which the autoencoder needs little memory."""
        most = 4 if self.device.type == "cpu" else 32  # Stable Diffusion's needs 1.6 GB on a CPU
        return max(1, most * 256**2 // pixel_size**2)

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray, space: LatentSpace) -> tuple[Tensor, Tensor]:
        """Encode pixels, uint8 [B, H, W, 3].

        Returns: mean and standard deviation of unscaled latents, [B, C, h, w] each.
        """
        levels = sent(torch.from_numpy(pixels), self.device).permute(0, 3, 1, 2)
        x = from_levels(levels, torch.float32, INPUTS[space.latent_input])
        posterior = self.model.encode(x.contiguous()).latent_dist
        return posterior.mean, posterior.std

    @torch.inference_mode()
    def decode(self, x0: Tensor, space: LatentSpace, rounding: Rounding | None = None) -> Tensor:
        """Decode scaled latents [B, C, h, w] to uint8 [B, H, W, 3]. rounding: None for `space.rounding`."""
        shift, scale = affine(space, self.device)
        x = self.model.decode((x0.float() / scale + shift).contiguous()).sample
        return to_levels(x, rounding or space.rounding, INPUTS[space.latent_input])


def space_of(
    convention: str,
    config: Mapping[str, JSON],
    channels: int,
    autoencoder: str,
    autoencoder_sha256: str,
    pixel_size: int,
    mirrored: bool,
) -> LatentSpace:
    """Return the latent space of an autoencoder.

    config: contents of the autoencoder's config.json. channels: of the latents. Others: fields of LatentSpace.
    """
    declared = CONVENTIONS.find(convention)
    shift, scale = declared.make(config, channels)
    return LatentSpace(
        declared.name, [*shift], [*scale], declared.input, autoencoder, autoencoder_sha256, pixel_size, 1 if mirrored else 0
    )


def affine(space: LatentSpace, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a space's shift and scale as tensors, float32 [1, C, 1, 1] each."""
    shift, scale = (sent(torch.tensor(values).view(1, -1, 1, 1), device) for values in (space.latent_shift, space.latent_scale))
    return shift, scale
