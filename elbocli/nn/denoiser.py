"""A trained network as what samplers and bounds need: D(z, λ) → x̂."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elbocli.core.guidance import Guidance
from elbocli.core.prediction import Prediction


@dataclass
class Denoiser:
    """A network with its prediction, labels and guidance. evaluations counts its calls, the batch counting once
    (twice where guidance needs the unconditional output too).
    """

    network: nn.Module
    prediction: Prediction
    guidance: Guidance = Guidance()
    labels: Tensor | None = None
    evaluations: int = 0

    def __call__(self, z: Tensor, logsnr: float) -> Tensor:
        """x̂ [B,C,H,W] at one λ for the whole batch."""
        c_in, from_z, from_out = self.prediction.scalars(logsnr)
        out = self._out(z if c_in == 1 else z * c_in, logsnr)
        return (z * from_z).add_(out, alpha=from_out)

    def _out(self, z: Tensor, logsnr: float) -> Tensor:
        self.evaluations += 1
        level = torch.full((len(z),), logsnr, device=z.device, dtype=torch.float32)
        if self.labels is None or not self.guidance.active(logsnr):
            return self.network(z, level, self.labels).to(z.dtype)
        self.evaluations += 1
        none = torch.full_like(self.labels, -1)
        both = self.network(torch.cat([z, z]), torch.cat([level, level]), torch.cat([self.labels, none])).to(z.dtype)
        return self.guidance.combine(*both.chunk(2))
