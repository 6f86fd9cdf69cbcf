"""Draw images from a run: each rank draws a batch, and rank 0 writes all of them in their order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.prediction import LIMIT
from elbocli.core.registry import Declaration
from elbocli.core.samplers import SAMPLERS, Sampler, parse_sampler, time_grid, walk
from elbocli.core.sampling import ELBO, UNIT, Guidance, Noise, purpose_of, usual_spacing
from elbocli.core.schedule import Schedule
from elbocli.core.streams import choose_labels
from elbocli.errors import ElboError, ReaderGone
from elbocli.files.sample_files import SamplesHeader, Sink, open_samples
from elbocli.files.schedule_file import made_for, resolve_schedule
from elbocli.nn.denoiser import UNCLIPPED, Denoiser
from elbocli.run.open import TrainedRun, open_run
from elbocli.runtime.background import PATIENCE_S, Ending, awaited, catching_signals, interrupted, start_daemon
from elbocli.runtime.device import CudaGraphs, Precision, choose_device, sent
from elbocli.runtime.processes import World, telling_lost
from elbocli.runtime.progress import log, progress
from elbocli.sample.denoise import Decoder, GuidedRun, latent_space, open_decoder
from elbocli.version import __version__

RUN = "run"
CUT = 0.01
"""A schedule may reach beyond a run's range by so much of λ without a note: presets round their ends."""


@dataclass(frozen=True)
class SampleSettings:
    """Settings of a drawing. steps 0 and schedule '' are the sampler's usual ones; schedule RUN is the one that the run was trained
    under.

    spacing: one of SPACINGS, None is the usual one; start: of STARTS; noise: of NOISES; rounding: of ROUNDINGS, None is the
    usual one. weights: as open_run takes them. guide: another run or checkpoint; guide_weights: of it, or of the run itself.
    compile: off; graphs, which are CUDA's; on, which compiles the network too. autoencoder: folder of the one that decodes
    latents; None is the one they were made with. scale: of a grid; 0 is so that small images are easily seen.
    """

    n: int = 64
    sampler: Sampler = parse_sampler("ddpm")
    steps: int = 0
    schedule: str = ""
    spacing: Declaration | None = None
    start: Declaration = UNIT
    guidance: Guidance = Guidance()
    guide: Path | None = None
    guide_weights: str = ""
    clip: Declaration = UNCLIPPED
    classes: str = "balanced"
    weights: str = "ema"
    seed: int = 0
    noise: Declaration = ELBO
    batch: int = 64
    device: str = "auto"
    precision: str = "fp32"
    compile: str = "graphs"
    autoencoder: Path | None = None
    rounding: Declaration | None = None
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
    look: Callable[[], None] = lambda: None,
    source: Noise | None = None,
) -> Tensor:
    """Images [len(indices), H, W, C] uint8 on the device: image i depends on (seed, i) alone, whatever the batch.

    shape: (height, width, channels) of the network's output, which `output` turns into pixels. look: called before each
    estimate, to raise an error when there is a reason to leave: a batch may take minutes. source: of the noise, elbo's own
    unless given.
    """
    source = source or Noise(settings.seed, shape, 0, device)
    drawn = source.walk(indices)

    def noise() -> Tensor:
        return sent(drawn(), device).permute(0, 3, 1, 2)

    estimate = denoiser.asked_by(settings.sampler)

    def watched(z: Tensor, logsnr: float) -> Any:
        look()
        return estimate(z, logsnr)

    precision = Precision(settings.precision, device)
    with precision.applied():
        with precision.autocast():
            first = noise() * settings.start(grid[0])
            x = walk(settings.sampler, first, grid, watched, noise, source.every_step)
        return output.pixels(x)


def draw_samples(path: Path, target: Path | IO[bytes], settings: SampleSettings, world: World | None = None) -> None:
    """Draw `n` images from the run or checkpoint at `path` into `target` (a path, or a binary stream).

    Every process of the world runs this; the first alone writes. It continues a file that an earlier command with the
    same settings left unfinished. Raises UsageError for settings that don't fit the run or that file, FormatError when it
    is no run, DataError for another autoencoder, Interrupted with all work saved, PeerLost, BrokenPipeError.
    """
    world = world or World(device=choose_device(settings.device))
    with catching_signals() as signals, telling_lost():
        trained, guide = _open(path, world, settings.weights), None
        if settings.guide is not None or settings.guide_weights:  # the same checkpoint where only weights are named
            guide = _open(settings.guide or trained.checkpoint.path, world, settings.guide_weights or "ema")
        with world.together():
            drawer = GuidedRun(trained, settings.guidance, guide, settings.clip)
            drawing = _Drawing(drawer, settings, world, Ending(signals, 0, world.size > 1))
        try:
            drawing.write(target)
        except ElboError as error:
            if error.exit_code == ReaderGone.exit_code:
                raise BrokenPipeError from error
            raise


