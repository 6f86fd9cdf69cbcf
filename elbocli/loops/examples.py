"""Which images a training step sees, as tensors on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from elbocli.core.draws import Stream
from elbocli.files.dataset import Dataset
from elbocli.files.latents import LatentSpace
from elbocli.files.payload import ENCODED
from elbocli.loops.ahead import Ahead
from elbocli.loops.settings import Resolved
from elbocli.nn.autoencoder import affine

AHEAD_BYTES = 16 << 20
"""From here on plain batches are gathered by another thread. Those of 3 MB, which take 0.4 ms, became slower by it."""


def normalised(pixels: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [B,H,W,C] → float32 [B,C,H,W] in [-1, 1], sent as bytes and scaled on the device."""
    x = sent(torch.from_numpy(pixels), device).permute(0, 3, 1, 2)
    return x.to(torch.float32).mul_(1 / 127.5).sub_(1)


def sent(value: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)


class Posterior:
    """Latents drawn from what the dataset says of them, anew each time: x0 = (mean + std·η − shift)·scale."""

    def __init__(self, space: LatentSpace, seed: int, device: torch.device):
        self._draws, self._device = Stream(seed, "posterior"), device
        self._shift, self._scale = affine(space, device)

    def at(self, moments: np.ndarray, positions: Sequence[int]) -> Tensor:
        """mean ‖ std [B,2C,h,w] → float32 [B,C,h,w]; η of row k depends on positions[k], its place in the run."""
        mean, std = sent(torch.from_numpy(moments), self._device).float().chunk(2, 1)
        eta = sent(self._draws.normal(positions, mean.shape[1:]), self._device)
        x = torch.addcmul(mean, std, eta).sub_(self._shift).mul_(self._scale)
        return x.contiguous(memory_format=torch.channels_last)


class Examples:
    """Images and labels of any step: the order is a permutation of (seed, epoch), the place a counter."""

    def __init__(self, dataset: Dataset, resolved: Resolved, device: torch.device):
        settings = resolved.settings
        self.dataset, self.batch, self.flip, self.device = dataset, settings.batch, settings.flip, device
        self.conditional, self.drop = resolved.network.num_classes > 0, settings.label_dropout
        self._order, self._flips, self._drops = (
            Stream(settings.seed, name) for name in ("order", "flip", "label-dropout")
        )
        space = dataset.latent_space
        self._posterior = None if space is None else Posterior(space, settings.seed, device)
        self._shuffled = (-1, np.empty(0, np.int64))
        large = dataset.batch(np.arange(1)).nbytes * self.batch >= AHEAD_BYTES
        ahead = Ahead(self._fetched) if large or dataset.kind == ENCODED else None
        self._fetch = ahead.get if ahead else self._fetched

    def indices(self, step: int) -> np.ndarray:
        """Rows of the dataset for a step, [batch]."""
        count = len(self.dataset)
        position = np.arange(step * self.batch, (step + 1) * self.batch)
        rows = np.empty(self.batch, np.int64)
        for epoch in range(position[0] // count, position[-1] // count + 1):
            shuffled = self._shuffled  # one look: another thread may be in another epoch
            if epoch != shuffled[0]:
                shuffled = self._shuffled = (epoch, self._order.permutation(epoch, count))
            mine = position // count == epoch
            rows[mine] = shuffled[1][position[mine] % count]
        return rows

    def _fetched(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, what is stored of them, pixels turned where they shall be)."""
        rows = self.indices(step)
        stored = self.dataset.batch(rows)
        if self.flip and self._posterior is None:
            turned = self._flips.uniform(step, self.batch) < 0.5
            stored[turned] = stored[turned, :, ::-1]
        return rows, stored

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """(x [B,C,H,W], labels [B] with −1 where dropped, or None), on the device. Pixels are in [-1, 1]."""
        rows, stored = self._fetch(step)
        if self._posterior is not None:
            x = self._posterior.at(stored, range(step * self.batch, (step + 1) * self.batch))
        else:
            x = normalised(stored, self.device)
        labels = None
        if self.conditional:
            kept = self._drops.uniform(step, self.batch) >= self.drop
            labels = sent(torch.from_numpy(np.where(kept, self.dataset.labels[rows], -1)), self.device)
        return x, labels
