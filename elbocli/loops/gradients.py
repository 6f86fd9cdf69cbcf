"""How much the training gradient varies under a schedule: tr Cov / ‖mean‖², the thing a schedule is for."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.adaptive import Moments, bin_edges, fit
from elbocli.core.draws import Stream, times
from elbocli.core.objective import denoising_losses, step_coefficients
from elbocli.core.schedule import Schedule, parse_schedule
from elbocli.core.weighting import Weighting, parse_weighting
from elbocli.errors import UsageError
from elbocli.files.schedules import to_text
from elbocli.loops.examples import Examples
from elbocli.loops.probe import MEASURED, Probe
from elbocli.loops.report import Report
from elbocli.loops.runtime import autocast
from elbocli.loops.settings import Resolved

GROUPS = 8
BATCHES = 64
BINS, PER_BIN = 40, 32
DEFAULT = ("cosine", "edm", "uniform", "fitted:loss", "fitted:second-moment", "fitted:std", MEASURED)


@dataclass(frozen=True)
class GroupSums:
    """Of batch gradients in groups: products [G, G] of the groups' sums, squares [G] summed, and batches per group."""

    products: Tensor
    squares: Tensor
    per_group: int

    def trace_and_norm(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """(tr Cov of a batch's gradient, ‖mean‖²), unbiased: the second from products of different batches only."""
        count, squares = keep.sum() * self.per_group, keep @ self.squares
        norm = (keep @ self.products @ keep - squares) / (count * (count - 1))
        return squares / count - norm, norm


def jackknife(value: Any) -> tuple[float, float]:
    """(value of all groups, standard error by leaving out one at a time). value: a function of weights [G]."""
    every = torch.ones(GROUPS, dtype=torch.float64)
    without = torch.stack([value(every - row) for row in torch.eye(GROUPS, dtype=torch.float64)])
    spread = (without - without.mean()).square().sum() * (GROUPS - 1) / GROUPS
    return float(value(every)), float(spread.sqrt())


def compare(sums: list[GroupSums], batch: int) -> list[dict[str, float]]:
    """For each schedule tr Cov per image over ‖mean‖², and tr Cov over the smallest, with standard errors.

    The mean gradient doesn't depend on the schedule, so its norm is taken where it is known best.
    """
    every = torch.ones(GROUPS, dtype=torch.float64)
    best = min(sums, key=lambda s: float(s.trace_and_norm(every)[0]))
    rows = []
    for found in sums:
        ratio, ratio_se = jackknife(
            lambda keep, s=found: batch * s.trace_and_norm(keep)[0] / best.trace_and_norm(keep)[1]
        )
        relative, relative_se = jackknife(
            lambda keep, s=found: s.trace_and_norm(keep)[0] / best.trace_and_norm(keep)[0]
        )
        rows.append({"ratio": ratio, "ratio_se": ratio_se, "relative": relative, "relative_se": relative_se})
    return rows


class Steps:
    """Training steps of a run without their update: the batch, flips, label dropout and dropout are the run's own."""

    def __init__(self, probe: Probe):
        self.probe = probe
        self.settings = replace(probe.trained.settings, seed=probe.settings.seed)
        self.network = probe.trained.network.requires_grad_(True).train()
        self.parameters = list(self.network.parameters())
        self._noise, self._t, self._dropout = (
            Stream(self.settings.seed, f"gradient-{name}") for name in ("noise", "t", "dropout")
        )
        self._examples: dict[int, Examples] = {}

    def gradient(self, weighting: Weighting, schedule: Schedule, step: int, batch: int, logsnr: Tensor) -> Tensor:
        """Of the mean loss of a batch, flattened. Step k has the same images and noise under any schedule."""
        probe, config = self.probe, self.network.config
        if batch not in self._examples:
            resolved = Resolved(replace(self.settings, batch=batch), config, {}, {}, [])
            self._examples[batch] = Examples(probe.dataset, resolved, probe.device)
        x, labels = self._examples[batch].at(step)
        eps = self._noise.normal(range(step * batch, (step + 1) * batch), (*x.shape[2:], x.shape[1]))
        c = step_coefficients(logsnr, weighting, schedule, probe.trained.prediction, probe.device)
        if config.dropout:
            torch.manual_seed(self._dropout.seed(step))
        with autocast(probe.device, probe.settings.precision):
            loss, _ = denoising_losses(self.network, x, eps.to(probe.device).permute(0, 3, 1, 2), labels, c)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss.mean(), self.parameters)]).float()

    def batch(self, weighting: Weighting, schedule: Schedule, step: int) -> Tensor:
        """As in training."""
        size = self.settings.batch
        logsnr = schedule.logsnr(times(self._t, step, size, self.settings.t_sampling))
        return self.gradient(weighting, schedule, step, size, logsnr)