def _open(path: Path, world: World, weights: str) -> TrainedRun:
    """The run. All processes open the checkpoint that the first has found: training may be going on."""
    trained: list[TrainedRun] = []
    for turn in (world.first, not world.first):
        with world.together():
            if turn:
                trained.append(open_run(path, world.device, weights))
        path = world.of_first(trained[0].checkpoint.path.resolve() if trained else path)
    return trained[0]


def _choose_schedule(trained: TrainedRun, settings: SampleSettings, steps: int) -> Schedule:
    """The schedule of the levels, with warnings where it is another's, or reaches beyond the run's λ."""
    if steps < (least := settings.sampler.traits.least):
        log.warning(
            f"--steps {steps}: give {settings.sampler.name} {least} or more; fewer leave nothing of what sets it apart"
        )
    usual, low, high = settings.sampler.traits.usual.grid, trained.settings.logsnr_min, trained.settings.logsnr_max
    spec = settings.schedule or usual
    if spec == RUN:
        return trained.schedule()
    schedule = resolve_schedule(spec, low, high, clip=True, size=trained.network.config.image_size)
    meant, found = made_for(schedule), purpose_of(settings.sampler, steps, settings.guidance.scale)
    if meant not in (None, found):
        log.warning(f"{schedule.file}: is made for {meant}, not for {found}: see 'elbo grid'")
    first, last = schedule.support
    if not settings.schedule and usual == SAMPLERS[settings.sampler.name].traits.usual.grid:
        return schedule
    if -LIMIT < first < low - CUT or high + CUT < last < LIMIT:
        log.warning(
            f"schedule {schedule.base}: covers logsnr {first:.4g} to {last:.4g}; the run was trained on {low:.4g} to "
            f"{high:.4g}, and the rest is cut off"
        )
    return schedule


