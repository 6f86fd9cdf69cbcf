"""Draw images from a run with one or several processes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli.core.noise import ELBO, UNIT, Noise
from elbocli.core.pixels import NEAREST, to_levels
from elbocli.core.registry import Declaration
from elbocli.core.schedule import Schedule
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.checkpoint import RunData
from elbocli.files.latents import UNKNOWN, read_space
from elbocli.files.reading import reading
from elbocli.files.sample_files import SamplesHeader, open_samples
from elbocli.files.schedule_file import made_for, resolve_schedule
from elbocli.networks import NetworkConfig
from elbocli.networks.diffusers import Autoencoder
from elbocli.runs.classes import BALANCED, RANDOM, choose_labels, usual_classes
from elbocli.runs.open import SPACE, TrainedRun, dataset_of, open_run
from elbocli.runtime.background import PATIENCE_S, Ending, catching_signals, interrupted
from elbocli.runtime.device import CudaGraphs, Precision, choose_device, sent
from elbocli.runtime.processes import World, telling_lost
from elbocli.runtime.progress import log, progress
from elbocli.sampling.denoiser import NO_THRESHOLD, Denoiser
from elbocli.sampling.guidance import Guidance
from elbocli.sampling.samplers import USUAL, Sampler, choose_space, parse_sampler, purpose_of, walk
from elbocli.sampling.spacing import logsnr_grid, usual_spacing
from elbocli.version import __version__


def denoiser_of(
    run: TrainedRun, guidance: Guidance, guide: TrainedRun | None = None, threshold: Declaration = NO_THRESHOLD
) -> Denoiser:
    """Return a run's denoiser, for batches without classes; `given` returns one for a batch with classes.

    guide: run for the weak output of guidance; None: the run to draw from, given no class.
    threshold: method from THRESHOLDS that clips x̂.
    """
    weak = None
    if guide is not None:
        weak = Denoiser(guide.network, guide.prediction, conditional=guide.network.config.num_classes > 0)
    return Denoiser(run.network, run.prediction, guidance, guide=weak, threshold=threshold)


def prepared(denoiser: Denoiser, learned: bool, compile: bool, graphs: CudaGraphs | None) -> Denoiser:
    """Return a copy that calls the networks faster, for batches of one size.

    learned: whether the network also outputs its learned variance. compile: use torch.compile.
    graphs: None for no CUDA graphs.
    Raises UsageError: the network has no learned variance.
    """
    network: Any = denoiser.network
    if learned:
        if not getattr(network.config, "variance", False):
            raise UsageError("the network has no learned variance; use --sampler ddpm")
        network = network.outputs
    network = torch.compile(network, dynamic=False) if compile else network
    guide = denoiser.guide and prepared(denoiser.guide, False, compile, graphs)
    return replace(denoiser, network=partial(graphs.call, network) if graphs else network, guide=guide)


def count_evaluations(denoiser: Denoiser, sampler: Sampler, grid: list[float], labels: Tensor | None) -> int:
    """Return the number of network evaluations per image. labels: class of any image, [1]; None: no classes."""
    one = denoiser.given(labels)
    for part in filter(None, (one, one.guide)):
        part.network = lambda z, *_: torch.cat([z, z], 1)
    walk(sampler, torch.zeros(1, 1), grid, one.asked_by(sampler), lambda: torch.zeros(1, 1))
    return one.evaluations


def describe_guidance(denoiser: Denoiser, guide: TrainedRun | None) -> dict[str, Any]:
    """Return entries for result files: guidance, its guide, and threshold."""
    given = denoiser.guidance
    numbers = {"": given.scale, "_low": given.low, "_high": given.high, "_channels": given.channels or math.inf}
    facts: dict[str, Any] = {f"guidance{key}": value for key, value in numbers.items() if math.isfinite(value)}
    if guide is not None:
        facts |= {"guide": str(guide.path), **{f"guide_{key}": to for key, to in guide.about.items()}}
    return {**facts, "threshold": denoiser.threshold.spec}


def check_guidance(trained: TrainedRun, guide: TrainedRun | None, denoiser: Denoiser, grid: list[float]) -> None:
    """Raise UsageError if guide, guidance or threshold don't fit the run."""
    config = trained.network.config
    path = trained.path
    scale = denoiser.guidance.scale
    channels = denoiser.guidance.channels
    if denoiser.threshold.name != "none" and trained.data.latents:
        raise UsageError(
            f"--threshold {denoiser.threshold.spec}: {path} draws latents, which have no range; leave --threshold out"
        )
    if channels > config.image_channels:
        raise UsageError(f"--guidance-channels {channels}: {path} has {config.image_channels} channels; lower the number")
    if guide is None:
        if scale != 1 and not (config.num_classes and trained.settings.label_dropout):
            raise UsageError(f"--guidance-scale {scale:g}: {path} has no classes, or no --label-dropout; add --guide RUN")
        return
    if scale == 1:
        raise UsageError("a guide has no effect at --guidance-scale 1; try --guidance-scale 2")
    classes = [(run.network.config.num_classes, run.data.class_names or []) for run in (trained, guide)]
    if _images(trained) != _images(guide) or (classes[1][0] and classes[0] != classes[1]):
        raise UsageError(
            f"--guide {guide.path}: draws other images or classes than {path}; name a guide with "
            "the same image size, channels and latent space, and the same classes or none"
        )
    low = guide.settings.logsnr_min
    high = guide.settings.logsnr_max
    beyond = [at for at in grid[:-1] if denoiser.guidance.active(at) and not low - 1e-6 <= at <= high + 1e-6]
    if beyond:
        raise UsageError(
            f"--guide {guide.path}: was trained on logsnr {low:g} to {high:g}, but would be used at logsnr {beyond[0]:.4g}; "
            f"add --guidance-interval {low:g} {high:g}"
        )


