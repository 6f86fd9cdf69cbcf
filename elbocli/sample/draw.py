"""Draw images from a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.prediction import LIMIT
from elbocli.core.registry import Declaration
from elbocli.core.samplers import Sampler, parse_sampler, time_grid, too_few, walk
from elbocli.core.sampling import ELBO, UNIT, Clip, Guidance, Noise, purpose_of, usual_spacing
from elbocli.core.streams import choose_labels
from elbocli.files.latents import LatentSpace
from elbocli.files.sample_writers import SamplesHeader, Sink, open_samples
from elbocli.files.schedule_file import made_for, resolve_schedule
from elbocli.nn.denoiser import UNCLIPPED, Denoiser
from elbocli.run.open import TrainedRun, open_run
from elbocli.runtime.background import PATIENCE_S, Ending, catching_signals, interrupted
from elbocli.runtime.device import CudaGraphs, Precision, choose_device, sent
from elbocli.runtime.processes import World, telling_lost
from elbocli.runtime.progress import Progress
from elbocli.sample.decode import Decoder, latent_space, open_decoder
from elbocli.sample.distributed import Rounds
from elbocli.sample.guided import GuidedRun, giving_variance
from elbocli.version import __version__

RUN = "run"
CUT = 0.01
"""A schedule may reach beyond a run's range by so much of λ without a note: presets round their ends."""


@dataclass(frozen=True)
class SampleSettings:
    """Settings of a drawing. steps 0 and schedule '' are the sampler's usual ones; schedule RUN is the one that the run was trained
    under.

    spacing: one of SPACINGS, None is the usual one; start: of STARTS; noise: of NOISES; rounding: of ROUNDINGS, None is the
    usual one. weights, average: as open_run takes them. guide: another run or checkpoint; guide_average: of it, or of the
    run itself. autoencoder: folder of the one that decodes latents; None is the one they were made with. scale: of a grid;
    0 is so that small images are easily seen.
    """

    n: int = 64
    sampler: Sampler = parse_sampler("ddpm")
    steps: int = 0
    schedule: str = ""
    spacing: Declaration[None] | None = None
    start: Declaration[None] = UNIT
    guidance: Guidance = Guidance()
    guide: Path | None = None
    guide_average: str = ""
    clip: Clip = UNCLIPPED
    classes: str = "balanced"
    weights: str = "ema"
    average: str = ""
    seed: int = 0
    noise: Declaration[None] = ELBO
    batch: int = 64
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    cuda_graphs: bool = True
    autoencoder: Path | None = None
    rounding: Declaration[None] | None = None
    scale: int = 0
    overwrite: bool = False
    command: str = ""


@torch.inference_mode()
def draw(
    denoiser: Denoiser,
    indices: range,
    shape: tuple[int, int, int],
    grid: list[float],
    settings: SampleSettings,
    device: torch.device,
    output: Decoder,
    look: Callable[[], None] | None = None,
    source: Noise | None = None,
) -> Tensor:
    """Images [len(indices), H, W, C] uint8 on the device: image i depends on (seed, i) alone, whatever the batch.

    shape: (height, width, channels) of what the network draws, which `output` turns into pixels. look: called before
    each estimate, to raise something when there is a reason to leave: a batch may take minutes. source: of the
    noise, elbo's own unless given.
    """
    source = source or Noise(settings.seed, shape, 0, device)
    drawn = source.walk(indices)

    def noise() -> Tensor:
        return sent(drawn(), device).permute(0, 3, 1, 2)

    estimate = denoiser.asked_by(settings.sampler)

    def watched(z: Tensor, logsnr: float) -> Any:
        if look is not None:
            look()
        return estimate(z, logsnr)

    precision = Precision(settings.precision, device)
    with precision.applied():
        with precision.autocast():
            first = noise() * settings.start(grid[0])
            x = walk(settings.sampler, first, grid, watched, noise, source.every_step)
        return output.pixels(x)


def _opened(path: Path, world: World, warn: Callable[[str], None], weights: str, average: str) -> TrainedRun:
    """The run. All processes open the checkpoint that the first has found: training may be going on."""
    trained: list[TrainedRun] = []
    for turn in (world.first, not world.first):
        with world.together():
            if turn:
                trained.append(open_run(path, world.device, warn, weights, average))
        path = world.of_first(trained[0].checkpoint.path.resolve() if trained else path)
    return trained[0]


