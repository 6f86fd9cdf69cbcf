"""Draw images from a run: the guided denoiser, the decoder of latents, and the rounds of a drawing.

Each rank draws a batch of a round, and rank 0 writes all of them in their order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli.core.registry import Declaration
from elbocli.core.samplers import Sampler, parse_sampler, time_grid, walk
from elbocli.core.sampling import ELBO, NEAREST, UNIT, Guidance, Noise, purpose_of, to_levels, usual_spacing
from elbocli.core.schedule import Schedule
from elbocli.core.streams import choose_labels
from elbocli.errors import DataError, FormatError, ReaderGone, UsageError
from elbocli.files.checkpoint import RunData
from elbocli.files.latents import UNKNOWN, LatentSpace, read_space
from elbocli.files.sample_files import SamplesHeader, Sink, open_samples
from elbocli.files.schedule_file import made_for, resolve_schedule
from elbocli.nn.denoiser import UNCLIPPED, Denoiser
from elbocli.nn.networks import Network, NetworkConfig
from elbocli.nn.networks.diffusers import Autoencoder, comfortable_batch
from elbocli.run.open import TrainedRun, dataset_of, open_run
from elbocli.runtime.background import PATIENCE_S, Ending, catching_signals, interrupted
from elbocli.runtime.device import CudaGraphs, Precision, choose_device, sent
from elbocli.runtime.processes import World, telling_lost
from elbocli.runtime.progress import log, progress
from elbocli.version import __version__


class Wrapped(Network):
    """A network that is called through a function of its inputs."""

    def __init__(self, network: Network, call: Callable[..., Tensor]):
        super().__init__(network.config)
        self.network, self.call = network, call

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """See networks."""
        return self.call(z, logsnr, labels)


@dataclass(frozen=True)
class GuidedRun:
    """A run, perhaps guided: by another network, or (guide is None) by itself without classes."""

    trained: TrainedRun
    guidance: Guidance = Guidance()
    guide: TrainedRun | None = None
    clip: Declaration = UNCLIPPED

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the network's output."""
        config = self.trained.network.config
        return config.image_size, config.image_size, config.image_channels

    def denoiser(self, labels: Tensor | None) -> Denoiser:
        """D(z, λ) for images of these classes, with its count of evaluations at zero."""
        guide = None
        if self.guide is not None:
            known = labels if self.guide.network.config.num_classes else None
            guide = Denoiser(self.guide.network, self.guide.prediction, labels=known)
        return Denoiser(self.trained.network, self.trained.prediction, self.guidance, labels, guide, self.clip)

    def hastened(self, compile: bool, graphs: CudaGraphs | None) -> GuidedRun:
        """The same with networks compiled if asked for, and with graphs captured. Such networks should always get the same
        number of images.
        """

        def ready(run: TrainedRun) -> TrainedRun:
            network = run.network
            if compile:
                network.compile(dynamic=False)
            return replace(run, network=Wrapped(network, partial(graphs.call, network))) if graphs else run

        return replace(self, trained=ready(self.trained), guide=self.guide and ready(self.guide))

    def with_variance(self) -> GuidedRun:
        """The same, with the learned variance of the run's network. Raises UsageError when it has none."""
        run = self.trained
        if not getattr(run.network.config, "variance", False):
            raise UsageError(f"{run.path}: its network has learned no variance; use --sampler ddpm:gamma=G")
        return replace(self, trained=replace(run, network=Wrapped(run.network, run.network.outputs)))

    def evaluations(self, sampler: Sampler, grid: list[float]) -> int:
        """Calls of networks that an image takes, counted on a walk with networks that do nothing."""
        labels = torch.zeros(1, dtype=torch.long) if self.trained.network.config.num_classes else None
        denoiser, z = self.denoiser(labels), torch.zeros(1, 1)
        for one in filter(None, (denoiser, denoiser.guide)):
            one.network = lambda z, *_: torch.cat([z, z], 1)
        walk(sampler, z, grid, denoiser.asked_by(sampler), lambda: z)
        return denoiser.evaluations

    def about(self) -> dict[str, Any]:
        """For the record: guidance, where it acts if not everywhere, the guide and its weights, clipping."""
        given = self.guidance
        numbers = {"": given.scale, "_low": given.low, "_high": given.high, "_channels": given.channels or math.inf}
        facts: dict[str, Any] = {f"guidance{key}": value for key, value in numbers.items() if math.isfinite(value)}
        if self.guide is not None:
            facts |= {"guide": str(self.guide.path), **{f"guide_{key}": to for key, to in self.guide.about.items()}}
        return {**facts, "clip": self.clip.spec}

    def check(self, grid: list[float]) -> None:
        """Raise UsageError when the run, its guide, guidance, clipping and the levels to be visited don't go together."""
        trained, guide, scale, channels = self.trained, self.guide, self.guidance.scale, self.guidance.channels
        config, path = trained.network.config, trained.path
        if self.clip.name != "none" and trained.data.latents:
            raise UsageError(f"--clip {self.clip.spec}: {path} draws latents, which have no range; leave it out")
        if channels > config.image_channels:
            raise UsageError(f"--guidance-channels {channels}: {path} draws {config.image_channels} channels")
        if guide is None:
            if scale != 1 and not (config.num_classes and trained.settings.label_dropout):
                raise UsageError(f"{path}: was not trained on classes with --label-dropout; only --guide can guide it")
            return
        if scale == 1:
            raise UsageError("a guide does nothing at --guidance 1; try --guidance 2")
        known = [(run.network.config.num_classes, run.data.class_names or []) for run in (trained, guide)]
        if _images(trained) != _images(guide) or (known[1][0] and known[0] != known[1]):
            raise UsageError(
                f"--guide {guide.path}: knows other images or classes than {path}; "
                "a guide must know the same images, and the same classes or none"
            )
        low, high = guide.settings.logsnr_min, guide.settings.logsnr_max
        beyond = [at for at in grid[:-1] if self.guidance.active(at) and not low - 1e-6 <= at <= high + 1e-6]
        if beyond:
            raise UsageError(
                f"--guide {guide.path}: was trained on logsnr {low:g} to {high:g}, and would guide at {beyond[0]:.4g}; "
                f"add --guidance-interval {low:g} {high:g}"
            )


