"""Draw images from a run with one or several processes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli.core.noise import STARTS, Noise
from elbocli.core.pixels import NEAREST, ROUNDINGS, Rounding, to_levels
from elbocli.errors import DataError, FormatError, Parameter, UsageError
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
from elbocli.runtime.device import CudaGraphs, choose_device, sent
from elbocli.runtime.processes import World, convert_dist_errors
from elbocli.runtime.progress import log, progress
from elbocli.sampling.denoiser import Denoiser
from elbocli.sampling.guidance import THRESHOLDS, Guidance
from elbocli.sampling.plan import Sampling
from elbocli.sampling.samplers import parse_sampler, purpose_of
from elbocli.sampling.settings import SampleSettings
from elbocli.sampling.spacing import SPACINGS
from elbocli.version import __version__


def make_denoiser(run: TrainedRun, guide: TrainedRun | None = None) -> Denoiser:
    """Return a run's denoiser, without guidance and classes, which a Sampling adds.

    guide: run for the weak output of guidance; None: the run to draw from, given no class.
    """
    weak = None
    if guide is not None:
        weak = Denoiser(guide.network, guide.prediction, conditional=guide.network.config.num_classes > 0)
    return Denoiser(run.network, run.prediction, guide=weak)


def compiled(denoiser: Denoiser, learned: bool, compile: bool, graphs: CudaGraphs | None) -> Denoiser:
    """Return a copy that calls the networks faster, for batches of one size.

    learned: whether the network also outputs its learned variance. compile: use torch.compile.
    graphs: None for no CUDA graphs.
    Raises UsageError: the network has no learned variance.
    """
    network: Any = denoiser.network
    if learned:
        if not getattr(network.config, "variance", False):
            raise UsageError("the network has no learned variance; use ", Parameter("sampler"), " ddpm")
        network = network.outputs
    network = torch.compile(network, dynamic=False) if compile else network
    guide = denoiser.guide and compiled(denoiser.guide, False, compile, graphs)
    return replace(denoiser, network=partial(graphs.call, network) if graphs else network, guide=guide)


def describe_guidance(plan: Sampling, guide: TrainedRun | None) -> dict[str, Any]:
    """Return entries for result files: guidance, its guide, and threshold."""
    guidance = plan.guidance
    numbers = {"": guidance.scale, "_low": guidance.low, "_high": guidance.high, "_channels": guidance.channels or math.inf}
    facts: dict[str, Any] = {f"guidance{key}": value for key, value in numbers.items() if math.isfinite(value)}
    if guide is not None:
        facts |= {"guide": str(guide.path), **{f"guide_{key}": to for key, to in guide.about.items()}}
    return {**facts, "threshold": plan.threshold.spec}


def check_guidance(trained: TrainedRun, guide: TrainedRun | None, guidance: Guidance, levels: Sequence[float]) -> None:
    """Raise UsageError if guide or guidance don't fit the run. levels: rising λ of the steps; the last is clean data."""
    config = trained.network.config
    path = trained.path
    scale = guidance.scale
    channels = guidance.channels
    if channels > config.image_channels:
        raise UsageError(
            Parameter("guidance_channels"), f" {channels}: {path} has {config.image_channels} channels; lower the number"
        )
    if guide is None:
        if scale != 1 and not (config.num_classes and trained.settings.label_dropout):
            raise UsageError(
                Parameter("guidance_scale"),
                f" {scale:g}: {path} was trained without classes or without ",
                Parameter("label_dropout"),
                ", so it can't guide itself; add ",
                Parameter("guide"),
                " RUN, or leave ",
                Parameter("guidance_scale"),
                " out",
            )
        return
    if scale == 1:
        raise UsageError("a guide has no effect at ", Parameter("guidance_scale"), " 1; try ", Parameter("guidance_scale"), " 2")
    classes = [(run.network.config.num_classes, run.data.class_names or []) for run in (trained, guide)]
    if _images(trained) != _images(guide) or (classes[1][0] and classes[0] != classes[1]):
        raise UsageError(
            Parameter("guide"),
            f" {guide.path}: draws other images or classes than {path}; name a guide with the same image "
            "size, channels and latent space, and the same classes or none",
        )
    low = guide.settings.logsnr_min
    high = guide.settings.logsnr_max
    beyond = [at for at in levels[:-1] if guidance.active(at) and not low - 1e-6 <= at <= high + 1e-6]
    if beyond:
        raise UsageError(
            Parameter("guide"),
            f" {guide.path}: was trained on logsnr {low:g} to {high:g}, but would be used at logsnr {beyond[0]:.4g}; add ",
            Parameter("guidance_interval"),
            f" {low:g} {high:g}",
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
    rounding: Rounding | None = None,
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
            raise UsageError(f"{autoencoder}: the run draws pixels, not latents; leave ", Parameter("autoencoder"), " out")
        chosen = rounding or NEAREST
        return Decoder(network.shape, lambda x: to_levels(x, chosen), {"rounding": chosen.spec})
    space = read_space(data.more, network.image_channels, "config.yaml")
    folder = autoencoder or next(
        filter(Path.is_dir, (Path(space.autoencoder), dataset_of(data, run).parent / space.autoencoder)), None
    )
    if folder is None:
        raise UsageError(
            f"{space.autoencoder}: the autoencoder of the latents is missing; name its folder with ",
            Parameter("autoencoder"),
            " DIR",
        )
    model = Autoencoder(folder, device)
    size = space.pixel_size
    its = model.space(space.latent_convention, size, bool(space.mirrored))
    same = (its.latent_shift, its.latent_scale) == (space.latent_shift, space.latent_scale)
    if not (same if space.autoencoder_sha256 == UNKNOWN else model.sha256 == space.autoencoder_sha256):
        raise DataError(
            f"{folder}: is not the autoencoder of the run's latents; name {space.autoencoder} with ",
            Parameter("autoencoder"),
            " DIR",
        )
    if (model.channels, model.factor * network.image_size) != (network.image_channels, size):
        raise FormatError(
            f"{folder}: can't decode {network.image_channels} channels to images of side {size}; name another ",
            Parameter("autoencoder"),
        )
    batch = model.comfortable_batch(size)
    return Decoder(
        (size, size, 3),
        lambda x: torch.cat([model.decode(part, space, rounding) for part in x.split(batch)]),
        {"rounding": (rounding or space.rounding).spec, **asdict(space)},
    )


def draw_samples(path: Path, target: Path | IO[bytes], settings: SampleSettings, world: World | None = None) -> None:
    """Draw images from the run or checkpoint at `path` into `target`, a path or a binary stream.

    target: an unfinished file from the same settings is continued.
    world: every process must call this function; only rank 0 writes.
    Raises UsageError for settings that don't fit the run or the unfinished file, FormatError if `path` is not a run.
    Raises DataError for the wrong autoencoder, Interrupted after a signal, PeerLost, BrokenPipeError.
    """
    world = world or World(device=choose_device(settings.device))
    with catching_signals() as signals, convert_dist_errors():
        trained = _open(path, world, settings.weights)
        guide = None
        if settings.guide or settings.guide_weights:  # without --guide, the guide weights are of the same checkpoint
            guide = _open(settings.guide or trained.checkpoint.path, world, settings.guide_weights or "ema")
        with world.together():
            drawing = _plan_drawing(trained, guide, settings, world)
        _write(drawing, target, settings, world, Ending(signals, 0, world.size > 1))


def _open(path: Path, world: World, weights: str) -> TrainedRun:
    trained = None
    with world.together():
        if world.first:
            trained = open_run(path, world.device, weights)
    # All ranks open rank 0's checkpoint, even if training saves newer ones meanwhile.
    path = world.broadcast(trained.checkpoint.path.resolve() if trained else path)
    with world.together():
        return trained or open_run(path, world.device, weights)


class Drawing(NamedTuple):
    """All that is needed to draw the images of a file.

    batch: images at a time on each rank. whole_batches: whether the last batch is filled up, as compiled networks need equal batches.
    evaluations: network evaluations for an image.
    """

    plan: Sampling
    denoiser: Denoiser
    noise: Noise
    output: Decoder
    header: SamplesHeader
    batch: int
    whole_batches: bool
    evaluations: int

    def draw(self, first: int, count: int, before_evaluation: Callable[[int], None]) -> Tensor:
        """Return images first, …, first + count − 1, uint8 [count, H, W, C], on the CPU."""
        if not count:
            return torch.empty((0, *self.output.shape), dtype=torch.uint8)
        indices = range(first, first + (self.batch if self.whole_batches else count))
        labels = None
        if self.header.labels is not None:
            chosen = self.header.labels[np.minimum(indices, len(self.header.labels) - 1)]
            labels = sent(torch.from_numpy(chosen).long(), self.noise.device)
        images = self.plan.draw(self.denoiser, self.noise, indices, labels, self.output.pixels, before_evaluation)
        return images[:count].cpu()


def _plan_drawing(trained: TrainedRun, guide: TrainedRun | None, settings: SampleSettings, world: World) -> Drawing:
    device = world.device
    config = trained.network.config
    low = trained.settings.logsnr_min
    high = trained.settings.logsnr_max
    sampler = parse_sampler(settings.sampler)
    spec = settings.schedule or sampler.grid
    schedule = trained.schedule() if spec == "run" else resolve_schedule(spec, low, high, clip=True, size=config.image_size)
    plan = Sampling.on_schedule(
        sampler,
        schedule,
        trained.prediction,
        trained.precision(settings.precision, device),
        settings.steps or 0,
        SPACINGS.parse(settings.spacing) if settings.spacing else None,
        guidance=settings.guidance,
        threshold=THRESHOLDS.parse(settings.threshold),
        start=STARTS.parse(settings.start),
    )
    purpose = purpose_of(plan.sampler, plan.steps, plan.guidance.scale)
    if (made := made_for(schedule)) not in (None, purpose):
        log.warning(f"{schedule.file}: is made for {made}, not for {purpose}; make a new file with 'elbo grid'")
    if plan.threshold.name != "none" and trained.data.latents:
        raise UsageError(
            Parameter("threshold"),
            f" {plan.threshold.spec}: {trained.path} draws latents, which have no range; leave ",
            Parameter("threshold"),
            " out",
        )
    check_guidance(trained, guide, plan.guidance, plan.levels)
    graphs = CudaGraphs() if settings.compile != "off" and device.type == "cuda" else None
    with reading(trained.path, kind=UsageError, on=()):
        denoiser = compiled(make_denoiser(trained, guide), plan.sampler.learned, settings.compile == "on", graphs)
    names = trained.data.class_names or []
    names = [str(names[k] if k < len(names) else k) for k in range(config.num_classes)]
    counts = trained.class_counts()
    effect = "samples have classes with these frequencies (--classes data)"
    classes = settings.classes or usual_classes(counts, trained.path, effect)
    labels = choose_labels(classes, settings.n, config.num_classes, settings.seed, names, counts)
    rounding = ROUNDINGS.parse(settings.rounding) if settings.rounding else None
    output = open_decoder(trained.data, config, device, settings.autoencoder, trained.path, rounding)
    evaluations = plan.evaluations(guided=guide is not None or labels is not None)
    about = {
        "run": str(trained.path),
        **trained.about,
        "sampler": plan.sampler.spec,
        "steps": plan.steps,
        "nfe": evaluations,
        "schedule": schedule.base,
        "spacing": plan.spacing,
        "start": plan.start.spec,
        "logsnr_min": plan.levels[0],
        "logsnr_max": plan.levels[-2],
        "grid_sha256": hashlib.sha256(repr([*plan.levels]).encode()).hexdigest(),
        **describe_guidance(plan, guide),
        "classes": classes,
        "seed": settings.seed,
        "precision": str(plan.precision),
        **output.about,
        "elbo_version": __version__,
        "command": settings.command,
    }
    if labels is not None and classes not in (BALANCED, RANDOM):  # a file of labels, or the dataset, may change
        about["labels_sha256"] = hashlib.sha256(labels.tobytes()).hexdigest()
    header = SamplesHeader(
        (settings.n, *output.shape), labels, np.arange(settings.n, dtype=np.int64), names, about, settings.zoom or 0
    )
    return Drawing(
        plan,
        denoiser,
        Noise(settings.seed, config.shape, device),
        output,
        header,
        batch=min(settings.batch_size, -(-settings.n // world.size)),
        whole_batches=settings.compile == "on" or graphs is not None,
        evaluations=evaluations,
    )


def _write(drawing: Drawing, target: Path | IO[bytes], settings: SampleSettings, world: World, ending: Ending) -> None:
    # Draws and writes the images that are missing in `target`, in rounds: every rank draws a batch, and rank 0 writes.
    n = settings.n
    about = drawing.header.about
    done = 0

    def check_stop() -> None:
        if reason := ending.reason():
            raise interrupted(reason, f"{done} of {n} images are written; with -o FILE the same command goes on from there")

    with ExitStack() as stack:
        sink = None
        with world.together():
            if world.first:
                patience = PATIENCE_S if world.size > 1 else 0
                sink = stack.enter_context(open_samples(target, drawing.header, settings.overwrite, patience))
        done = world.broadcast(sink.done if sink else 0)
        log.info(
            f"{about['run']}: step {about.get('step', 0)}, weights {about['weights']}; {about['sampler']}, {about['steps']} steps, "
            f"logsnr {about['logsnr_min']:.4g} to {about['logsnr_max']:.4g}; {world.device}, {about['precision']}, "
            f"processes {world.size}"
        )
        if done:
            log.info(f"going on after {done} of {n} images")
        while done < n:
            first = done + drawing.batch * world.rank
            together = min(drawing.batch * world.size, n - done)

            def report(evaluations: int, begun: int = done, together: int = together) -> None:
                check_stop()
                progress(begun * drawing.evaluations + together * evaluations, n * drawing.evaluations, "evaluation")

            with world.together():
                images = drawing.draw(first, max(0, min(drawing.batch, n - first)), report)
            images = torch.cat(world.all(images))[: n - done]
            with world.together():
                if sink:
                    sink.put(images.numpy())
            done += len(images)
        if sink:  # other ranks end here: writing many PNGs may take an hour
            sink.finish(check_stop)
    log.info(f"drew {n} images, {drawing.evaluations} network evaluations each")