class _Drawing:
    """Images drawn in rounds: the process of rank r draws the r-th batch of a round, and the first writes all of them.

    Meanwhile the next round is drawn.
    """

    def __init__(self, drawer: GuidedRun, settings: SampleSettings, world: World, ending: Ending):
        self.settings, self.world, self.ending, n = settings, world, ending, settings.n
        trained, sampler = drawer.trained, settings.sampler
        config, where, device = trained.network.config, trained.path / "config.yaml", world.device
        precision, steps = Precision(settings.precision, device), settings.steps or sampler.traits.usual.steps
        schedule = _choose_schedule(trained, settings, steps)
        spacing = settings.spacing or usual_spacing(schedule)
        self.grid = grid = time_grid(schedule, steps, spacing)
        drawer.check(grid)
        if sampler.traits.learned:
            drawer = drawer.with_variance()
        graphs = CudaGraphs() if settings.compile != "off" and device.type == "cuda" else None
        compiled = settings.compile == "on"
        self.fixed = compiled or graphs is not None
        """Tell whether the network sees a whole batch each time, whatever is left to draw."""
        self.drawer = drawer.hastened(compiled, graphs)
        known = trained.data.class_names or []
        names = [str(known[k] if k < len(known) else k) for k in range(config.num_classes)]
        self.noise: Noise = settings.noise(settings.seed, drawer.shape, config.num_classes, device)
        random = settings.classes == "random" and config.num_classes
        labels = (
            self.noise.classes(n)
            if random
            else choose_labels(settings.classes, n, config.num_classes, settings.seed, names)
        )
        self.output = open_decoder(trained.data, config, device, settings.autoencoder, where, settings.rounding)
        self.batch = min(settings.batch, -(-n // world.size))
        space = latent_space(trained.data, config, where)
        about = {
            "run": str(trained.path),
            **trained.about,
            "sampler": sampler.spec,
            "steps": steps,
            "nfe": drawer.evaluations(sampler, grid),
            "schedule": schedule.base,
            "spacing": spacing.spec,
            "start": settings.start.spec,
            "logsnr_min": grid[0],
            "logsnr_max": grid[-2],
            "grid_sha256": hashlib.sha256(repr(grid).encode()).hexdigest(),
            **drawer.about(),
            "classes": settings.classes,
            "seed": settings.seed,
            "noise": settings.noise.name,
            **self.noise.about,
            "precision": str(precision),
            "rounding": self.output.rounding.spec,
            **(space.attributes() if space else {}),
            "elbo_version": __version__,
            "command": settings.command,
        }
        shape, seeds = (n, *self.output.shape), self.noise.seeds(n)
        self.header = SamplesHeader(shape, labels, seeds, names, about, settings.scale)
        self.sink: Sink | None = None
        self._ready = torch.empty(0, dtype=torch.uint8)
        self._writing: Future[None] | None = None

    def write(self, target: Path | IO[bytes]) -> None:
        """Draw all images that the target lacks, and write them.

        Raises Interrupted, PeerLost, and an ElboError of any process in all of them.
        """
        world, trained, about, n = self.world, self.drawer.trained, self.header.about, self.settings.n
        with ExitStack() as stack:
            with world.together():
                if world.first:
                    patience = PATIENCE_S if world.size > 1 else 0
                    self.sink = stack.enter_context(
                        open_samples(target, self.header, self.settings.overwrite, patience)
                    )
            start = world.of_first(self.sink.done if self.sink else 0)
            log.info(
                f"{trained.path}: step {trained.step}, weights {about['weights']}; {about['sampler']}, {about['steps']} steps, "
                f"logsnr {about['logsnr_min']:.4g} to {about['logsnr_max']:.4g}; {world.device}, {about['precision']}, "
                f"{world.size} process{'es' if world.size > 1 else ''}"
            )
            if start:
                log.info(f"going on after {start} of {n} images")
            try:
                for first in range(start, n, self.batch * world.size):
                    self._agreed(partial(self._draw, first))
                    self._ready = torch.cat(world.all(self._ready))[: n - first]
                for _ in range(2):  # write the last round, then wait for it
                    self._agreed(self._put)
            finally:
                self._settle()
            # The others need not wait for this: PNGs of many images may take an hour.
            try:
                if self.sink:
                    self.sink.finish(self.look)
            except Leave as leave:
                raise interrupted(leave.reason, "all images are safe; run the command again") from leave
        log.info(f"{n} images, {about['nfe']} network evaluations each")

    def look(self) -> None:
        """Raise Leave when there is a reason to end."""
        if reason := self.ending.reason():
            raise Leave(reason)

    def _draw(self, first: int) -> None:
        """Write the round before, and draw this process's part of the round whose images begin at `first`."""
        self._put()
        start, n, device = first + self.batch * self.world.rank, self.settings.n, self.world.device
        count = max(0, min(self.batch, n - start))
        if not count:
            self._ready = torch.empty((0, *self.output.shape), dtype=torch.uint8)
            return
        indices = range(start, start + (self.batch if self.fixed else count))
        labels, of_images = None, self.header.labels
        if of_images is not None:
            labels = sent(torch.from_numpy(of_images[np.minimum(indices, n - 1)]).long(), device)
        denoiser, nfe = self.drawer.denoiser(labels), self.header.about["nfe"]
        together = min(self.batch * self.world.size, n - start)

        def report() -> None:
            self.look()
            progress(start * nfe + together * denoiser.evaluations, n * nfe, "evaluation")

        how = self.grid, self.settings, device, self.output, report, self.noise
        self._ready = draw(denoiser, indices, self.drawer.shape, *how)[:count].cpu()

    def _put(self) -> None:
        """Write the round that is ready, once the one before is written."""
        if self._writing is not None:
            awaited(self._writing, self.look)
            self._writing = None
        if self.sink is not None and len(self._ready):
            self._writing = start_daemon(partial(self.sink.put, self._ready.numpy()))
        self._ready = self._ready[:0]

    def _settle(self) -> None:
        """Wait until a file has the images that are being written. A pipe may never be read."""
        if self._writing is not None and self.sink is not None and self.sink.partial is not None:
            wait([self._writing])

    def _agreed(self, work: Callable[[], None]) -> None:
        """Do it in all processes, and end all of them if one can't or shall not go on."""
        reason = 0
        with self.world.together():
            try:
                work()
            except Leave as leave:
                reason = leave.reason
            except BrokenPipeError as error:
                raise ReaderGone from error
        (reason,) = self.world.most([reason])
        if reason:
            self._settle()
            done = f"{self.sink.done if self.sink else 0} of {self.settings.n} images"
            kept = "were written; into a file (-o FILE) the same command would go on"
            if self.sink and self.sink.partial:
                kept = f"are safe in {self.sink.partial.name}; the same command goes on from there"
            raise interrupted(reason, f"{done} {kept}")


class Leave(Exception):
    """There is a reason to end, and none to finish the batch."""

    def __init__(self, reason: int):
        self.reason = reason
