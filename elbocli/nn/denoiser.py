"""A trained network as what samplers and bounds need: D(z, λ) → x̂."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elbocli.core.clipping import Clip, parse_clip
from elbocli.core.guidance import Guidance
from elbocli.core.prediction import Prediction

UNCLIPPED = parse_clip("none")


@dataclass
class Denoiser:
    """A network with its prediction and labels, guided by another denoiser, and cut to the range of pixels after that.

    guide: None is the same network without classes, where guidance asks for one. calls: of this network, a batch
    counting once.
    """

    network: nn.Module
    prediction: Prediction
    guidance: Guidance = Guidance()
    labels: Tensor | None = None
    guide: Denoiser | None = None
    clip: Clip = UNCLIPPED
    calls: int = 0

    def __post_init__(self) -> None:
        if self.guide is None and self.labels is not None and self.guidance.scale != 1:
            self.guide = Denoiser(self.network, self.prediction, labels=torch.full_like(self.labels, -1))

    @property
    def evaluations(self) -> int:
        """Calls of a network so far, the guide's too."""
        return self.calls + (self.guide.evaluations if self.guide else 0)

    def __call__(self, z: Tensor, logsnr: float) -> Tensor:
        """x̂ [B,C,H,W] at one λ for the whole batch."""
        self.calls += 1
        c_in, from_z, from_out = self.prediction.scalars(logsnr)
        level = torch.full((len(z),), logsnr, device=z.device, dtype=torch.float32)
        out = self.network(z if c_in == 1 else z * c_in, level, self.labels).to(z.dtype)
        x_hat = (z * from_z).add_(out, alpha=from_out)
        if self.guide is not None and self.guidance.active(logsnr):
            x_hat = self.guidance.combine(x_hat, self.guide(z, logsnr))
        return self.clip.function(x_hat)
