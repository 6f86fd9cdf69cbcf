"""Averages of the weights, kept beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from elbocli.core.training import Average
from elbocli.runtime.processes import to_local


class Shadow(NamedTuple):
    """One average. tensors: its values, by the names of the live ones."""

    average: Average
    tensors: dict[str, Tensor]


class Averages(list[Shadow]):
    """Several averages over given live tensors, updated in place; nothing waits for the device.

    averages: the first is "the" average. tensors: the live ones, of floats; under FSDP DTensors.
    """

    def __init__(self, averages: Sequence[Average], tensors: dict[str, Tensor]):
        copies = ({key: value.detach().clone() for key, value in tensors.items()} for _ in averages)
        super().__init__(map(Shadow, averages, copies))
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
        return {shadow.average.name: shadow.tensors for shadow in self}


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
