"""A trained network as samplers and bounds need it: D(z, λ) → x̂, with weights in the precision that autocast uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elbocli.core.loss import Network, check_output
from elbocli.core.prediction import Prediction
from elbocli.core.registry import Declaration
from elbocli.core.samplers import Denoise, DenoiseWithVariance, Sampler
from elbocli.core.sampling import CLIPS, Guidance
from elbocli.errors import UsageError
from elbocli.nn import networks
from elbocli.runtime.device import PRECISIONS, Precision

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
        return self._guided(z, logsnr, self._outputs(z, logsnr)[:, : z.shape[1]])

    def with_variance(self, z: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """x̂, and γ = (v + 1)/2 of the v that the network gives behind its prediction, which nothing guides.

        Raises UsageError where it gives none.
        """
        channels, out = z.shape[1], self._outputs(z, logsnr)
        if out.shape[1] != 2 * channels:
            raise UsageError(f"a learned variance needs {2 * channels} channels of a network; it gives {out.shape[1]}")
        return self._guided(z, logsnr, out[:, :channels]), (out[:, channels:] + 1).mul_(0.5)

    def asked_by(self, sampler: Sampler) -> Denoise | DenoiseWithVariance:
        """The kind of denoiser that a sampler walks with."""
        return self.with_variance if sampler.traits.learned else self

    def _outputs(self, z: Tensor, logsnr: float) -> Tensor:
        self.calls += 1
        c_in, _, _ = self.prediction.scalars(logsnr)
        level = torch.full((len(z),), logsnr, device=z.device, dtype=torch.float32)
        out = self.network(z if c_in == 1 else z * c_in, level, self.labels)
        return check_output(out, z, variance=True).to(z.dtype)

    def _guided(self, z: Tensor, logsnr: float, out: Tensor) -> Tensor:
        _, from_z, from_out = self.prediction.scalars(logsnr)
        x_hat = (z * from_z).add_(out, alpha=from_out)
        if self.guide is not None and self.guidance.active(logsnr):
            x_hat = self.guidance.combine(x_hat, self.guide(z, logsnr))
        return self.clip(x_hat)


class _Uses(TorchDispatchMode):
    """Weights that are cast to a precision, and weights that anything else is done with."""

    def __init__(self, precision: torch.dtype):
        super().__init__()
        self.precision = precision
        self.cast, self.else_used = set[Tensor](), set[Tensor]()

    def __torch_dispatch__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        casts = function is torch.ops.aten._to_copy.default and kwargs.get("dtype") == self.precision
        weights = {value for value in tree_leaves((args, kwargs)) if isinstance(value, nn.Parameter)}
        (self.cast if casts else self.else_used).update(weights)
        return function(*args, **kwargs)


def cast_weights(network: networks.Network, precision: Precision) -> None:
    """Hold those weights in a lower precision that autocast does nothing with but cast them to it; not for training.

    The network's outputs under autocast stay the same to the last bit. It is called once, with one image, to see which
    they are: λ's first layer, norms and embeddings are used as they are.
    """
    dtype = PRECISIONS[precision.name]
    if dtype == torch.float32:
        return
    with torch.no_grad(), precision.applied(), precision.autocast(), _Uses(dtype) as uses:
        network(*network.config.example(1, precision.device))
    for weight in uses.cast - uses.else_used:
        weight.data = weight.data.to(dtype)
