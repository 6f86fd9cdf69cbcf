"""How much the training gradient of a run varies, for each weighting under each schedule: tr Cov / ‖mean‖², as JSON.

python gradient_variance.py RUN [DATA.h5] [--weighting SPEC]... [--schedule SPEC]... [--batches N] [-o least.yaml]

SPEC of a schedule may be fitted:CRITERION, fitted to the run's own log, or fitted:gradient, fitted to gradients measured
here, which -o writes. docs/theory.md says what it found.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import RunMeasurement, open_measurement
from elbocli.core.adaptive import ErrorMoments, bin_edges, fit_schedule
from elbocli.core.objective import Objective
from elbocli.core.schedule import Schedule, make_schedule, parse_schedule
from elbocli.core.streams import Stream
from elbocli.core.weighting import Weighting, parse_weighting
from elbocli.errors import ElboError, UsageError
from elbocli.files.checkpoint import RunData
from elbocli.files.losslog import read_logs
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting, to_text
from elbocli.runs.settings import Resolved
from elbocli.runtime.progress import log, progress
from elbocli.training.batches import Batches
from elbocli.training.step import step_losses

MEASURED = "fitted:gradient"
GROUPS = 8
BINS = 40
PER_BIN = 32
DEFAULT = ("cosine", "edm", "uniform", "fitted:loss", "fitted:second-moment", "fitted:std", MEASURED)


@dataclass(frozen=True)
class ScheduleVariance:
    """The variance of the gradient under a schedule.

    ratio: tr Cov for an image over ‖mean‖². relative: tr Cov over that of the best schedule.
    """

    weighting: str
    schedule: str
    ratio: float
    ratio_se: float
    relative: float
    relative_se: float


@dataclass(frozen=True)
class GroupSums:
    """Sums over batch gradients in groups: products [G, G] of the groups' sums, squares [G] summed, and batches per group."""

    products: Tensor
    squares: Tensor
    per_group: int

    def trace_and_norm(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """(tr Cov of a batch's gradient, ‖mean‖²), unbiased: the second from products of different batches only."""
        count = keep.sum() * self.per_group
        squares = keep @ self.squares
        norm = (keep @ self.products @ keep - squares) / (count * (count - 1))
        return squares / count - norm, norm


def jackknife(value: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """(value of all groups, standard error by leaving out one at a time). value: a function of weights [G]."""
    every = torch.ones(GROUPS, dtype=torch.float64)
    without = torch.stack([value(every - row) for row in torch.eye(GROUPS, dtype=torch.float64)])
    spread = (without - without.mean()).square().sum() * (GROUPS - 1) / GROUPS
    return float(value(every)), float(spread.sqrt())


def compare(sums: list[GroupSums], batch: int) -> list[tuple[float, float, float, float]]:
    """For each schedule tr Cov per image over ‖mean‖², and tr Cov over the smallest, each followed by its standard error.

    batch: images in a gradient.

    The mean gradient doesn't depend on the schedule, so its norm is taken where it is known best.
    """
    every = torch.ones(GROUPS, dtype=torch.float64)
    best = min(sums, key=lambda s: float(s.trace_and_norm(every)[0]))

    def ratios(own: GroupSums) -> tuple[float, float, float, float]:
        ratio = jackknife(lambda keep: batch * own.trace_and_norm(keep)[0] / best.trace_and_norm(keep)[1])
        return *ratio, *jackknife(lambda keep: own.trace_and_norm(keep)[0] / best.trace_and_norm(keep)[0])

    return [ratios(own) for own in sums]


class Gradients:
    """Gradients of a run's loss. The batch, time sampling, flips, label dropout and dropout are the run's own."""

    def __init__(self, asked: RunMeasurement, batch: int | None = None):
        settings = asked.trained.settings
        # Not the noise that the run was trained on; and all images, as another seed would hold out others.
        seed = Stream(asked.seed, "gradient").seed(0)
        changed: Any = {"batch_size": batch or settings.batch_size, "precision": asked.precision.name}
        self.settings = replace(settings, seed=seed, micro_batch=0, val_split=0, **changed)
        trained = asked.trained
        objective = Objective(trained.weighting(), parse_schedule("uniform", asked.low, asked.high), trained.prediction)
        resolved = Resolved(self.settings, trained.network.config, RunData(), {}, objective)
        self.device = asked.precision.device
        self.precision = asked.precision
        self.prediction = asked.trained.prediction
        self.batches = Batches(asked.dataset, resolved, self.device)
        self.network = asked.trained.network.requires_grad_(True).train()
        self.parameters = list(self.network.parameters())

    def at(self, step: int, weighting: Weighting, schedule: Schedule, logsnr: Tensor | None = None) -> Tensor:
        """The gradient of a step's mean loss, flattened: under any schedule of the same images, noise and t (or at given λ)."""
        with self.precision.applied():
            objective = Objective(weighting, schedule, self.prediction)
            loss, _, _ = step_losses(self.network, self.batches, step, 0, objective, logsnr)
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss.mean(), self.parameters)]).float()


