"""Draw images from a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from elbocli import __version__
from elbocli.core.draws import Stream
from elbocli.core.guidance import Guidance
from elbocli.core.prediction import Prediction
from elbocli.core.sampler import SAMPLERS, time_grid, walk
from elbocli.errors import UsageError
from elbocli.files.latents import LatentSpace
from elbocli.files.sample_writer import Plan, Sink, open_samples
from elbocli.files.schedules import resolve_schedule
from elbocli.loops.examples import sent
from elbocli.loops.output import Output, latent_space, open_output
from elbocli.loops.report import Report
from elbocli.loops.rounds import Rounds, Watch
from elbocli.loops.runs import TrainedRun, open_run
from elbocli.loops.runtime import autocast, choose_device
from elbocli.loops.signals import PATIENCE_S, Ending, catching_signals, interrupted
from elbocli.loops.world import World, telling_lost
from elbocli.nn.denoiser import Denoiser


@dataclass(frozen=True)
class Settings:
    """How to draw. schedule '' is the sampler's usual grid; params are the sampler's own (gamma, s_churn, …).

    weights, average: as open_run takes them. autoencoder: folder of the one that decodes latents; None is the one they were made with.
    """

    n: int = 64
    sampler: str = "ddpm"
    steps: int = 128
    schedule: str = ""
    guidance: Guidance = Guidance()
    classes: str = "balanced"
    weights: str = "ema"
    average: str = ""
    seed: int = 0
    batch: int = 64
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    autoencoder: Path | None = None
    overwrite: bool = False
    params: dict[str, float] = field(default_factory=dict)
    command: str = ""


def choose_labels(
    classes: str, n: int, num_classes: int, seed: int, names: list[str] | None = None
) -> np.ndarray | None:
    """A class per image: `balanced` (i mod K), `random`, or a list of numbers (or names), repeated to length.

    None when there are no classes. Raises UsageError for a class that isn't there.
    """
    if num_classes < 1:
        if classes not in ("balanced", "random"):
            raise UsageError(f"--classes {classes}: the run is unconditional; leave it out")
        return None
    if classes == "balanced":
        return np.arange(n) % num_classes
    if classes == "random":
        stream = Stream(seed, "sample-class")
        return np.array([stream.at(i).integers(num_classes) for i in range(n)])
    chosen = []
    for word in classes.split(","):
        word = word.strip()
        if names and word in names:
            chosen.append(names.index(word))
        elif word.isdecimal() and int(word) < num_classes:
            chosen.append(int(word))
        else:
            raise UsageError(
                f"--classes: no class {word!r}; expected balanced, random, or numbers from 0 to {num_classes - 1}"
            )
    return np.resize(np.array(chosen), n)


def draw(
    denoiser: Denoiser,
    indices: range,
    shape: tuple[int, int, int],
    grid: list[float],
    settings: Settings,
    device: torch.device,
    output: Output,
) -> np.ndarray:
    """As `drawing`, when it is there."""
    return drawing(denoiser, indices, shape, grid, settings, device, output).cpu().numpy()


@torch.inference_mode()
def drawing(
    denoiser: Denoiser,
    indices: range,
    shape: tuple[int, int, int],
    grid: list[float],
    settings: Settings,
    device: torch.device,
    output: Output,
    look: Callable[[], None] | None = None,
) -> Tensor:
    """Images [len(indices), H, W, C] uint8 on the device: image i depends on (seed, i) alone, whatever the batch.

    shape: (height, width, channels) of what the network draws, which `output` turns into pixels. look: called before
    each estimate, to raise something when there is a reason to leave: a batch may take minutes.
    """
    height, width, channels = shape
    draws = 0

    def noise() -> Tensor:
        nonlocal draws
        draws += 1
        eps = Stream(settings.seed, f"sample-{draws}").normal(indices, (height, width, channels))
        return sent(eps, device).permute(0, 3, 1, 2)

    def watched(z: Tensor, logsnr: float) -> Tensor:
        if look is not None:
            look()
        return denoiser(z, logsnr)

    with autocast(device, settings.precision):
        x = walk(settings.sampler, settings.params, noise(), grid, watched, noise)
    return output.pixels(x)


def sampling_grid(run: TrainedRun, settings: Settings) -> list[float]:
    """The λ the sampler visits: the schedule within the range the run was trained on."""
    spec = settings.schedule or SAMPLERS.find(settings.sampler).facts["grid"]
    return time_grid(
        resolve_schedule(
            spec, run.settings.logsnr_min, run.settings.logsnr_max, clip=True, size=run.network.config.image_size
        ),
        settings.steps,
    )


def network_evaluations(prediction: Prediction, grid: list[float], settings: Settings, labels: bool) -> int:
    """How often the network is evaluated for an image: counted on one that does nothing. labels: there are classes."""
    nothing = torch.zeros(1, 1, 1, 1)
    label = torch.zeros(1, dtype=torch.int64) if labels else None
    counting = Denoiser(lambda z, *_: z, prediction, settings.guidance, label)  # type: ignore[arg-type]
    walk(settings.sampler, settings.params, nothing, grid, counting, lambda: nothing)
    return counting.evaluations


def _opened(path: Path, settings: Settings, world: World, warn: Callable[[str], None]) -> TrainedRun:
    """The run. All processes open the checkpoint that the first has found: training may be going on."""
    trained = None
    with world.together():
        if world.first:
            trained = open_run(path, world.device, warn, settings.weights, settings.average)
    found = world.of_first(path if trained is None else trained.checkpoint.path.resolve())
    with world.together():
        if trained is None:
            trained = open_run(found, world.device, warn, settings.weights, settings.average)
    assert trained is not None
    return trained


def _about(trained: TrainedRun, grid: list[float], settings: Settings, space: LatentSpace | None) -> dict[str, Any]:
    """How the images are made: all that they depend on, and where it came from."""
    guidance = settings.guidance
    limits = [guidance.low, guidance.high]
    return {
        "run": str(trained.path),
        **trained.about,
        "sampler": settings.sampler,
        **settings.params,
        "steps": settings.steps,
        "schedule": settings.schedule or SAMPLERS.find(settings.sampler).facts["grid"],
        "grid_sha256": hashlib.sha256(repr(grid).encode()).hexdigest(),
        "guidance": guidance.scale,
        **({} if np.isinf(limits).all() else {"guidance_interval": limits}),
        "classes": settings.classes,
        "seed": settings.seed,
        "precision": settings.precision,
        **({} if space is None else space.attributes()),
        "elbo_version": __version__,
        "command": settings.command,
    }


def run(path: Path, target: Path | IO[bytes], settings: Settings, world: World | None = None) -> Iterator[Report]:
    """Draw `n` images from the run or checkpoint at `path` into `target` (a path, or a binary stream).

    Every process of the world runs this; the first alone writes. A file that an earlier run of the same settings left
    unfinished is gone on with. Raises UsageError for settings that don't fit the run or that file, FormatError when it
    is no run, DataError for another autoencoder, Interrupted with all work saved, PeerLost.
    """
    world = world or World(device=choose_device(settings.device))
    with catching_signals() as signals, telling_lost():
        ending = Ending(signals, None, 0, world.size > 1)
        warnings: list[str] = []
        trained = _opened(path, settings, world, warnings.append)
        yield from (Report(message=text, level="warning") for text in warnings)
        with world.together():
            work = _Work(trained, settings, world, ending)
        yield from work.reports(target)


class _Work:
    """What is drawn, by whom, and how."""

    def __init__(self, trained: TrainedRun, settings: Settings, world: World, ending: Ending):
        self.trained, self.settings, self.world, self.ending = trained, settings, world, ending
        config = trained.network.config
        if settings.guidance.scale != 1 and not config.num_classes:
            raise UsageError("guidance needs a class-conditional run; this one is unconditional")
        if settings.guidance.scale != 1 and trained.settings.label_dropout == 0:
            raise UsageError("guidance needs a run trained with --label-dropout above 0; this one never saw 'no class'")
        names = [str(name) for name in trained.data.get("class_names", [])]
        self.labels = choose_labels(settings.classes, settings.n, config.num_classes, settings.seed, names)
        self.grid = sampling_grid(trained, settings)
        SAMPLERS.find(settings.sampler).bind(settings.params)
        where = trained.path / "config.yaml"
        self.output = open_output(trained.data, config, world.device, settings.autoencoder, where)
        about = _about(trained, self.grid, settings, latent_space(trained.data, config, where))
        seeds = np.arange(settings.n, dtype=np.int64)
        self.plan = Plan((settings.n, *self.output.shape), self.labels, seeds, names, about)
        self.watch = Watch(ending)
        if settings.compile:
            trained.network.compile(dynamic=False)
        self.batch = min(settings.batch, -(-settings.n // world.size))

    def draw(self, indices: range) -> Tensor:
        """Images [len(indices), H, W, C] uint8, on the device. A compiled network always sees a whole batch."""
        count, config = len(indices), self.trained.network.config
        if self.settings.compile:
            indices = range(indices.start, indices.start + self.batch)
        labels = None
        if self.labels is not None:
            chosen = self.labels[np.minimum(indices, self.settings.n - 1)]
            labels = sent(torch.from_numpy(chosen).long(), self.world.device)
        shape = (config.image_size, config.image_size, config.image_channels)
        denoiser = Denoiser(self.trained.network, self.trained.prediction, self.settings.guidance, labels)
        images = drawing(
            denoiser, indices, shape, self.grid, self.settings, self.world.device, self.output, self.watch.look
        )
        return images[:count]

    def reports(self, target: Path | IO[bytes]) -> Iterator[Report]:
        """Draw, and tell."""
        settings, world, n = self.settings, self.world, self.settings.n
        with ExitStack() as stack:
            sink: Sink | None = None
            with world.together():
                if world.first:
                    wait = PATIENCE_S if world.size > 1 else 0
                    sink = stack.enter_context(open_samples(target, self.plan, settings.overwrite, wait))
            start = world.of_first(0 if sink is None else sink.done)
            yield Report(start, n, "img", self._introduction(start))
            depth = 1 if world.device.type == "cuda" else 0
            rounds = Rounds(world, self.watch, sink, self.output.shape, n, self.batch, depth)
            for done in rounds.run(start, self.draw):
                yield Report(done, n, "img")
            # The others need not wait for this: PNGs of many images may take an hour.
            yield from self._finished(sink)
        evaluations = network_evaluations(self.trained.prediction, self.grid, settings, self.labels is not None)
        yield Report(message=f"{n} images, {evaluations} network evaluations each")

    def _finished(self, sink: Sink | None) -> Iterator[Report]:
        if sink is None:
            return
        for encoded in sink.finish():
            yield Report(encoded, self.settings.n, "png")
            reason = self.ending.reason()
            if reason:
                assert sink.partial is not None
                raise interrupted(
                    reason, f"all images are safe in {sink.partial.name}; the same command writes them as files"
                )

    def _introduction(self, start: int) -> str:
        trained, settings, grid = self.trained, self.settings, self.grid
        return (
            f"{trained.path}: step {trained.step}, weights {trained.about['weights']}; {settings.sampler}, "
            f"{settings.steps} steps, logsnr {grid[0]:.4g} to {grid[-2]:.4g}"
            + (f"; {self.world.size} processes" if self.world.size > 1 else "")
            + (f"; going on after {start} images" if start else "")
        )
