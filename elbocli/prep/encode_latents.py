"""Encode images to latents on a device, for `elbo prep --latents`."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import LATENTS, BlockLayout
from elbocli.nn.networks.diffusers import Autoencoder, comfortable_batch
from elbocli.runtime.device import Precision, choose_device


class LatentEncoder:
    """Encoder of square RGB images to latents: mean and standard deviation of the posterior.

    folder: a diffusers AutoencoderKL. size: side of the images in pixels.
    convention: scaling of latents, a name in CONVENTIONS. mirror: whether to encode mirror images too.
    copies: rows per image. fingerprint: settings and versions on which the rows depend.
    Raises UsageError without diffusers or for a wrong `size`, FormatError or DataError for an unusable folder.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        convention: str = "diffusers",
        *,
        mirror: bool = False,
        device: str = "auto",
        precision: str = "fp32",
    ):
        self.device = choose_device(device)
        self.precision = Precision(precision, self.device)
        self.autoencoder = Autoencoder(folder, self.device)
        factor = self.autoencoder.factor
        if size % factor:
            raise UsageError(f"--size {size}: {folder} downsamples images by {factor}; choose a multiple of {factor}")
        self.space = self.autoencoder.space(convention, size, mirror)
        self.layout = BlockLayout(LATENTS, (2 * self.autoencoder.channels, size // factor, size // factor))
        self.batch = comfortable_batch(size, self.device.type == "cpu")
        self.copies = 2 if mirror else 1
        self.attributes = {
            **asdict(self.space),
            "latent_precision": str(self.precision),
            "torch_version": version("torch"),
            "diffusers_version": version("diffusers"),
        }
        self.fingerprint = {**self.attributes, "batch": self.batch, "device": self.device.type}
        del self.fingerprint["autoencoder"]

    def rows(self, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encode images uint8 [H, W, 3] to rows float16 [2C, h, w], `copies` per image.

        Raises DataError if a latent is not finite in float16.
        """
        out: list[np.ndarray] = []
        for start in range(0, len(pixels), self.batch):
            straight = np.stack(pixels[start : start + self.batch])
            copies = [straight, np.ascontiguousarray(straight[:, :, ::-1])][: self.copies]
            with self.precision.applied(), self.precision.autocast():
                moments = [torch.cat(self.autoencoder.encode(copy, self.space), 1).half().cpu() for copy in copies]
            rows = torch.stack(moments, 1).numpy().reshape(-1, *self.layout.row)
            if not np.isfinite(rows).all():
                trouble = "its latents are not finite in float16; name the right autoencoder with --latents"
                raise DataError(f"{self.autoencoder.folder}: {trouble}")
            out += list(rows)
        return out