def run(
    path: Path,
    target: Path | IO[bytes],
    settings: SampleSettings,
    world: World | None = None,
    tell: Callable[[Progress], None] = lambda report: None,
) -> Iterator[Progress]:
    """Draw `n` images from the run or checkpoint at `path` into `target` (a path, or a binary stream).

    Every process of the world runs this; the first alone writes. It continues a file that an earlier command with the
    same settings left unfinished. tell: called with progress during a batch. Raises UsageError for settings that don't fit the run or that file, FormatError when
    it is no run, DataError for another autoencoder, Interrupted with all work saved, PeerLost.
    """
    world = world or World(device=choose_device(settings.device))
    with catching_signals() as signals, telling_lost():
        ending = Ending(signals, 0, world.size > 1)
        warnings: list[str] = []
        trained, guide = _opened(path, world, warnings.append, settings.weights, settings.average), None
        if settings.guide is not None or settings.guide_average:  # the same checkpoint where only an average is named
            other = settings.guide or trained.checkpoint.path
            guide = _opened(other, world, warnings.append, "ema", settings.guide_average)
        if settings.sampler.declared.traits.learned:
            trained = giving_variance(trained)
        drawer = GuidedRun(trained, settings.guidance, guide, settings.clip)
        yield from (Progress(message=text, level="warning") for text in warnings)
        with world.together():
            work = _Work(drawer, settings, world, ending, tell)
        yield from work.reports(target)


