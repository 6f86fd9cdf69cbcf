"""Averages of the weights, kept beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from elbocli.core.training import Average
from elbocli.runtime.processes import to_local


class Shadow:
    """One average. tensors: its values, by the names of the live ones."""

    def __init__(self, average: Average, live: dict[str, Tensor]):
        self.average, self.name = average, average.name
        self.tensors = {key: value.detach().clone() for key, value in live.items()}


class Averages(list[Shadow]):
    """Several averages over given live tensors, updated in place; nothing waits for the device.

    averages: the first is "the" average. tensors: the live ones, of floats; under FSDP DTensors.
    """

    def __init__(self, averages: Sequence[Average], tensors: dict[str, Tensor]):
        super().__init__(Shadow(average, tensors) for average in averages)
        self._live = tensors

    @torch.no_grad()
    def update(self, step: int, images: int, batch: int) -> None:
        """Average in the weights after update number `step` (from 1), `images` seen, `batch` of them in it."""
        live = [to_local(value) for value in self._live.values()]
        for shadow in self:
            tensors = [to_local(value) for value in shadow.tensors.values()]
            torch._foreach_lerp_(tensors, live, 1 - shadow.average.beta(step, images, batch))

    @property
    def named(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by file name, for a checkpoint."""
        return {shadow.name: shadow.tensors for shadow in self}

    @property
    def stored(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by file name, of those averages that snapshots keep."""
        return {shadow.name: shadow.tensors for shadow in self if shadow.average.stored}


@contextmanager
def swap(live: dict[str, Tensor], average: dict[str, Tensor]) -> Iterator[None]:
    """Exchange the values of live tensors and an average, bit for bit, for the block.

    One tensor at a time, in place: no second copy of the network, and DDP, FSDP and compiled graphs keep their
    storage. Nothing may update or save either in the meantime. Raises KeyError when the average lacks a tensor.
    """
    pairs = [(value.detach(), average[key].detach()) for key, value in live.items()]

    def exchange() -> None:
        for one, other in pairs:
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)

    exchange()
    try:
        yield
    finally:
        exchange()
