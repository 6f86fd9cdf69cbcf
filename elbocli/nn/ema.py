"""An exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Shadow of a module's parameters. Young averages forget faster: decay is at most (1 + n)/(10 + n) at update n.

    Source of the warm start: as in common use since TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.name = f"ema-{decay:g}"
        self.tensors = {key: value.detach().clone() for key, value in module.state_dict().items()}
        self._shadow = list(self.tensors.values())
        self._live = [value.detach() for value in module.state_dict().values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._shadow, self._live, 1 - decay)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from saved tensors."""
        for key, value in self.tensors.items():
            value.copy_(tensors[key])
