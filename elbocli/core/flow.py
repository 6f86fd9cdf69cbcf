"""The probability-flow equation as a density: log p of noisy data, by a walk from the data to noise.

In y = z/α the equation is dy/dσ = (y − x̂)/σ, and along it d log p(y)/dσ = −(D − tr ∂x̂/∂y)/σ. A sampler's step knows
only the form (y − x̂)/σ. So the log density of z walks as one more number beside z, with an estimate
x̂ = a + D α² − α tr ∂x̂/∂z of its own, and has the sampler's order. Source: Song et al. 2021 (score-based SDEs), eq. 39;
the trace from random signs: Hutchinson 1989; Grathwohl et al. 2019 (FFJORD).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from elbocli.core.logsnr import alpha_sigma
from elbocli.core.samplers import Denoise
from elbocli.core.samplers.walk import parse_sampler, walk

if TYPE_CHECKING:
    from torch import Tensor

DenoiseWithTrace = Callable[["Tensor", float], "tuple[Tensor, Tensor]"]
"""D(z [B, …], λ) → (x̂, tr ∂x̂/∂z [B])."""


def with_trace(denoise: Denoise, probes: Sequence[Tensor] | None) -> DenoiseWithTrace:
    """A denoiser that also tells its trace: the mean of n·(∂x̂/∂z)n over probes n like z, or the exact one for None,
    which takes a backward pass for every dimension.
    """
    import torch

    def both(z: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            seen = z.detach().requires_grad_()
            x_hat = denoise(seen, logsnr)
        trace = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        size = z[0].numel()
        chosen = _units(z) if probes is None else probes
        for index in range(size if probes is None else len(chosen)):
            probe = chosen[index].to(z).expand_as(z)
            (slope,) = torch.autograd.grad(x_hat, seen, probe.to(x_hat), retain_graph=True)
            trace += (slope * probe).double().flatten(1).sum(1)
        return x_hat.detach(), trace if probes is None else trace / len(probes)

    return both


def _units(z: Tensor) -> Tensor:
    """One unit vector for each dimension of z [B, …], as [D, 1, …]."""
    import torch

    size = z[0].numel()
    return torch.eye(size, device=z.device, dtype=z.dtype).view(size, 1, *z.shape[1:])


def log_density(
    z: Tensor, denoise: DenoiseWithTrace, logsnr_max: float, logsnr_min: float, steps: int, sampler: str = "heun"
) -> Tensor:
    """log p(z) in nats, [B] float64, of noisy data z [B, …] at logsnr_max, where at logsnr_min it is N(0, I).

    steps: even ones in λ. sampler: one that draws no noise.
    """
    import torch

    shape, size = z.shape, z[0].numel()

    def beside(state: Tensor, logsnr: float) -> Tensor:
        alpha = alpha_sigma(logsnr)[0]
        x_hat, trace = denoise(state[:, :-1].view(shape), logsnr)
        own = state[:, -1] / alpha + size * alpha**2 - alpha * trace
        return torch.cat([x_hat.double().flatten(1), own[:, None]], 1)

    def no_noise() -> Tensor:
        raise AssertionError("the equation draws no noise")

    grid = [logsnr_max + (logsnr_min - logsnr_max) * k / steps for k in range(steps + 1)]
    start = torch.cat([z.double().flatten(1), z.new_zeros(len(z), 1, dtype=torch.float64)], 1)
    end = walk(parse_sampler(sampler), start, grid, beside, no_noise)
    last = end[:, :-1]
    changed = end[:, -1] / alpha_sigma(logsnr_min)[0]
    return -0.5 * last.square().sum(1) - 0.5 * size * math.log(2 * math.pi) - changed
