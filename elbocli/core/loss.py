"""The weighted loss, sampled: L_w = ½ E_t[(w/p)(λ_t) ‖ε−ε̂‖²]."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting


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


def losses(out: Tensor, x: Tensor, eps: Tensor, c: StepCoefficients) -> tuple[Tensor, Tensor]:
    """(weighted loss, unweighted ε error), each [B], per dimension, in the precision of c whatever the network ran in."""
    with torch.autocast(out.device.type, enabled=False):
        target = torch.addcmul(c.a * x, c.b, eps)
        error = (target - out.to(target.dtype)).square().flatten(1).mean(1)
        return c.loss_factor * error, (c.eps_factor * error).detach()


def denoising_losses(
    forward: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    eps: Tensor,
    labels: Tensor | None,
    c: StepCoefficients,
) -> tuple[Tensor, Tensor]:
    """Noise x to z = αx + σε, let the network see it, and score its output, as a training step does.

    x, eps: [B, C, H, W]. Returns what `losses` does.
    """
    z = torch.addcmul(c.alpha * x, c.sigma, eps)
    return losses(forward(z.mul_(c.c_in), c.logsnr, labels), x, eps, c)