def _images(run: TrainedRun) -> tuple[Any, ...]:
    """Facts that the images of two runs must share."""
    config, latents = run.network.config, ("latent_shift", "latent_scale", "autoencoder_sha256")
    return config.image_size, config.image_channels, *map(run.data.more.get, latents)


# Pixels


class Decoder(NamedTuple):
    """shape: (H, W, C) of the images. pixels: the network's output [B,c,h,w] → uint8 [B,H,W,C], on its device.

    rounding: the one that makes levels of pixels.
    """

    shape: tuple[int, int, int]
    pixels: Callable[[Tensor], Tensor]
    rounding: Declaration = NEAREST


def latent_space(data: RunData, network: NetworkConfig) -> LatentSpace | None:
    """The space of a run's latents, from the `data` of its config; None for pixels. Raises FormatError."""
    return read_space(data.more, network.image_channels, "config.yaml") if data.latents else None


def open_decoder(
    data: RunData,
    network: NetworkConfig,
    device: torch.device,
    autoencoder: Path | None = None,
    run: Path = Path(),
    rounding: Declaration | None = None,
) -> Decoder:
    """The decoder of a run, a folder. data: of its config. autoencoder: its folder, instead of the recorded one. rounding: None is
    the latents' own, or to the nearest level.

    Raises UsageError (not there, diffusers is missing), DataError (other weights), FormatError (doesn't fit).
    """
    space = latent_space(data, network)
    if space is None:
        if autoencoder is not None:
            raise UsageError(f"{autoencoder}: the run draws pixels, not latents; leave --autoencoder out")
        shape, chosen = (network.image_size, network.image_size, network.image_channels), rounding or NEAREST
        return Decoder(shape, lambda x: to_levels(x, chosen), chosen)
    folder = autoencoder or _recorded(space, dataset_of(data, run))
    model, size = Autoencoder(folder, device), space.pixel_size
    its = model.space(space.convention, size, space.mirrored)
    same = (its.shift, its.scale) == (space.shift, space.scale)
    if not (same if space.autoencoder_sha256 == UNKNOWN else model.sha256 == space.autoencoder_sha256):
        raise DataError(
            f"{folder}: is not the autoencoder that made the run's latents; name {space.autoencoder} with --autoencoder DIR"
        )
    if (model.channels, model.factor * network.image_size) != (network.image_channels, size):
        raise FormatError(f"{folder}: doesn't make {size} pixels of the run's {network.image_channels} channels")
    batch = comfortable_batch(size, device.type == "cpu")

    def decode(x: Tensor) -> Tensor:
        return torch.cat([model.decode(part, space, rounding) for part in x.split(batch)])

    return Decoder((size, size, 3), decode, rounding or space.rounding)


def _recorded(space: LatentSpace, data: Path) -> Path:
    """The folder that the dataset names, as given or beside the dataset."""
    for place in (Path(space.autoencoder), data.parent / space.autoencoder):
        if place.is_dir():
            return place
    raise UsageError(
        f"{space.autoencoder}: the autoencoder of these latents is not there; name its folder with --autoencoder DIR"
    )


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
