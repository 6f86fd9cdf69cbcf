"""Diffusion objectives: the weighted loss, importance-sampled by the schedule, L_w = ½ E_t[(w/p)(λ_t) ‖ε−ε̂‖²]."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError

NetworkFunction = Callable[[Tensor, Tensor, Any], Tensor]
"""Module or function (z [B, …], logsnr [B], labels) → out [B, …]. z: noised data times the input scale c_in."""


class LossTerms(NamedTuple):
    """Loss of each example of a batch, on the device of the batch.

    loss: [B], ½ (w/p) ‖ε−ε̂‖²/D in nats per dimension; average it and call backward().
    eps_mse: [B], ‖ε−ε̂‖²/D, unweighted and without gradient.
    logsnr: [B], the λ of each example.
    """

    loss: Tensor
    eps_mse: Tensor
    logsnr: Tensor

    def __repr__(self) -> str:
        return f"LossTerms({len(self.loss)} examples)"


def check_output(out: object, z: Tensor, variance: bool = False) -> Tensor:
    """Return a network's output after a check of its shape.

    z: the network's input, [B, C, …].
    variance: also accept [B, 2C, …], the prediction followed by a learned variance.
    Raises UsageError for another shape, or no tensor.
    """
    twice = (len(z), 2 * z.shape[1], *z.shape[2:])
    if isinstance(out, Tensor) and (out.shape == z.shape or (variance and out.shape == twice)):
        return out
    given = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
    raise UsageError(f"the network returned {given} for z of shape {list(z.shape)}; expected a tensor of z's shape")


@dataclass(frozen=True)
class Objective:
    """Diffusion objective: a weighting w(λ), a schedule that draws λ, and the quantity that the network predicts.

    Source: Kingma & Gao 2023, eq. 6.
    """

    weighting: Weighting
    schedule: Schedule
    prediction: Prediction

    def losses(self, network: NetworkFunction, x: Tensor, eps: Tensor, labels: object, logsnr: Tensor) -> LossTerms:
        """Return a network's weighted loss on each example x, noised to z = αx + σε.

        x, eps: data and noise, [B, …].
        labels: passed to the network unchanged.
        logsnr: [B], float64, on the CPU; drawn by the schedule, so that the mean loss estimates L_w/D.
        Raises UsageError if the network's output and x differ in shape.
        """
        c = self.prediction.coefficients(logsnr)
        # ½ (w/p) (α/d)² with d = αb − σa, so that the loss is loss_factor · ‖target−out‖²/D, without ε̂.
        loss_factor = 0.5 * (self.weighting(logsnr).log() - self.schedule.density(logsnr).log()).exp() * c.eps_factor
        rows = torch.stack([c.alpha, c.sigma, c.a, c.b, c.c_in, c.eps_factor, loss_factor, logsnr])
        rows = rows.to(torch.promote_types(x.dtype, torch.float32))
        if x.device.type == "cuda":
            rows = rows.pin_memory()  # so that the copy is asynchronous
        rows = rows.to(x.device, non_blocking=True)
        alpha, sigma, a, b, c_in = rows[:5].view(5, -1, *[1] * (x.dim() - 1))
        eps_factor, loss_factor, level = rows[5:]
        z = torch.addcmul(alpha * x, sigma, eps).mul_(c_in)
        out = check_output(network(z, level, labels), z)
        with torch.autocast(out.device.type, enabled=False):  # in the factors' precision, even if the network runs in bfloat16
            target = torch.addcmul(a * x, b, eps)
            error = (target - out.to(target.dtype)).square().flatten(1).mean(1)
            return LossTerms(loss_factor * error, (eps_factor * error).detach(), level)
