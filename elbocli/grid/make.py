"""Make a grid for a run: from its loss log, or by measuring the errors of a sampler's steps on its own network."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from elbocli.core.adaptive import ErrorMoments
from elbocli.core.local_error import (
    AncestralErrors,
    EqualErrors,
    EquationErrors,
    FineSolution,
    StepErrors,
    equal_errors,
    measured_order,
    refuse_noise,
)
from elbocli.core.registry import Declaration
from elbocli.core.samplers import Sampler, time_grid
from elbocli.core.sampling import GRIDS, GridTask, Guidance, purpose_of
from elbocli.core.schedule import parse_schedule
from elbocli.core.streams import Stream, choose_labels
from elbocli.errors import DataError, ElboError, UsageError
from elbocli.files.losslog import read_logs
from elbocli.files.records import Record, stored
from elbocli.files.schedule_file import to_text
from elbocli.nn.denoiser import Denoiser
from elbocli.run.open import TrainedRun, open_run
from elbocli.runtime.device import Precision, choose_device, sent
from elbocli.runtime.progress import Progress
from elbocli.sample.guided import GuidedRun
from elbocli.version import __version__


class GridErrors(Record, frozen=True):
    """The errors of a sampler's steps on one grid, as they count for the data: their sum, the largest, and the error at the
    end of the whole walk, None where only its distribution could be wrong.
    """

    summed: float
    largest: float
    final: float | None


@stored("result of elbo grid --report (JSON)")
class GridReport(Record, frozen=True):
    """A grid, what each of its steps does wrong, and what steps on other grids do.

    levels: λ, rising. errors: of the step from each level, the last one's to clean data, in what `unit` says. spread:
    the largest over the least. order: p, where a step's error goes like its width to the power p + 1. rounds: in which
    the steps were made alike; None for a grid that follows from the log. evaluations: of networks for each
    trajectory, in all that was measured. grids: this one and others of as many steps, by name.
    """

    run: str
    checkpoint: str
    kind: str
    sampler: str
    steps: int
    logsnr_min: float
    logsnr_max: float
    unit: str
    levels: list[float]
    errors: list[float]
    spread: float
    order: float
    rounds: int | None
    images: int | None
    evaluations: int
    grids: dict[str, GridErrors]
    seed: int
    elbo_version: str


CELLS = 64
"""Cells of the fine solution, or four times the steps if those are more."""
OTHERS, LOGGED = ("cosine", "edm-sample"), ("entropic", "rescaled")
ROOT, VARIANCE = "root mean square per value of the data", "variance per value of the data"
TINY = 1e-30


@dataclass(frozen=True)
class GridSettings:
    """Settings of a grid. steps 0 is the sampler's usual number. images: trajectories to measure along. guide, guide_average,
    weights, average, batch: as SampleSettings has them. since, floor: as `elbo adapt` takes them.
    """

    kind: Declaration[None]
    sampler: Sampler
    steps: int = 0
    images: int = 32
    guidance: Guidance = Guidance()
    guide: Path | None = None
    guide_average: str = ""
    classes: str = "balanced"
    seed: int = 0
    since: int = 0
    floor: float = 0.01
    weights: str = "ema"
    average: str = ""
    batch: int = 64
    device: str = "auto"
    precision: str = "fp32"


class _Measured:
    """A sampler on a run's network: what its steps do wrong, measured when it is first asked for."""

    def __init__(self, run: TrainedRun, guide: TrainedRun | None, settings: GridSettings, steps: int):
        self.run, self.settings, self.steps = run, settings, steps
        self.low, self.high = run.settings.logsnr_min, run.settings.logsnr_max
        self.device = choose_device(settings.device)
        self.precision = Precision(settings.precision, self.device)
        self.ancestral = settings.sampler.declared.traits.ancestral
        drawer = GuidedRun(run, settings.guidance, guide)
        drawer.check([self.low, self.high, math.inf])
        self.denoisers = self._denoisers(drawer.hastened(self.precision, compile=False, graphs=None))

    def _denoisers(self, drawer: GuidedRun) -> list[Denoiser]:
        """One for each batch of trajectories."""
        asked, names = self.settings, self.run.data.class_names or []
        chosen = choose_labels(asked.classes, asked.images, self.run.network.config.num_classes, asked.seed, names)
        if chosen is None:
            return [drawer.denoiser(None) for _ in range(0, asked.images, asked.batch)]
        labels = sent(torch.from_numpy(chosen).long(), self.device)
        return [drawer.denoiser(some) for some in labels.split(asked.batch)]

    def moments(self) -> ErrorMoments:
        """The moments of the errors in the run's log. Raises DataError where there is none."""
        if not (self.run.path / "losslog.jsonl").exists():
            raise DataError(
                f"{self.run.path}: has no losslog.jsonl, from which this grid would be made; --kind solver needs none for "
                "a sampler without noise (ddim, heun, dpmpp-2m)"
            )
        log = read_logs([self.run.path], self.settings.since)
        return ErrorMoments.of_sums(log.edges, log.sums)

    def even(self, name: str, steps: int) -> list[float]:
        """Levels of a declared schedule, within the run's range."""
        return time_grid(parse_schedule(name, self.low, self.high, clip=True), steps)[:-1]

    def others(self, task: GridTask, but: str) -> dict[str, list[float]]:
        """Grids to compare with, of as many steps: those of a log only where there is one."""
        found = {name: self.even(name, self.steps) for name in OTHERS}
        for name in LOGGED:
            with suppress(ElboError):
                found[name] = time_grid(GRIDS[name](task), self.steps)[:-1]
        return {name: levels for name, levels in found.items() if name != but}

    def step_errors(self) -> StepErrors:
        """The errors of steps along the run's own trajectories; of ancestral ones by its log."""
        if self.ancestral:
            return AncestralErrors(self.moments())
        asked, config = self.settings, self.run.network.config
        shape = config.image_size, config.image_size, config.image_channels
        z = Stream(asked.seed, "grid").normal(range(asked.images), shape)
        z = sent(z, self.device).permute(0, 3, 1, 2).contiguous()
        solution = FineSolution(self.denoise, z, self.low, self.high, max(CELLS, 4 * self.steps))
        return EquationErrors(asked.sampler, self.denoise, solution)

    def denoise(self, z: Tensor, logsnr: float) -> Tensor:
        """x̂ of all trajectories, in the network's precision."""
        parts = zip(self.denoisers, z.split(self.settings.batch), strict=True)
        with self.precision.applied(), self.precision.autocast():
            return torch.cat([denoiser(some, logsnr) for denoiser, some in parts])

    def errors_on(self, errors: StepErrors, levels: list[float]) -> GridErrors:
        """The errors of steps on a grid, and that of a whole walk."""
        found = errors(levels)
        final = errors.final(levels) if isinstance(errors, EquationErrors) else None
        return GridErrors(sum(found), max(found), final)