class _Work:
    """One drawing: the images, the processes, the denoiser."""

    def __init__(
        self,
        drawer: GuidedRun,
        settings: SampleSettings,
        world: World,
        ending: Ending,
        tell: Callable[[Progress], None],
    ):
        self.settings, self.world, self.ending, self.tell = settings, world, ending, tell
        self.evaluated = 0
        self.precision = Precision(settings.precision, world.device)
        self.warnings: list[str] = []
        replayed = settings.cuda_graphs and world.device.type == "cuda"
        graphs = CudaGraphs() if replayed else None
        self.fixed = settings.compile or replayed
        """Whether the network sees a whole batch each time, whatever is left to draw."""
        trained, config = drawer.trained, drawer.trained.network.config
        self.steps = settings.steps or settings.sampler.usual.steps
        self.warnings += too_few(settings.sampler, self.steps)
        spec, size = settings.schedule or settings.sampler.usual.grid, config.image_size
        low, high = trained.settings.logsnr_min, trained.settings.logsnr_max
        named = spec != RUN
        self.schedule = resolve_schedule(spec, low, high, clip=True, size=size) if named else trained.schedule()
        self.warnings += [*self._misused(), *self._cut(low, high)] if named else []
        self.spacing = settings.spacing or usual_spacing(self.schedule)
        self.grid = time_grid(self.schedule, self.steps, self.spacing)
        drawer.check(self.grid)
        self.drawer = drawer.hastened(self.precision, settings.compile, graphs)
        known = trained.data.class_names or []
        names = [str(known[k] if k < len(known) else k) for k in range(config.num_classes)]
        self.noise: Noise = settings.noise(settings.seed, drawer.shape, config.num_classes, world.device)
        self.labels = choose_labels(
            settings.classes, settings.n, config.num_classes, settings.seed, names, self.noise.classes
        )
        where = trained.path / "config.yaml"
        self.output = open_decoder(trained.data, config, world.device, settings.autoencoder, where, settings.rounding)
        about = self._about(latent_space(trained.data, config, where))
        seeds = self.noise.seeds(settings.n)
        self.plan = SamplesHeader((settings.n, *self.output.shape), self.labels, seeds, names, about, settings.scale)
        self.batch = min(settings.batch, -(-settings.n // world.size))

    def _misused(self) -> list[str]:
        """A note where the grid was made for another sampler, number of steps or guidance."""
        settings, meant = self.settings, made_for(self.schedule)
        found = purpose_of(settings.sampler, self.steps, settings.guidance.scale)
        if meant in (None, found):
            return []
        return [f"{self.schedule.file}: is made for {meant}; with {found} its steps do not err alike: see 'elbo grid'"]

    def _cut(self, low: float, high: float) -> list[str]:
        """A note where a schedule that the user chose reaches beyond the run's λ from `low` to `high`, and is cut there."""
        (first, last), usual = self.schedule.support, self.settings.sampler.usual.grid
        chosen = self.settings.schedule or usual != self.settings.sampler.declared.traits.usual.grid
        if not chosen or not (-LIMIT < first < low - CUT or high + CUT < last < LIMIT):
            return []
        whole = f"schedule {self.schedule.base}: covers logsnr {first:.4g} to {last:.4g}"
        return [f"{whole}; the run was trained on {low:.4g} to {high:.4g}, and the rest is cut off"]

    def _about(self, space: LatentSpace | None) -> dict[str, Any]:
        """Facts on how the images are made: all that they depend on, and where it came from."""
        settings, grid = self.settings, self.grid
        return {
            "run": str(self.drawer.trained.path),
            **self.drawer.trained.about,
            "sampler": settings.sampler.spec,
            "steps": self.steps,
            "nfe": self.drawer.evaluations(settings.sampler, grid),
            "schedule": self.schedule.base,
            "spacing": self.spacing.spec,
            "start": settings.start.spec,
            "logsnr_min": grid[0],
            "logsnr_max": grid[-2],
            "grid_sha256": hashlib.sha256(repr(grid).encode()).hexdigest(),
            **self.drawer.about,
            "classes": settings.classes,
            "seed": settings.seed,
            **self.noise.about,
            "precision": str(self.precision),
            "rounding": self.output.rounding.spec,
            **({} if space is None else space.attributes()),
            "elbo_version": __version__,
            "command": settings.command,
        }

    def draw(self, indices: range) -> Tensor:
        """Images [len(indices), H, W, C] uint8, on the device."""
        count = len(indices)
        if self.fixed:
            indices = range(indices.start, indices.start + self.batch)
        labels = None
        if self.labels is not None:
            chosen = self.labels[np.minimum(indices, self.settings.n - 1)]
            labels = sent(torch.from_numpy(chosen).long(), self.world.device)
        denoiser, shape, place = self.drawer.denoiser(labels), self.drawer.shape, self.world.device
        first, together = indices.start, min(self.batch * self.world.size, self.settings.n - indices.start)

        def look() -> None:
            self.rounds.look()
            self.tell(self._progress(first, together * denoiser.evaluations))

        how = (self.grid, self.settings, place, self.output, look, self.noise)
        return draw(denoiser, indices, shape, *how)[:count]

    def _progress(self, images: int, evaluations: int = 0) -> Progress:
        """Count evaluations of the network: all those of so many images, and more."""
        each = self.plan.about["nfe"]
        self.evaluated = max(self.evaluated, images * each + evaluations)  # a device may lag behind what was begun
        return Progress(self.evaluated, self.settings.n * each, "evaluation")

    def reports(self, target: Path | IO[bytes]) -> Iterator[Progress]:
        """Draw, and tell."""
        settings, world, n = self.settings, self.world, self.settings.n
        with ExitStack() as stack:
            sink: Sink | None = None
            with world.together():
                if world.first:
                    wait = PATIENCE_S if world.size > 1 else 0
                    sink = stack.enter_context(open_samples(target, self.plan, settings.overwrite, wait))
            if sink is not None:
                yield from (Progress(message=text, level="warning") for text in sink.warnings)
            start = world.of_first(0 if sink is None else sink.done)
            yield replace(self._progress(start), message=self._introduction(start))
            depth = 1 if world.device.type == "cuda" else 0
            self.rounds = Rounds(world, self.ending, sink, self.output.shape, n, self.batch, depth)
            for done in self.rounds.run(start, self.draw):
                yield self._progress(done)
                while self.warnings:
                    yield Progress(message=self.warnings.pop(), level="warning")
            # The others need not wait for this: PNGs of many images may take an hour.
            for encoded in () if sink is None else sink.finish():
                yield Progress(encoded, n, "png")
                if sink is not None and sink.partial is not None and (reason := self.ending.reason()):
                    raise interrupted(
                        reason, f"all images are safe in {sink.partial.name}; the same command writes them as files"
                    )
        yield Progress(message=f"{n} images, {self.plan.about['nfe']} network evaluations each")

    def _introduction(self, start: int) -> str:
        trained, grid = self.drawer.trained, self.grid
        return (
            f"{trained.path}: {trained.age}, weights {trained.about['weights']}; {self.settings.sampler.spec}, "
            f"{self.steps} steps, logsnr {grid[0]:.4g} to {grid[-2]:.4g}; {self.world.device}, {self.precision}"
            + (f"; {self.world.size} processes" if self.world.size > 1 else "")
            + (f"; going on after {start} images" if start else "")
        )
