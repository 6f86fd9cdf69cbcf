"""The weighted loss, sampled: L_w = ½ E_t[(w/p)(λ_t) ‖ε−ε̂‖²]."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError

Network = Callable[[Tensor, Tensor, Any], Tensor]
"""(z [B, …], logsnr [B], labels) → out [B, …]: any module or function. z is noised data, times the prediction's c_in."""


class LossTerms(NamedTuple):
    """The loss of a batch, a number per example: [B] each, on the device of the batch.

    loss: ½ (w/p) ‖ε−ε̂‖²/D in nats per dimension, to be averaged and differentiated. eps_mse: ‖ε−ε̂‖²/D, unweighted and
    without gradient. logsnr: the λ that each example was shown at. out: the network's output [B, …].
    """

    loss: Tensor
    eps_mse: Tensor
    logsnr: Tensor
    out: Tensor

    def __repr__(self) -> str:
        return f"LossTerms({len(self.loss)} examples)"


class StepCoefficients(NamedTuple):
    """One row per example: [B, 1, 1, 1] for images, [B] for factors."""

    alpha: Tensor
    sigma: Tensor
    a: Tensor
    b: Tensor
    c_in: Tensor
    eps_factor: Tensor
    loss_factor: Tensor
    logsnr: Tensor


def step_coefficients(
    logsnr: Tensor,
    weighting: Weighting,
    schedule: Schedule,
    prediction: Prediction,
    send: Callable[[Tensor], Tensor] = lambda rows: rows,
    dtype: torch.dtype = torch.float32,
    dimensions: int = 3,
) -> StepCoefficients:
    """All that depends on λ, in float64, then as `dtype`. logsnr: [B] float64 on the CPU.

    send: what brings a tensor to where the step is done; it is called once. dimensions: of an example, 3 for images.

    loss_factor is ½ (w/p) (α/d)² (Kingma & Gao 2023, eq. 6, importance-sampled), so that loss = loss_factor · ‖target−out‖² never passes through ε̂.
    """
    c = prediction.coefficients(logsnr)
    loss_factor = 0.5 * (weighting(logsnr).log() - schedule.density(logsnr).log()).exp() * c.eps_factor
    rows = send(torch.stack([c.alpha, c.sigma, c.a, c.b, c.c_in, c.eps_factor, loss_factor, logsnr]).to(dtype))
    images = rows[:5].view(5, -1, *[1] * dimensions)
    return StepCoefficients(*images, *rows[5:])


def check_output(out: Any, z: Tensor, variance: bool = False) -> Tensor:
    """Return a network's output for z [B, C, …]. Raises UsageError unless it is a tensor shaped like z.

    variance: [B, 2C, …] will do as well: the prediction, and a learned variance behind it.
    """
    twice = (*z.shape[:1], *(2 * channels for channels in z.shape[1:2]), *z.shape[2:])
    if isinstance(out, Tensor) and (out.shape == z.shape or (variance and out.shape == twice)):
        return out
    given = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
    raise UsageError(f"the network gives {given} for z {list(z.shape)}; expected that shape")


def denoising_losses(
    network: Network,
    x: Tensor,
    eps: Tensor,
    labels: Any,
    logsnr: Tensor,
    weighting: Weighting,
    schedule: Schedule,
    prediction: Prediction,
    send: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> LossTerms:
    """Noise x to z = αx + σε, show the network z, and score its output: training, validation and bounds all do this.

    x, eps: [B, …]. logsnr, send: as in `step_coefficients`. Raises UsageError for an output of another shape.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    c = step_coefficients(logsnr, weighting, schedule, prediction, send, dtype, x.dim() - 1)
    z = torch.addcmul(c.alpha * x, c.sigma, eps).mul_(c.c_in)
    out = check_output(network(z, c.logsnr, labels), z)
    with torch.autocast(out.device.type, enabled=False):  # in the precision of c, whatever the network ran in
        target = torch.addcmul(c.a * x, c.b, eps)
        error = (target - out.to(target.dtype)).square().flatten(1).mean(1)
        return LossTerms(c.loss_factor * error, (c.eps_factor * error).detach(), c.logsnr, out)