@torch.inference_mode()
def run(path: Path, settings: GridSettings) -> Generator[Progress, None, tuple[str, GridReport]]:
    """Make a grid for the run or checkpoint at `path`: the text of its file, and what is known of it.

    Raises UsageError for settings that don't fit the run, FormatError when it is no run, DataError for one that has no log
    and needs one, or whose estimates are not finite.
    """
    steps = settings.steps or settings.sampler.usual.steps
    if steps < 2:
        raise UsageError("--steps 1: a grid of one level is the noisiest one; give --steps 2 or more")
    if not settings.sampler.declared.traits.ancestral:
        refuse_noise(settings.sampler)
    warnings: list[str] = []
    device, guide = choose_device(settings.device), None
    trained = open_run(path, device, warnings.append, settings.weights, settings.average)
    if settings.guide is not None or settings.guide_average:
        other = settings.guide or trained.checkpoint.path
        guide = open_run(other, device, warnings.append, "ema", settings.guide_average)
    if settings.sampler.declared.traits.ancestral and settings.guidance.scale != 1:
        warnings.append(f"the errors of {settings.sampler.spec} are the loss log's, which knows no guidance")
    yield from (Progress(message=text, level="warning") for text in warnings)
    measured = _Measured(trained, guide, settings, steps)
    name, spec = settings.kind.name, settings.sampler.spec
    how = "by the loss log" if measured.ancestral else f"along {settings.images} trajectories"
    yield Progress(message=f"{trained.path}: {trained.age}, weights {trained.about['weights']}; errors of {spec} {how}")
    errors = measured.step_errors()
    equal: list[EqualErrors] = []

    def equalised() -> list[float]:
        equal.append(equal_errors(errors, measured.even("cosine", steps), measured.high))
        return equal[0].grid

    task = GridTask(measured.moments, settings.floor, equalised)
    schedule = settings.kind(task)
    levels = time_grid(schedule, steps)[:-1]
    found = errors(levels)
    grids = {name: measured.errors_on(errors, levels)}
    grids |= {other: measured.errors_on(errors, at) for other, at in measured.others(task, name).items()}
    report = GridReport(
        run=str(trained.path),
        checkpoint=trained.checkpoint.path.name,
        kind=name,
        sampler=spec,
        steps=steps,
        logsnr_min=levels[0],
        logsnr_max=levels[-1],
        unit=VARIANCE if measured.ancestral else ROOT,
        levels=levels,
        errors=found,
        spread=max(found) / max(min(found), TINY),
        order=measured_order(errors, levels),
        rounds=equal[0].rounds if equal else None,
        images=None if measured.ancestral else settings.images,
        grids=grids,
        seed=settings.seed,
        evaluations=measured.denoisers[0].evaluations,
        elbo_version=__version__,
    )
    purpose = {"made_for": purpose_of(settings.sampler, steps, settings.guidance.scale)} if equal else {}
    origin = {"grid": name, **purpose, "run": str(trained.path), "checkpoint": report.checkpoint}
    return to_text(schedule, **origin), report