def _images(run: TrainedRun) -> tuple[Any, ...]:
    return *run.network.config.shape, *map(run.data.more.get, SPACE)


# Pixels


class Decoder(NamedTuple):
    """Decoder from the output of a sampler to pixels.

    shape: (H, W, C) of an image. pixels: function [B,c,h,w] → uint8 [B,H,W,C] on the same device.
    about: entries for result files: the rounding to pixel levels, and the run's latent space, if any.
    """

    shape: tuple[int, int, int]
    pixels: Callable[[Tensor], Tensor]
    about: Mapping[str, Any]


def open_decoder(
    data: RunData,
    network: NetworkConfig,
    device: torch.device,
    autoencoder: Path | None = None,
    run: Path = Path(),
    rounding: Declaration | None = None,
) -> Decoder:
    """Return the decoder of a run.

    data: section `data` of the run's config. run: folder of the run.
    autoencoder: folder; None: the autoencoder that encoded the run's latents.
    rounding: default: to the nearest for pixels, the latent space's method for latents.
    Raises UsageError if the autoencoder or diffusers is missing, DataError if another autoencoder encoded the latents.
    Raises FormatError if the autoencoder doesn't fit the run's channels or image size.
    """
    if not data.latents:
        if autoencoder is not None:
            raise UsageError(f"{autoencoder}: the run draws pixels, not latents; leave --autoencoder out")
        chosen = rounding or NEAREST
        return Decoder(network.shape, lambda x: to_levels(x, chosen), {"rounding": chosen.spec})
    space = read_space(data.more, network.image_channels, "config.yaml")
    folder = autoencoder or next(
        filter(Path.is_dir, (Path(space.autoencoder), dataset_of(data, run).parent / space.autoencoder)), None
    )
    if folder is None:
        raise UsageError(
            f"{space.autoencoder}: the autoencoder of the latents is missing; name its folder with --autoencoder DIR"
        )
    model = Autoencoder(folder, device)
    size = space.pixel_size
    its = model.space(space.latent_convention, size, space.mirrored)
    same = (its.latent_shift, its.latent_scale) == (space.latent_shift, space.latent_scale)
    if not (same if space.autoencoder_sha256 == UNKNOWN else model.sha256 == space.autoencoder_sha256):
        raise DataError(f"{folder}: is not the autoencoder of the run's latents; name {space.autoencoder} with --autoencoder DIR")
    if (model.channels, model.factor * network.image_size) != (network.image_channels, size):
        raise FormatError(
            f"{folder}: can't decode {network.image_channels} channels to images of side {size}; name another --autoencoder"
        )
    batch = model.comfortable_batch(size)
    return Decoder(
        (size, size, 3),
        lambda x: torch.cat([model.decode(part, space, rounding) for part in x.split(batch)]),
        {"rounding": (rounding or space.rounding).spec, **asdict(space)},
    )


