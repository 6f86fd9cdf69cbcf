"""−log p of images by the probability-flow ODE.

The ODE's trajectories have the marginals of the diffusion, so the density of an example follows from the divergence along its
trajectory. Source: Song et al. 2021 (score-based SDEs), sec. 4.3; Grathwohl et al. 2019 for the trace.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import Measurement
from elbocli.bound.result import FlowLikelihood, nats_fields
from elbocli.core.paired import PairedMoments
from elbocli.core.prediction import alpha_sigma
from elbocli.core.registry import Bounds, Declaration, Registry
from elbocli.core.streams import Stream
from elbocli.errors import NonFiniteError, UsageError
from elbocli.runs.examples import ImageBatch, draw_noise
from elbocli.runtime.device import sent
from elbocli.runtime.progress import progress
from elbocli.sampling.denoiser import Denoiser
from elbocli.sampling.samplers import Denoise, no_noise, parse_sampler, walk

FEWEST_TO_FIT = 16  # least number of images for fitting a control variate's coefficient
CHECKED = 32  # images on which the ODE is also solved with half the steps, to estimate the solver's error

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


@dataclass(frozen=True, repr=False)
class Estimator(Declaration[[Measurement], FlowLikelihood]):
    """Function that estimates −log p of the images of a Measurement."""


ESTIMATORS = Registry("estimator", Estimator)


@ESTIMATORS.declare(
    "ode",
    formula="E[-log p(x|z0) + log q(z0|x) - log p(z0)], p(z0) by the probability-flow equation",
    source="Song et al. 2021; Grathwohl et al. 2019 for the trace",
    known_as=["flow", "pf-ode"],
)
def estimate_by_ode(
    measured: Measurement,
    steps: Annotated[float, Bounds(4, 100_000)] = 64.0,
    draws: Annotated[float, Bounds(2, 1000)] = 2.0,
    probes: Annotated[float, Bounds(1, 1000)] = 1.0,
    exact: Annotated[float, Bounds(0, 4096)] = 16.0,
) -> FlowLikelihood:
    """Estimate −log p of images by the probability-flow ODE, solved by Heun's method.

    steps: even number of steps, evenly spaced in λ.
    draws: even number of noisy versions z₀ of each image.
    probes: random sign vectors per z₀, for Hutchinson's estimate of the trace.
    exact: largest number of dimensions for which the trace is computed exactly, without probes.
    Raises UsageError unless all four are integers, `steps` and `draws` even, and there are two or more images.
    Raises NonFiniteError for a NaN or infinite solution.
    """
    if steps % 2 or draws % 2 or probes % 1 or exact % 1:
        raise UsageError(f"ode: {steps=:g} and {draws=:g} must be even integers, and {probes=:g} and {exact=:g} integers")
    batch = next(iter(measured.images), None)
    if batch is None:
        raise UsageError(f"{measured.name}: there are no images to measure; give two or more")
    signs = 0 if batch.content[0].numel() <= exact else int(probes)
    values, solver = _solve(measured, int(steps), int(draws), signs)
    reconstruction, flow, square = values.view(-1, 2, int(draws) // 2, 3).mean(2).unbind(2)
    flow = flow - slopes(flow, square)[:, None] * square
    moments = PairedMoments()
    moments.add(torch.stack([reconstruction, flow], 2))
    means = moments.estimate()
    both = np.ones(2)
    return FlowLikelihood(
        **nats_fields(means.value(both), math.hypot(means.se(both, measured.population), solver), batch),
        estimator=ESTIMATORS.find("ode").bind({"steps": steps, "draws": draws, "probes": probes, "exact": exact}).spec,
        nats_se_noise=means.noise_se(both),
        nats_se_population=math.hypot(means.se(both, math.inf), solver),
        terms=dict(zip(("reconstruction", "flow"), means.mean.tolist(), strict=True)),
        evaluations=int(2 * steps * draws),
        solver_nats=solver,
        n_images=means.n,
    )


def _solve(measured: Measurement, steps: int, draws: int, signs: int) -> tuple[Tensor, float]:
    """Return the results of `_flow` for `draws` noisy versions of each image, [N · draws, 3], and the solver's error in nats."""
    # A quarter of the network's batch size, because backward passes need more memory.
    size = max(1, measured.batch_size // 4 // draws) * draws
    values = list[Tensor]()
    fine = list[Tensor]()
    coarse = list[Tensor]()
    for copies in (part for batch in measured.images for part in batch.copies(draws, size)):
        values.append(_flow(measured, copies, steps, signs))
        done = sum(map(len, values)) // draws
        if not fine or done <= CHECKED:
            fine.append(values[-1][:, 1].mean())
            coarse.append(_flow(measured, copies, steps // 2, signs)[:, 1].mean())
        progress(done, measured.total, "img")
    # Heun's method has order 2: half the steps have four times the error, so a third of the difference is the error.
    return torch.cat(values), float(torch.stack(coarse).mean() - torch.stack(fine).mean()) / 3


def _flow(measured: Measurement, copies: ImageBatch, steps: int, signs: int) -> Tensor:
    """Solve the ODE from one noisy version z₀ of each image, in float64.

    signs: random sign vectors for the trace; 0: exact trace.
    Returns: [B, 3], in nats: reconstruction term; E[log q(z₀|x)] − log p(z₀); control variate ½‖ε‖² − D/2.
    """
    x, labels = copies.placed(measured.precision.device)
    eps = draw_noise(Stream(measured.seed, "bound-ode-noise"), copies.rows, x).double()
    alpha, sigma = alpha_sigma(measured.high)
    denoiser = Denoiser(measured.network, measured.prediction, labels=labels)
    with torch.no_grad(), measured.precision.applied(), measured.precision.autocast():
        denoise = with_trace(denoiser, _sign_vectors(measured.seed, copies.rows, x, signs) or None)
        log_p = log_density(alpha * x.double() + sigma * eps, denoise, measured.high, measured.low, steps)
    if not log_p.isfinite().all():
        raise NonFiniteError(f"{measured.name}: the ODE's solution is not finite; try precision fp32, or a narrower logsnr range")
    log_q = -x[0].numel() * (0.5 * math.log(2 * math.pi * math.e) + math.log(sigma))
    square = 0.5 * eps.square().flatten(1).sum(1) - 0.5 * x[0].numel()
    return torch.stack([copies.decoder_nats(measured.high), (log_q - log_p).cpu(), square.cpu()], 1)


def _sign_vectors(seed: int, rows: Sequence[int], x: Tensor, count: int) -> list[Tensor]:
    """Return `count` tensors of random signs, float64, shaped like x and on its device."""
    stream = Stream(seed, "bound-ode-signs")
    shape = (*x.shape[2:], x.shape[1])
    numbers = (stream.signs([row * count + k for row in rows], shape) for k in range(count))
    return [sent(signs, x.device).movedim(-1, 1).double() for signs in numbers]


def slopes(value: Tensor, control: Tensor) -> Tensor:
    """Return each image's factor c, [N], for which value − c · control has the least variance.

    value: two estimates per image, [N, 2]. control: their control variates, of expectation 0, [N, 2].
    """
    odd = torch.arange(len(value)) % 2 == 1  # coefficients of odd images are fitted on even images, and vice versa
    factors = torch.zeros(len(value), dtype=torch.float64)
    for here, there in ((odd, ~odd), (~odd, odd)):
        if there.sum() >= FEWEST_TO_FIT:
            by = control[there].diff(dim=1)
            of = value[there].diff(dim=1)
            factors[here] = (by * of).sum() / by.square().sum().clamp(min=1e-30)
    return factors
