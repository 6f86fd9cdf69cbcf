"""A trained network as a denoiser D(z, λ) → x̂, for samplers and bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elbocli.core.objective import NetworkFunction, check_output
from elbocli.core.prediction import Prediction
from elbocli.errors import Parameter, UsageError
from elbocli.sampling.guidance import THRESHOLDS, Guidance, Threshold
from elbocli.sampling.samplers import Denoise, DenoiseWithVariance, Sampler

NO_THRESHOLD = THRESHOLDS["none"]


@dataclass
class Denoiser:
    """A network as a denoiser, with guidance and clipping of x̂.

    network: takes float32; outputs the prediction, or the prediction and a learned variance in twice the channels.
    labels: classes [B]; None: no classes. threshold: method that clips x̂, from THRESHOLDS.
    guide: denoiser for the weak output of guidance; None: the same network, given no class.
    conditional: whether the network takes labels.
    calls: number of calls of `network`, without calls of the guide.
    """

    network: NetworkFunction
    prediction: Prediction
    guidance: Guidance = Guidance()
    labels: Tensor | None = None
    guide: Denoiser | None = None
    threshold: Threshold = NO_THRESHOLD
    conditional: bool = True
    calls: int = 0

    def __post_init__(self) -> None:
        if self.guide is None and self.labels is not None and self.guidance.scale != 1:
            self.guide = Denoiser(self.network, self.prediction, labels=torch.full_like(self.labels, -1))

    def with_labels(self, labels: Tensor | None) -> Denoiser:
        """Return a copy for a batch with these classes, [B] or None, without calls so far."""
        labels = labels if self.conditional else None
        return replace(self, labels=labels, guide=self.guide and self.guide.with_labels(labels), calls=0)

    @property
    def evaluations(self) -> int:
        """Number of network calls so far, including the guide's."""
        return self.calls + (self.guide.evaluations if self.guide else 0)

    def __call__(self, z: Tensor, logsnr: float) -> Tensor:
        """Return x̂ [B,C,H,W] at one λ for the whole batch."""
        return self._estimate(z, logsnr)[0]

    def with_variance(self, z: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """Return x̂ with guidance, and γ = (v + 1)/2, each [B,C,H,W].

        v: the network's variance output, without guidance. Raises UsageError without a learned variance.
        """
        x_hat, v = self._estimate(z, logsnr)
        if v.shape != z.shape:
            raise UsageError(
                f"the network has no learned variance: {z.shape[1]} output channels, not {2 * z.shape[1]}; use ",
                Parameter("sampler"),
                " ddpm",
            )
        return x_hat, (v + 1).mul_(0.5)

    def for_sampler(self, sampler: Sampler) -> Denoise | DenoiseWithVariance:
        """Return `with_variance` for a sampler that needs a learned variance, else the denoiser itself."""
        return self.with_variance if sampler.learned else self

    def _estimate(self, z: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        self.calls += 1
        c_in, from_z, from_out = self.prediction.scalars(logsnr)
        level = torch.full((len(z),), logsnr, device=z.device, dtype=torch.float32)
        out = check_output(self.network((z if c_in == 1 else z * c_in).float(), level, self.labels), z, variance=True)
        out, v = out.to(z.dtype).tensor_split([z.shape[1]], 1)
        x_hat = (z * from_z).add_(out, alpha=from_out)
        if self.guide is not None and self.guidance.active(logsnr):
            x_hat = self.guidance.combine(x_hat, self.guide(z, logsnr))
        return self.threshold(x_hat), v