@dataclass(frozen=True)
class SampleSettings:
    """Settings of `elbo sample`.

    steps: number of noise levels; 0: the sampler's default. noise: random numbers, elbo's, EDM's or EDM2's.
    schedule: NAME:key=value,… or the path of a schedule file; '': the sampler's default; 'run': the training schedule.
    classes: as in `choose_labels`; '': `data` if the training data's classes differ in frequency by more than chance, else
    `balanced`.
    guide: run or checkpoint for the weak output of guidance; None: the run to draw from.
    guide_weights: weights of the guide; '' with a `guide`: 'ema'; '' without: the run with `weights`, given no class.
    spacing: choice of levels from the schedule; None: the default of sampler or schedule. start: standard deviation of the first noise.
    compile: 'off', 'graphs' (CUDA graphs) or 'on' (also torch.compile). autoencoder: folder; None: the one that made the latents.
    zoom: enlargement in a contact sheet; 0: enlarge small images to about 96 pixels.
    """

    n: int = 64
    sampler: Sampler = parse_sampler(USUAL)
    steps: int = 0
    schedule: str = ""
    spacing: Declaration | None = None
    start: Declaration = UNIT
    guidance: Guidance = Guidance()
    guide: Path | None = None
    guide_weights: str = ""
    threshold: Declaration = NO_THRESHOLD
    classes: str = ""
    weights: str = "ema"
    seed: int = 0
    noise: Declaration = ELBO
    batch_size: int = 64
    device: str = "auto"
    precision: str = "fp32"
    compile: str = "graphs"
    autoencoder: Path | None = None
    rounding: Declaration | None = None
    zoom: int = 0
    overwrite: bool = False
    command: str = ""


@torch.inference_mode()
def draw_batch(
    denoiser: Denoiser,
    indices: Sequence[int],
    grid: list[float],
    settings: SampleSettings,
    source: Noise,
    precision: Precision,
    pixels: Callable[[Tensor], Tensor],
    look: Callable[[], None] = lambda: None,
) -> Tensor:
    """Draw a batch of images, and return what `pixels` makes of them.

    indices: numbers of the images; image i depends only on the seed and i. grid: noise levels λ, rising.
    settings: sampler and start are used. source: source of the noise, on the device to draw on.
    pixels: function of the sampler's output, [B, C, H, W].
    look: function called before each network evaluation, which may raise an error to stop.
    """
    drawn = source.walk(indices)

    def noise() -> Tensor:
        return sent(drawn(), source.device)

    estimate = denoiser.asked_by(settings.sampler)

    def watched(z: Tensor, logsnr: float) -> Any:
        look()
        return estimate(z, logsnr)

    with precision.applied():
        with precision.autocast():
            first = noise() * settings.start(grid[0])
            x = walk(settings.sampler, first, grid, watched, noise, source.every_step).float()
        return pixels(x)


def draw_samples(path: Path, target: Path | IO[bytes], settings: SampleSettings, world: World | None = None) -> None:
    """Draw images from the run or checkpoint at `path` into `target`, a path or a binary stream.

    target: an unfinished file from the same settings is continued.
    world: every process must call this function; only rank 0 writes.
    Raises UsageError for settings that don't fit the run or the unfinished file, FormatError if `path` is not a run.
    Raises DataError for the wrong autoencoder, Interrupted after a signal, PeerLost, BrokenPipeError.
    """
    world = world or World(device=choose_device(settings.device))
    with catching_signals() as signals, telling_lost():
        trained = _open(path, world, settings.weights)
        guide = None
        if settings.guide or settings.guide_weights:  # without --guide, the guide weights are of the same checkpoint
            guide = _open(settings.guide or trained.checkpoint.path, world, settings.guide_weights or "ema")
        with world.together():
            drawing = _Drawing(trained, guide, settings, world, Ending(signals, 0, world.size > 1))
        drawing.write(target)


def _open(path: Path, world: World, weights: str) -> TrainedRun:
    trained = None
    with world.together():
        if world.first:
            trained = open_run(path, world.device, weights)
    # All ranks open rank 0's checkpoint, even if training saves newer ones meanwhile.
    path = world.of_first(trained.checkpoint.path.resolve() if trained else path)
    with world.together():
        return trained or open_run(path, world.device, weights)


def _choose_schedule(trained: TrainedRun, settings: SampleSettings) -> Schedule:
    spec = settings.schedule or settings.sampler.traits.grid
    if spec == "run":
        return trained.schedule()
    low = trained.settings.logsnr_min
    high = trained.settings.logsnr_max
    return resolve_schedule(spec, low, high, clip=True, size=trained.network.config.image_size)


def _check_purpose(schedule: Schedule, purpose: str) -> None:
    if (made := made_for(schedule)) not in (None, purpose):
        log.warning(f"{schedule.file}: is made for {made}, not for {purpose}; make a new file with 'elbo grid'")


