"""A trained network as samplers and bounds need it: D(z, λ) → x̂."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from elbocli.core.loss import Network, check_output
from elbocli.core.prediction import Prediction
from elbocli.core.registry import Declaration
from elbocli.core.samplers import Denoise, DenoiseWithVariance, Sampler
from elbocli.core.sampling import CLIPS, Guidance
from elbocli.errors import UsageError

UNCLIPPED = CLIPS["none"]


@dataclass
class Denoiser:
    """A network with its prediction and labels, guided by another denoiser, and cut to the range of pixels after that.

    guide: None is the same network without classes, where guidance asks for one. calls: of this network, a batch
    counting once. A network may give more channels than its prediction has: variances, which come behind it.
    """

    network: Network
    prediction: Prediction
    guidance: Guidance = Guidance()
    labels: Tensor | None = None
    guide: Denoiser | None = None
    clip: Declaration = UNCLIPPED
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
        return self._estimate(z, logsnr)[0]

    def with_variance(self, z: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """x̂, and γ = (v + 1)/2 of the v that the network gives behind its prediction, which nothing guides.

        Raises UsageError where it gives none.
        """
        x_hat, v = self._estimate(z, logsnr)
        if v.shape != z.shape:
            raise UsageError(
                f"a learned variance needs {2 * z.shape[1]} channels of a network, for {z.shape[1]} of images"
            )
        return x_hat, (v + 1).mul_(0.5)

    def asked_by(self, sampler: Sampler) -> Denoise | DenoiseWithVariance:
        """The kind of denoiser that a sampler walks with."""
        return self.with_variance if sampler.traits.learned else self

    def _estimate(self, z: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        self.calls += 1
        c_in, from_z, from_out = self.prediction.scalars(logsnr)
        level = torch.full((len(z),), logsnr, device=z.device, dtype=torch.float32)
        out = check_output(self.network(z if c_in == 1 else z * c_in, level, self.labels), z, variance=True)
        out, v = out.to(z.dtype).tensor_split([z.shape[1]], 1)
        x_hat = (z * from_z).add_(out, alpha=from_out)
        if self.guide is not None and self.guidance.active(logsnr):
            x_hat = self.guidance.combine(x_hat, self.guide(z, logsnr))
        return self.clip(x_hat), v
