"""Log density of an example by the probability-flow ODE."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from elbocli.core.prediction import alpha_sigma
from elbocli.sampling.samplers import Denoise, no_noise, parse_sampler, walk

DenoiseWithTrace = Callable[["Tensor", float], "tuple[Tensor, Tensor]"]  # (z [B, …], λ) → (x̂, tr ∂x̂/∂z [B])


def with_trace(denoise: Denoise, probes: Sequence[Tensor] | None) -> DenoiseWithTrace:
    """Return a denoiser that also returns the trace of ∂x̂/∂z.

    probes: tensors of random signs, shaped like z, for an estimate; None: exact trace.
    Source: Hutchinson 1989; Grathwohl et al. 2019 (FFJORD).
    """

    def both(z: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            seen = z.detach().requires_grad_()
            x_hat = denoise(seen, logsnr)
        trace = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        size = z[0].numel()
        chosen = torch.eye(size).view(size, 1, *z.shape[1:]) if probes is None else probes
        for each in chosen:
            probe = each.to(z).expand_as(z)
            (slope,) = torch.autograd.grad(x_hat, seen, probe.to(x_hat), retain_graph=True)
            trace += (slope * probe).double().flatten(1).sum(1)
        return x_hat.detach(), trace if probes is None else trace / len(probes)

    return both


def log_density(
    z: Tensor, denoise: DenoiseWithTrace, logsnr_max: float, logsnr_min: float, steps: int, sampler: str = "heun"
) -> Tensor:
    """Return log p(z) by the probability-flow ODE, [B], nats, float64.

    z: data noised to logsnr_max, [B, …]. logsnr_min: λ of the prior N(0, I).
    steps: number of equal steps in λ. sampler: SPEC of a sampler that adds no noise.
    Source: Song et al. 2021 (score-based SDEs), eq. 39.
    """
    # In y = z/α the ODE is dy/dσ = (y − x̂)/σ, and along it d log p(y)/dσ = −(D − tr ∂x̂/∂y)/σ. A sampler integrates only
    # equations of the form (y − x̂)/σ. So the log density is appended to z as one more dimension, with the estimate
    # x̂ = a + D α² − α tr ∂x̂/∂z, and gets the sampler's order of accuracy.
    shape = z.shape
    size = z[0].numel()

    def beside(state: Tensor, logsnr: float) -> Tensor:
        alpha = alpha_sigma(logsnr)[0]
        x_hat, trace = denoise(state[:, :-1].view(shape), logsnr)
        own = state[:, -1] / alpha + size * alpha**2 - alpha * trace
        return torch.cat([x_hat.double().flatten(1), own[:, None]], 1)

    grid = [logsnr_max + (logsnr_min - logsnr_max) * k / steps for k in range(steps + 1)]
    start = torch.nn.functional.pad(z.double().flatten(1), (0, 1))
    end = walk(parse_sampler(sampler), start, grid, beside, no_noise)
    last = end[:, :-1]
    changed = end[:, -1] / alpha_sigma(logsnr_min)[0]
    return -0.5 * last.square().sum(1) - 0.5 * size * math.log(2 * math.pi) - changed
