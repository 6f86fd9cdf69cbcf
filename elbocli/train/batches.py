"""Draw the held-out images of a training run, and the data of each step."""

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from elbocli.core.streams import Stream, times
from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.resumable import ENCODED
from elbocli.nn.networks.diffusers import affine
from elbocli.run.settings import Resolved
from elbocli.run.train_settings import TrainSettings
from elbocli.runtime.background import Ahead
from elbocli.runtime.device import pinned, sent
from elbocli.runtime.processes import World

LEAST_HELD_OUT = 2  # a standard error needs two images


def split_rows(settings: TrainSettings, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows for training, rows that --val-split holds out), rising int64 arrays.

    Raises UsageError if --val-split separates an image from its mirror image, or leaves too few images.
    """
    space, count, n = dataset.latent_space, len(dataset), settings.val_split
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


def count_parts(batch: int, processes: int, most: int) -> int:
    """Return the number of micro-batches of each process per step.

    batch: images per step, over all processes. most: largest number of images in a micro-batch.
    """
    share = math.ceil(batch / processes)
    few = math.ceil(share / most)
    if batch % processes:
        return few  # processes with different numbers of images can't have micro-batches of one size
    return next((parts for parts in range(few, 2 * few) if share % parts == 0), few)  # a network is compiled anew for each size


def split(world: World, batch: int, most: int) -> list[range]:
    """Return this process's positions in a batch, one range per micro-batch.

    batch: images per step, over all processes. most: largest number of images in a micro-batch.
    Raises UsageError: when a process would have fewer images than micro-batches.
    """
    parts = count_parts(batch, world.size, most)
    mine = range(batch * world.rank // world.size, batch * (world.rank + 1) // world.size)
    if batch // world.size < parts:
        raise UsageError(
            f"a batch of {batch} images can't be split over {world.size} processes in {parts} micro-batches each; "
            "raise --batch-size or --micro-batch, or start fewer processes"
        )
    cuts = [mine.start + len(mine) * k // parts for k in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


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
    return x.to(torch.float32).mul_(1 / 127.5).sub_(1)


def network_input(stored: Tensor, eta: Tensor | None, scaling: tuple[Tensor, Tensor] | None, device: torch.device) -> Tensor:
    """Return the clean data x, float32 [B,C,H,W] on the device.

    stored: uint8 pixels [B,H,W,C]; or the latents' posterior, mean and std concatenated, [B,2C,h,w].
    eta: for latents, the Gaussian noise of the posterior sample, [B,C,h,w]; else None.
    scaling: for latents, (shift, scale) in x = (latent − shift)·scale, [1,C,1,1] each; else None.
    """
    if scaling is None or eta is None:
        return normalised(stored, device)
    mean, std = sent(stored, device).float().chunk(2, 1)
    x = torch.addcmul(mean, std, sent(eta, device)).sub_(scaling[0]).mul_(scaling[1])
    return x.contiguous(memory_format=torch.channels_last)


class Batches:
    """Images, labels, times and noise of any training step.

    parts: ranges of this process's micro-batches in the batch; None: one micro-batch.
    masks: stream that seeds the dropout masks.
    """

    def __init__(
        self,
        dataset: Dataset,
        resolved: Resolved,
        device: torch.device,
        parts: list[range] | None = None,
    ):
        settings = self.settings = resolved.settings
        self.dataset, self.batch, self.device = dataset, settings.batch_size, device
        self.conditional, self.dropout = resolved.network.num_classes > 0, resolved.network.dropout > 0
        self._flips, self._drops, self._noise, self._eta, self._t, self.masks = (
            Stream(settings.seed, name) for name in ("flip", "label-dropout", "noise", "posterior", "t", "dropout")
        )
        self._rows, space = training_rows(settings, dataset), dataset.latent_space
        self._scaling = None if space is None else affine(space, device)
        # Each call has a stream of its own, because the thread that reads ahead and the main thread ask for different epochs.
        self._shuffled = lru_cache(2)(lambda epoch: Stream(settings.seed, "order").permutation(epoch, len(self._rows)))
        self.parts = parts or [range(self.batch)]
        ahead = dataset.kind == ENCODED or device.type != "cpu"
        self._fetch = Ahead(self._fetched, max(2, len(self.parts))).get if ahead else self._fetched

    def indices(self, step: int) -> np.ndarray:
        """Return the dataset row of each image of a step, [batch]."""
        epochs, places = np.divmod(np.arange(step * self.batch, (step + 1) * self.batch), len(self._rows))
        order = [self._shuffled(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return self._rows[np.concatenate(order)]

    def times(self, step: int) -> Tensor:
        """Return t of each image of a step, float64 [batch] in [0, 1), on the CPU."""
        return times(self._t, step, self.batch, self.settings.t_sampling)

    def _fetched(self, index: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Return (stored images, η, noise [n,H,W,C], labels) of a micro-batch, on the CPU.

        index: number of the micro-batch, counted over all steps.
        """
        step, which = divmod(index, len(self.parts))
        mine = self.parts[which]
        part = slice(mine.start, mine.stop)
        rows, places = self.indices(step)[part], range(step * self.batch, (step + 1) * self.batch)[part]
        stored, eta, labels = self.dataset.batch(rows), None, None
        if self.settings.flip and self._scaling is None:
            turned = self._flips.uniform(step, self.batch)[part] < 0.5
            stored[turned] = stored[turned, :, ::-1]
        shape, pin = stored.shape[1:], self.device.type == "cuda"
        if self._scaling is not None:
            means = (shape[0] // 2, *shape[1:])
            eta, shape = self._eta.normal(places, means, pin), (*means[1:], means[0])
        eps = self._noise.normal(places, shape, pin)
        if self.conditional:
            kept = self._drops.uniform(step, self.batch)[part] >= self.settings.label_dropout
            labels = pinned(torch.from_numpy(np.where(kept, self.dataset.labels[rows], -1)), self.device)
        return pinned(torch.from_numpy(stored), self.device), eta, eps, labels

    def at(self, step: int, which: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images, noise and labels of a micro-batch, on the device.

        which: number of the micro-batch in the step.
        Images x and noise ε: [n,C,H,W]; pixels are in [-1, 1].
        Labels: [n], −1 after label dropout; None for an unconditional network.
        """
        stored, eta, eps, labels = self._fetch(step * len(self.parts) + which)
        x, eps = network_input(stored, eta, self._scaling, self.device), sent(eps, self.device).permute(0, 3, 1, 2)
        return x, eps, None if labels is None else sent(labels, self.device)
