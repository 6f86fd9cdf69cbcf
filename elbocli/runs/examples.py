"""Read examples for a network: the rows of a run, clean images x or latents, noise, and labels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli.core.elbo import reconstruction, reconstruction_of_numbers
from elbocli.core.pixels import from_levels
from elbocli.core.streams import Stream
from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.networks.diffusers import affine
from elbocli.runs.train_settings import TrainSettings
from elbocli.runtime.device import sent

LEAST_HELD_OUT = 2  # a standard error needs two images


def split_rows(settings: TrainSettings, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows for training, rows that --val-split holds out), rising int64 arrays.

    Raises UsageError if --val-split separates an image from its mirror image, or leaves too few images.
    """
    space = dataset.latent_space
    count = len(dataset)
    n = settings.val_split
    together = 2 if space is not None and space.mirrored else 1
    if n % together:
        raise UsageError(f"--val-split {n}: the dataset holds each image and its mirror image; give an even number")
    if not LEAST_HELD_OUT <= n < count:
        raise UsageError(
            f"--val-split {n}: expected at least {LEAST_HELD_OUT} images, and fewer than the dataset's {count} images"
        )
    chosen = Stream(settings.seed, "held-out").permutation(0, count // together)[: n // together]
    out = np.zeros((count // together, together), bool)
    out[chosen] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


def training_rows(settings: TrainSettings, dataset: Dataset) -> np.ndarray:
    """Return the dataset rows that a run trains on, int64. Raises UsageError for a bad --val-split."""
    return split_rows(settings, dataset)[0] if settings.val_split else np.arange(len(dataset))


def channels_first(pixels: Tensor) -> Tensor:
    """Return a view of images in the layout [B,C,H,W].

    pixels: uint8 [B,H,W,C] or [B,C,H,W], C 1 or 3; a shape that fits both is read as [B,H,W,C].
    Raises UsageError for another dtype or shape.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 4 or not {pixels.shape[1], pixels.shape[3]} & {1, 3}:
        raise UsageError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}; expected torch.uint8 [B, C, H, W] or [B, H, W, C], C 1 or 3"
        )
    return pixels.permute(0, 3, 1, 2) if pixels.shape[3] in (1, 3) else pixels


def normalised(pixels: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return images as float32 [B,C,H,W] in [-1, 1] on the device.

    pixels: uint8 [B,C,H,W] or [B,H,W,C].
    Raises UsageError for another dtype or shape.
    """
    x = channels_first(sent(torch.as_tensor(pixels), torch.device(device)))
    # `from_levels` divides, but CUDA multiplies by the reciprocal of a number instead. Here all devices do so, and get equal numbers.
    return x.to(torch.float32).mul_(1 / 127.5).sub_(1)


def draw_noise(stream: Stream, indices: Sequence[int], x: Tensor) -> Tensor:
    """Return Gaussian noise with the shape of an example of x, [len(indices), C, …], on the device of x."""
    return sent(stream.noise(indices, (*x.shape[2:], x.shape[1]), x.device.type == "cuda"), x.device)


class ImageBatch(NamedTuple):
    """A batch of images.

    content: uint8 pixels [B, H, W, C], or float32 latents [B, C, H, W], scaled for the network.
    labels: class numbers, [B]; None: no classes. rows: unique numbers, [B], which seed the images' noise.
    """

    content: Tensor
    labels: Tensor | None
    rows: Sequence[int]

    @property
    def latent(self) -> bool:
        return self.content.is_floating_point()

    @property
    def x(self) -> Tensor:
        """Images as float64, with the axes of `content`; pixels lie in [-1, 1]."""
        return self.content.double() if self.latent else from_levels(self.content, torch.float64)

    @property
    def divisor(self) -> float:
        """Nats per image / divisor = bits per dimension; for latents, nats per dimension."""
        return self.content[0].numel() * (1.0 if self.latent else math.log(2))

    def copies(self, count: int, size: int) -> Iterator["ImageBatch"]:
        """Yield `count` copies of each image, `size` copies at a time; row numbers give each copy noise of its own."""
        rows = torch.tensor(self.rows)
        for part in torch.arange(count * len(rows)).split(size):
            image = part // count
            labels = None if self.labels is None else self.labels[sent(image, self.labels.device)]
            yield ImageBatch(
                self.content[sent(image, self.content.device)], labels, (rows[image] * count + part % count).tolist()
            )

    def placed(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return (x, float32 [B, C, H, W], scaled for the network; labels or None) on the device."""
        x = sent(self.content, device) if self.latent else normalised(self.content, device)
        return x, None if self.labels is None else sent(self.labels, device)

    def decoder_nats(self, logsnr_max: float) -> Tensor:
        """Return each image's reconstruction term E[−log p(x|z₀)], nats, [B]. logsnr_max: λ of z₀."""
        if self.latent:
            nats = reconstruction_of_numbers(logsnr_max) * self.content[0].numel()
            return torch.full((len(self.content),), nats, dtype=torch.float64)
        return reconstruction(logsnr_max)[self.content.long()].flatten(1).sum(1)


@dataclass(frozen=True)
class Examples:
    """Reader of a dataset's rows for a network; iterating yields the images of `rows`, `size` at a time.

    conditional: whether the network takes labels. posterior: stream of the noise in samples of a latent's posterior.
    device: where latents are scaled.
    """

    dataset: Dataset
    rows: np.ndarray
    conditional: bool
    posterior: Stream
    device: torch.device = torch.device("cpu")
    size: int = 1

    @cached_property
    def scaling(self) -> tuple[Tensor, Tensor] | None:
        """For latents, (shift, scale) in x = (latent − shift)·scale, [1,C,1,1] each."""
        space = self.dataset.latent_space
        return None if space is None else affine(space, self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of x, (H, W, C)."""
        return self.dataset.shape[1:]

    def fetch(
        self, rows: np.ndarray, places: Sequence[int], mirrored: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return (stored images, η, labels) on the CPU.

        Stored images: uint8 pixels [B,H,W,C]; or a latent's posterior, mean and std concatenated, [B,2C,h,w].
        η: for latents, the Gaussian noise of the posterior sample, [B,C,h,w]; else None.
        places: index of each image in `posterior`. mirrored: whether to mirror each image's pixels, [B].
        """
        stored = self.dataset.read(rows)
        eta = None
        if mirrored is not None:
            stored[mirrored] = stored[mirrored, :, ::-1]
        if self.dataset.latent_space is not None:
            height, width, channels = self.shape
            eta = self.posterior.normal(places, (channels, height, width), self.device.type == "cuda")
        labels = torch.from_numpy(self.dataset.labels[rows]) if self.conditional else None
        return torch.from_numpy(stored), eta, labels

    def input(self, stored: Tensor, eta: Tensor | None) -> Tensor:
        """Return the clean data x, float32 [B,C,H,W] on the device. stored, eta: from `fetch`."""
        if self.scaling is None or eta is None:
            return normalised(stored, self.device)
        mean, std = sent(stored, self.device).float().chunk(2, 1)
        x = torch.addcmul(mean, std, sent(eta, self.device)).sub_(self.scaling[0]).mul_(self.scaling[1])
        return x.contiguous(memory_format=torch.channels_last)

    def images(self, rows: np.ndarray) -> ImageBatch:
        """Return the images at these rows of the dataset; pixels stay on the CPU."""
        stored, eta, labels = self.fetch(rows, rows.tolist())
        return ImageBatch(stored if eta is None else self.input(stored, eta), labels, rows.tolist())

    def __iter__(self) -> Iterator[ImageBatch]:
        return (self.images(self.rows[start : start + self.size]) for start in range(0, len(self.rows), self.size))