class _Drawing:
    """Drawing of images in rounds: every rank draws a batch, and rank 0 writes."""

    def __init__(self, trained: TrainedRun, guide: TrainedRun | None, settings: SampleSettings, world: World, ending: Ending):
        device = world.device
        n = settings.n
        config = trained.network.config
        self.precision = trained.precision(settings.precision, device)
        schedule = _choose_schedule(trained, settings)
        sampler = choose_space(settings.sampler, trained.prediction, schedule)
        steps = settings.steps or sampler.traits.steps
        _check_purpose(schedule, purpose_of(sampler, steps, settings.guidance.scale))
        self.settings = replace(settings, sampler=sampler)
        self.world = world
        self.ending = ending
        spacing = settings.spacing or usual_spacing(schedule, sampler)
        self.grid = grid = logsnr_grid(schedule, steps, spacing)
        denoiser = denoiser_of(trained, settings.guidance, guide, settings.threshold)
        check_guidance(trained, guide, denoiser, grid)
        graphs = CudaGraphs() if settings.compile != "off" and device.type == "cuda" else None
        compiled = settings.compile == "on"
        self.fixed = compiled or graphs is not None  # fill the last batch up: compiled networks need equal batches
        with reading(trained.path, kind=UsageError, on=()):
            self.denoiser = prepared(denoiser, sampler.traits.learned, compiled, graphs)
        self.trained = trained
        class_names = trained.data.class_names or []
        names = [str(class_names[k] if k < len(class_names) else k) for k in range(config.num_classes)]
        self.noise: Noise = settings.noise(settings.seed, config.shape, config.num_classes, device)
        counts = trained.class_counts()
        effect = "samples have classes with these frequencies (--classes data)"
        classes = settings.classes or usual_classes(counts, trained.path, effect)
        labels = (
            self.noise.classes(n)
            if classes == RANDOM and config.num_classes
            else choose_labels(classes, n, config.num_classes, settings.seed, names, counts)
        )
        self.output = open_decoder(trained.data, config, device, settings.autoencoder, trained.path, settings.rounding)
        self.batch = min(settings.batch_size, -(-n // world.size))
        about = {
            "run": str(trained.path),
            **trained.about,
            "sampler": sampler.spec,
            "steps": steps,
            "nfe": count_evaluations(denoiser, sampler, grid, config.example(1)[2]),
            "schedule": schedule.base,
            "spacing": spacing.spec,
            "start": settings.start.spec,
            "logsnr_min": grid[0],
            "logsnr_max": grid[-2],
            "grid_sha256": hashlib.sha256(repr(grid).encode()).hexdigest(),
            **describe_guidance(denoiser, guide),
            "classes": classes,
            "seed": settings.seed,
            "noise": settings.noise.name,
            **self.noise.about,
            "precision": str(self.precision),
            **self.output.about,
            "elbo_version": __version__,
            "command": settings.command,
        }
        if labels is not None and classes not in (BALANCED, RANDOM):  # a file of labels, or the dataset, may change
            about["labels_sha256"] = hashlib.sha256(labels.tobytes()).hexdigest()
        shape = (n, *self.output.shape)
        self.header = SamplesHeader(shape, labels, self.noise.seeds(n), names, about, settings.zoom)
        self.done = 0

    def write(self, target: Path | IO[bytes]) -> None:
        """Draw and write the images that are missing in `target`.

        Raises Interrupted and PeerLost; an ElboError of one rank is raised on all ranks.
        """
        world = self.world
        trained = self.trained
        about = self.header.about
        n = self.settings.n
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
                        sink.put(images.numpy())
                self.done += len(images)
            if sink:  # other ranks end here: writing many PNGs may take an hour
                sink.finish(self.look)
        log.info(f"drew {n} images, {about['nfe']} network evaluations each")

    def look(self) -> None:
        if reason := self.ending.reason():
            done = f"{self.done} of {self.settings.n} images are written"
            raise interrupted(reason, f"{done}; with -o FILE the same command goes on from there")

    def _draw(self) -> Tensor:
        start = self.done + self.batch * self.world.rank
        n = self.settings.n
        device = self.world.device
        count = max(0, min(self.batch, n - start))
        if not count:
            return torch.empty((0, *self.output.shape), dtype=torch.uint8)
        indices = range(start, start + (self.batch if self.fixed else count))
        labels = None
        of_images = self.header.labels
        if of_images is not None:
            labels = sent(torch.from_numpy(of_images[np.minimum(indices, n - 1)]).long(), device)
        denoiser = self.denoiser.given(labels)
        nfe = self.header.about["nfe"]
        together = min(self.batch * self.world.size, n - start)

        def report() -> None:
            self.look()
            progress(start * nfe + together * denoiser.evaluations, n * nfe, "evaluation")

        how = self.grid, self.settings, self.noise, self.precision, self.output.pixels
        return draw_batch(denoiser, indices, *how, report)[:count].cpu()
