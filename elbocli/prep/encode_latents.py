"""Images into latents, on the device, for packing."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import LATENTS, BlockLayout
from elbocli.files.latents import ATTRIBUTES
from elbocli.nn.networks.diffusers import Autoencoder, comfortable_batch
from elbocli.runtime.device import Precision, choose_device


class LatentEncoder:
    """Turns square RGB images of one size into rows of a dataset of latents: mean and deviation of the posterior.

    layout: that of the rows. batch: images to hand over at a time; the same groups give the same bytes. copies: rows of
    an image, 2 with `mirror` (the second is of its mirror image). attributes: those of the dataset. fingerprint:
    everything that decides the rows, images excepted.
    Raises UsageError (no diffusers, a size that doesn't fit), FormatError and DataError (an unusable folder).
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
            raise UsageError(f"--size {size}: {folder} halves images to 1/{factor}; take a multiple of {factor}")
        self.space = self.autoencoder.space(convention, size, mirror)
        self.layout = BlockLayout(LATENTS, (2 * self.autoencoder.channels, size // factor, size // factor))
        self.batch = comfortable_batch(size, self.device.type == "cpu")
        self.copies = 2 if mirror else 1
        self.attributes = {
            **self.space.attributes(),
            "latent_precision": str(self.precision),
            "torch_version": version("torch"),
            "diffusers_version": version("diffusers"),
        }
        self.fingerprint = {**self.attributes, "batch": self.batch, "device": self.device.type}
        del self.fingerprint[ATTRIBUTES["autoencoder"]]

    def rows(self, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encode images uint8 [H,W,3] to rows float16 [2C,h,w], `copies` for each. Raises DataError when not finite."""
        out: list[np.ndarray] = []
        for start in range(0, len(pixels), self.batch):
            straight = np.stack(pixels[start : start + self.batch])
            copies = [straight, np.ascontiguousarray(straight[:, :, ::-1])][: self.copies]
            with self.precision.applied(), self.precision.autocast():
                moments = [torch.cat(self.autoencoder.encode(copy, self.space), 1).half().cpu() for copy in copies]
            rows = torch.stack(moments, 1).numpy().reshape(-1, *self.layout.row)
            if not np.isfinite(rows).all():
                trouble = "gives latents that are not finite in float16; is it the right autoencoder?"
                raise DataError(f"{self.autoencoder.folder}: {trouble}")
            out += list(rows)
        return out
