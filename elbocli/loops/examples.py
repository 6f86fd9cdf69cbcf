"""Which images a training step sees, as tensors on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from elbocli.core.draws import Stream
from elbocli.files.dataset import Dataset
from elbocli.files.payload import ENCODED
from elbocli.loops.ahead import Ahead
from elbocli.loops.settings import Resolved

AHEAD_BYTES = 16 << 20
"""From here on plain batches are gathered by another thread. Those of 3 MB, which take 0.4 ms, became slower by it."""


def normalised(pixels: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [B,H,W,C] → float32 [B,C,H,W] in [-1, 1], sent as bytes and scaled on the device."""
    x = sent(torch.from_numpy(pixels), device).permute(0, 3, 1, 2)
    return x.to(torch.float32).mul_(1 / 127.5).sub_(1)


def sent(value: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)


class Examples:
    """Images and labels of any step: the order is a permutation of (seed, epoch), the place a counter."""

    def __init__(self, dataset: Dataset, resolved: Resolved, device: torch.device):
        settings = resolved.settings
        self.dataset, self.batch, self.flip, self.device = dataset, settings.batch, settings.flip, device
        self.conditional, self.drop = resolved.network.num_classes > 0, settings.label_dropout
        self._order, self._flips, self._drops = (
            Stream(settings.seed, name) for name in ("order", "flip", "label-dropout")
        )
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
        """(rows, their pixels, turned where they shall be)."""
        rows = self.indices(step)
        pixels = self.dataset.batch(rows)
        if self.flip:
            turned = self._flips.uniform(step, self.batch) < 0.5
            pixels[turned] = pixels[turned, :, ::-1]
        return rows, pixels

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """(x [B,C,H,W] in [-1, 1], labels [B] with −1 where dropped, or None), on the device."""
        rows, pixels = self._fetch(step)
        labels = None
        if self.conditional:
            kept = self._drops.uniform(step, self.batch) >= self.drop
            labels = sent(torch.from_numpy(np.where(kept, self.dataset.labels[rows], -1)), self.device)
        return normalised(pixels, self.device), labels
