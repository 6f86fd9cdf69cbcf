"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """Shadow of live tensors. Young averages forget faster: decay is at most (1 + n)/(10 + n) at update n.

    Source of the warm start: as in common use since TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, live: dict[str, Tensor], decay: float):
        self.decay = decay
        self.name = f"ema-{decay:g}"
        self.tensors = {key: value.clone() for key, value in live.items()}
        self._shadow = list(self.tensors.values())
        self._live = list(live.values())

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Live and averaged values have changed places during the block."""
        self._exchange()
        yield
        self._exchange()

    def _exchange(self) -> None:
        for live, shadow in zip(self._live, self._shadow):
            kept = live.clone()
            live.copy_(shadow)
            shadow.copy_(kept)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._shadow, self._live, 1 - decay)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from saved tensors."""
        for key, value in self.tensors.items():
            value.copy_(tensors[key])
