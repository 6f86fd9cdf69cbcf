"""Draw images from a run: each rank draws a batch, and rank 0 writes all of them in their order."""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.registry import Declaration
from elbocli.core.samplers import Sampler, parse_sampler, time_grid, walk
from elbocli.core.sampling import ELBO, UNIT, Guidance, Noise, purpose_of, usual_spacing
from elbocli.core.schedule import Schedule
from elbocli.core.streams import choose_labels
from elbocli.errors import ReaderGone
from elbocli.files.sample_files import SamplesHeader, Sink, open_samples
from elbocli.files.schedule_file import made_for, resolve_schedule
from elbocli.nn.denoiser import UNCLIPPED, Denoiser
from elbocli.run.open import TrainedRun, open_run
from elbocli.runtime.background import PATIENCE_S, Ending, catching_signals, interrupted
from elbocli.runtime.device import CudaGraphs, Precision, choose_device, sent
from elbocli.runtime.processes import World, telling_lost
from elbocli.runtime.progress import log, progress
from elbocli.sample.denoise import Decoder, GuidedRun, latent_space, open_decoder
from elbocli.version import __version__

RUN = "run"


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
        if settings.guide or settings.guide_weights:  # the same checkpoint where only weights are named
            guide = _open(settings.guide or trained.checkpoint.path, world, settings.guide_weights or "ema")
        with world.together():
            drawer = GuidedRun(trained, settings.guidance, guide, settings.clip)
            drawing = _Drawing(drawer, settings, world, Ending(signals, 0, world.size > 1))
        drawing.write(target)


def _open(path: Path, world: World, weights: str) -> TrainedRun:
    """The run. All processes open the checkpoint that the first has found: training may be going on."""
    trained = None
    with world.together():
        if world.first:
            trained = open_run(path, world.device, weights)
    path = world.of_first(trained.checkpoint.path.resolve() if trained else path)
    with world.together():
        return trained or open_run(path, world.device, weights)


def _choose_schedule(trained: TrainedRun, settings: SampleSettings, steps: int) -> Schedule:
    """The schedule of the levels, cut to the run's λ, with a warning where it is made for another walk."""
    low, high = trained.settings.logsnr_min, trained.settings.logsnr_max
    spec = settings.schedule or settings.sampler.traits.grid
    if spec == RUN:
        return trained.schedule()
    schedule = resolve_schedule(spec, low, high, clip=True, size=trained.network.config.image_size)
    meant, found = made_for(schedule), purpose_of(settings.sampler, steps, settings.guidance.scale)
    if meant not in (None, found):
        log.warning(f"{schedule.file}: is made for {meant}, not for {found}")
    return schedule


class _Drawing:
    """Images drawn in rounds: the process of rank r draws the r-th batch of a round, and the first writes all of them."""

    def __init__(self, drawer: GuidedRun, settings: SampleSettings, world: World, ending: Ending):
        self.settings, self.world, self.ending, n = settings, world, ending, settings.n
        trained, sampler = drawer.trained, settings.sampler
        config, device = trained.network.config, world.device
        steps = settings.steps or sampler.traits.steps
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
        if settings.classes == "random" and config.num_classes:
            labels: np.ndarray | None = self.noise.classes(n)
        else:
            labels = choose_labels(settings.classes, n, config.num_classes, settings.seed, names)
        self.output = open_decoder(trained.data, config, device, settings.autoencoder, trained.path, settings.rounding)
        self.batch = min(settings.batch, -(-n // world.size))
        space = latent_space(trained.data, config)
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
            "precision": str(Precision(settings.precision, device)),
            "rounding": self.output.rounding.spec,
            **(space.attributes() if space else {}),
            "elbo_version": __version__,
            "command": settings.command,
        }
        shape, seeds = (n, *self.output.shape), self.noise.seeds(n)
        self.header = SamplesHeader(shape, labels, seeds, names, about, settings.scale)
        self.done = 0

    def write(self, target: Path | IO[bytes]) -> None:
        """Draw all images that the target lacks, and write them.

        Raises Interrupted, PeerLost, and an ElboError of any process in all of them.
        """
        world, trained, about, n = self.world, self.drawer.trained, self.header.about, self.settings.n
        with ExitStack() as stack:
            sink = None
            with world.together():
                if world.first:
                    patience = PATIENCE_S if world.size > 1 else 0
                    sink = stack.enter_context(open_samples(target, self.header, self.settings.overwrite, patience))
            self.done = world.of_first(sink.done if sink else 0)
            log.info(
                f"{trained.path}: step {trained.step}, weights {about['weights']}; {about['sampler']}, {about['steps']} steps, "
                f"logsnr {about['logsnr_min']:.4g} to {about['logsnr_max']:.4g}; {world.device}, {about['precision']}, "
                f"processes {world.size}"
            )
            if self.done:
                log.info(f"going on after {self.done} of {n} images")
            while self.done < n:
                with world.together():
                    images = self._draw()
                images = torch.cat(world.all(images))[: n - self.done]
                with world.together():
                    if sink:
                        _put(sink, images.numpy(), world.size)
                self.done += len(images)
            if sink:  # the other processes need not wait: PNGs of many images may take an hour
                sink.finish(self.look)
        log.info(f"{n} images, {about['nfe']} network evaluations each")

    def look(self) -> None:
        """Raise Interrupted or PeerLost when there is a reason to end."""
        if reason := self.ending.reason():
            done = f"{self.done} of {self.settings.n} images are written"
            raise interrupted(reason, f"{done}; with -o FILE the same command goes on from there")

    def _draw(self) -> Tensor:
        """Draw this process's part of the next round."""
        start, n, device = self.done + self.batch * self.world.rank, self.settings.n, self.world.device
        count = max(0, min(self.batch, n - start))
        if not count:
            return torch.empty((0, *self.output.shape), dtype=torch.uint8)
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
        return draw(denoiser, indices, self.drawer.shape, *how)[:count].cpu()


def _put(sink: Sink, images: np.ndarray, processes: int) -> None:
    """Write images. A reader that is gone ends all processes."""
    try:
        sink.put(images)
    except BrokenPipeError as error:
        if processes == 1:
            raise
        raise ReaderGone from error
