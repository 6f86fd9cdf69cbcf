"""Draw the data of each step of a training run."""

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from elbocli.core.streams import Stream, times
from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.runs.examples import Examples, training_rows
from elbocli.runs.settings import Resolved
from elbocli.runtime.background import Prefetcher
from elbocli.runtime.device import pinned, sent
from elbocli.runtime.processes import World


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
        self.batch = settings.batch_size
        self.device = device
        self.dropout = resolved.network.dropout > 0
        self._flips, self._drops, self._noise, self._t, self.masks, posterior = (
            Stream(settings.seed, name) for name in ("flip", "label-dropout", "noise", "t", "dropout", "posterior")
        )
        rows = training_rows(settings, dataset)
        conditional = resolved.network.num_classes > 0
        self.examples = Examples(dataset, rows, conditional, posterior, device)
        # Each call has a stream of its own, because the thread that reads ahead and the main thread ask for different epochs.
        self._shuffled = lru_cache(2)(lambda epoch: Stream(settings.seed, "order").permutation(epoch, len(rows)))
        self.parts = parts or [range(self.batch)]
        self._fetch = Prefetcher(self._fetched, max(2, len(self.parts))).get if device.type != "cpu" else self._fetched

    def indices(self, step: int) -> np.ndarray:
        """Return the dataset row of each image of a step, [batch]."""
        rows = self.examples.rows
        epochs, places = np.divmod(np.arange(step * self.batch, (step + 1) * self.batch), len(rows))
        order = [self._shuffled(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return rows[np.concatenate(order)]

    def times(self, step: int) -> Tensor:
        """Return t of each image of a step, float64 [batch] in [0, 1), on the CPU."""
        return times(self._t, step, self.batch, self.settings.t_sampling)

    def _fetched(self, index: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Return (stored images, η, noise [n,C,H,W], labels) of a micro-batch, on the CPU.

        index: number of the micro-batch, counted over all steps.
        """
        step, which = divmod(index, len(self.parts))
        part = slice(self.parts[which].start, self.parts[which].stop)
        places = range(step * self.batch, (step + 1) * self.batch)[part]
        mirrored = None
        if self.settings.flip and self.examples.scaling is None:
            mirrored = self._flips.uniform(step, self.batch)[part] < 0.5
        stored, eta, labels = self.examples.fetch(self.indices(step)[part], places, mirrored)
        eps = self._noise.noise(places, self.examples.shape, self.device.type == "cuda")
        if labels is not None:
            labels[self._drops.uniform(step, self.batch)[part] < self.settings.label_dropout] = -1
            labels = pinned(labels, self.device)
        return pinned(stored, self.device), eta, eps, labels

    def at(self, step: int, which: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images, noise and labels of a micro-batch, on the device.

        which: number of the micro-batch in the step.
        Images x and noise ε: [n,C,H,W]; pixels are in [-1, 1].
        Labels: [n], −1 after label dropout; None for an unconditional network.
        """
        stored, eta, eps, labels = self._fetch(step * len(self.parts) + which)
        return self.examples.input(stored, eta), sent(eps, self.device), None if labels is None else sent(labels, self.device)