def measure(steps: Steps, weighting: Weighting, schedule: Schedule, batches: int) -> Iterator[GroupSums | None]:
    """None per batch, then the sums."""
    device = steps.probe.device
    sums = torch.zeros(GROUPS, sum(p.numel() for p in steps.parameters), device=device)
    squares = torch.zeros(GROUPS, dtype=torch.float64)
    for step in range(batches):
        gradient = steps.batch(weighting, schedule, step)
        sums[step % GROUPS] += gradient
        squares[step % GROUPS] += float(gradient.double().square().sum())
        yield None
    yield GroupSums((sums @ sums.T).double().cpu(), squares, batches // GROUPS)


def _norm(steps: Steps, cell: int, edges: Tensor) -> float:
    """Mean square of one image's gradient of ½‖ε−ε̂‖²/p, for p uniform and λ in one cell."""
    probe = steps.probe
    plain, uniform = parse_weighting("elbo"), parse_schedule("uniform", probe.low, probe.high)
    offset = Stream(probe.settings.seed, "gradient-norm").uniform(cell, 1)
    part = torch.from_numpy((offset + np.arange(PER_BIN) / PER_BIN) % 1.0)
    levels = edges[cell] + (edges[cell + 1] - edges[cell]) * part
    total = 0.0
    for k in range(PER_BIN):
        gradient = steps.gradient(plain, uniform, cell * PER_BIN + k, 1, levels[k : k + 1])
        total += float(gradient.double().square().sum())
    return total / PER_BIN


def run(
    probe: Probe, weightings: list[Weighting], specs: list[str], batches: int
) -> Generator[Report, None, tuple[dict[str, Any], str]]:
    """Measure every weighting under every schedule on the same images and noise.

    Returns (the result as JSON, the text of the measured schedule of the last weighting, or ''). Raises ElboError.
    """
    if batches < 2 * GROUPS or batches % GROUPS:
        raise UsageError(f"{batches} batches: expected a multiple of {GROUPS}, at least {2 * GROUPS}")
    steps, text = Steps(probe), ""
    total, done, rows = len(weightings) * len(specs) * batches, 0, []
    yield Report(
        0, total, "batch", f"{probe.trained.path}: {batches} batches of {steps.settings.batch} images for each schedule"
    )
    edges = bin_edges(probe.low, probe.high, BINS)
    norms: list[float] = []
    while MEASURED in specs and len(norms) < BINS:
        norms.append(_norm(steps, len(norms), edges))
        yield Report(len(norms), BINS, "level")
    for weighting in weightings:
        schedules = []
        for spec in specs:
            if spec == MEASURED:
                best = _least(edges, norms, weighting, probe.trained.settings.floor)
                text = to_text(best, weighting=weighting.spec, criterion="gradient")
            schedules.append(best if spec == MEASURED else probe.schedule(spec, weighting))
        sums = []
        for schedule in schedules:
            for found in measure(steps, weighting, schedule, batches):
                if found is None:
                    done += 1
                    yield Report(done, total, "batch")
                else:
                    sums.append(found)
        for schedule, row in zip(schedules, compare(sums, steps.settings.batch)):
            rows.append({"weighting": weighting.spec, "schedule": schedule.base, **row})
            yield Report(message=_sentence(rows[-1]))
    result = {
        "gradient_variance": rows,
        "batch": steps.settings.batch,
        "batches": batches,
        "t_sampling": steps.settings.t_sampling,
        **probe.about(),
    }
    return result, text


def _least(edges: Tensor, norms: list[float], weighting: Weighting, floor: float) -> Schedule:
    """Under independent t the gradient's second moment is ∫ w² E‖∇‖²/p dλ, least for p ∝ w √E‖∇‖²."""
    second = torch.tensor(norms, dtype=torch.float64)
    moments = Moments(edges, torch.full_like(second, PER_BIN), second.sqrt(), second)
    return fit(moments, weighting, "loss", floor, MEASURED)


def _sentence(row: dict[str, Any]) -> str:
    return (
        f"{row['weighting']} under {row['schedule']}: {row['relative']:.3f} ± {row['relative_se']:.3f} of the best; "
        f"tr Cov / |mean|^2 {row['ratio']:.4g} ± {row['ratio_se']:.2g} per image"
    )