def group_sums(gradients: Gradients, weighting: Weighting, schedule: Schedule, batches: int, done: int, total: int) -> GroupSums:
    """Gradients of so many batches. done, total: batches before these and of all schedules, for the progress."""
    sums = torch.zeros(GROUPS, sum(p.numel() for p in gradients.parameters), device=gradients.device)
    squares = torch.zeros(GROUPS, dtype=torch.float64)
    for step in range(batches):
        gradient = gradients.at(step, weighting, schedule)
        sums[step % GROUPS] += gradient
        squares[step % GROUPS] += float(gradient.double().square().sum())
        progress(done + step + 1, total, "batch")
    return GroupSums((sums @ sums.T).double().cpu(), squares, batches // GROUPS)


def _squared_norm(singles: Gradients, asked: RunMeasurement, cell: int, edges: Tensor) -> float:
    """Mean square of one image's gradient of ½‖ε−ε̂‖²/p, for p uniform and λ in one cell."""
    plain = parse_weighting("elbo")
    uniform = parse_schedule("uniform", asked.low, asked.high)
    offset = Stream(asked.seed, "gradient-norm").uniform(cell, 1)
    part = torch.from_numpy((offset + np.arange(PER_BIN) / PER_BIN) % 1.0)
    levels = edges[cell] + (edges[cell + 1] - edges[cell]) * part
    steps = (singles.at(cell * PER_BIN + k, plain, uniform, levels[k : k + 1]) for k in range(PER_BIN))
    return sum(float(gradient.double().square().sum()) for gradient in steps) / PER_BIN


def run(asked: RunMeasurement, weightings: list[Weighting], specs: list[str], batches: int) -> tuple[dict[str, Any], str]:
    """Measure every weighting under every schedule on the same images and noise.

    Returns (the result as JSON, the text of the measured schedule of the last weighting, or ''). Raises ElboError.
    """
    if batches < 2 * GROUPS or batches % GROUPS:
        raise UsageError(f"{batches} batches: expected a multiple of {GROUPS}, at least {2 * GROUPS}")
    gradients = Gradients(asked)
    settings = asked.trained.settings
    size = gradients.settings.batch_size
    total = len(weightings) * len(specs) * batches
    what = f"{batches} batches of {size} images for each schedule; {asked.precision.device}, {asked.precision}"
    log.info("%s: %s", asked.trained.path, what)
    edges = bin_edges(asked.low, asked.high, BINS)
    singles = Gradients(asked, batch=1)
    norms = list[float]()
    while MEASURED in specs and len(norms) < BINS:
        norms.append(_squared_norm(singles, asked, len(norms), edges))
        progress(len(norms), BINS, "level")
    rows = list[ScheduleVariance]()
    text = ""
    done = 0
    for weighting in weightings:
        schedules = []
        sums = []
        for spec in specs:
            if spec == MEASURED:
                schedules.append(_least(edges, norms, weighting, settings.floor))
                text = to_text(schedules[-1], weighting=weighting.spec, criterion="gradient")
            else:
                schedules.append(_schedule_of(spec, asked, weighting))
        for schedule in schedules:
            sums.append(group_sums(gradients, weighting, schedule, batches, done, total))
            done += batches
        for schedule, ratios in zip(schedules, compare(sums, size)):
            rows.append(ScheduleVariance(weighting.spec, schedule.base, *ratios))
            log.info(_sentence(rows[-1]))
    how = {"batch": size, "batches": batches, "t_sampling": settings.t_sampling}
    return {"gradient_variance": [asdict(row) for row in rows], **how, **asked.about()}, text


def _schedule_of(spec: str, asked: RunMeasurement, weighting: Weighting) -> Schedule:
    """The schedule of a SPEC; of fitted:CRITERION, a schedule fitted to the run's loss log."""
    trained = asked.trained
    (name, _, criterion) = spec.partition(":")
    if name != "fitted":
        return resolve_schedule(spec, asked.low, asked.high, size=trained.network.config.image_size)
    losses = read_logs([trained.path])
    moments = ErrorMoments.of_sums(losses.edges, losses.sums)
    fitted = fit_schedule(moments, weighting, criterion, trained.settings.floor)
    return make_schedule(fitted.curve, spec, asked.low, asked.high)


def _least(edges: Tensor, norms: list[float], weighting: Weighting, floor: float) -> Schedule:
    """The schedule of least variance. Under independent t the gradient's second moment is ∫ w² E‖∇‖²/p dλ, least for
    p ∝ w √E‖∇‖².
    """
    second = torch.tensor(norms, dtype=torch.float64)
    moments = ErrorMoments(edges, torch.full_like(second, PER_BIN), second.sqrt(), second)
    return replace(fit_schedule(moments, weighting, "loss", floor), name=MEASURED)


def _sentence(row: ScheduleVariance) -> str:
    return (
        f"{row.weighting} under {row.schedule}: {row.relative:.3f} ± {row.relative_se:.3f} of the best; "
        f"tr Cov / |mean|^2 {row.ratio:.4g} ± {row.ratio_se:.2g} per image"
    )


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description="The variance of a run's training gradient under schedules.")
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path, nargs="?", help="a dataset; the run's own unless given")
    parser.add_argument("--weighting", action="append", default=[], help="the run's own unless given")
    parser.add_argument("--schedule", action="append", help=f"by default {', '.join(DEFAULT)}")
    parser.add_argument("--batches", type=int, default=64, help="batches of gradients for each schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--out", type=Path, help="the schedule of least variance, measured here")
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    specs = given.schedule or list(DEFAULT)
    if given.out and (len(given.weighting) > 1 or MEASURED not in specs):
        parser.error(f"-o writes the schedule {MEASURED} of one --weighting")
    try:
        settings: Any = {"seed": given.seed, "device": given.device, "weights": "model"}
        asked = open_measurement(given.run, given.data, **settings)
        weightings = [resolve_weighting(spec) for spec in given.weighting] or [asked.trained.weighting()]
        found, text = run(asked, weightings, specs, given.batches)
    except ElboError as error:
        parser.exit(error.exit_code, f"gradient_variance.py: error: {error}\n")
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
