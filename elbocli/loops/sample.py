"""Draw images from a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from elbocli import __version__
from elbocli.core.draws import Stream
from elbocli.core.guidance import Guidance
from elbocli.core.sampler import parse_sampler, time_grid, walk
from elbocli.core.schedule import Schedule
from elbocli.errors import UsageError
from elbocli.files.samples import Plan, open_samples
from elbocli.files.schedules import resolve_schedule
from elbocli.loops.drawer import open_drawer
from elbocli.loops.output import Output, latent_space, open_output
from elbocli.loops.report import Report
from elbocli.loops.runs import TrainedRun, open_run
from elbocli.loops.runtime import autocast, choose_device
from elbocli.nn.denoiser import Denoiser

RUN = "run"


@dataclass(frozen=True)
class Settings:
    """How to draw. sampler, params: as parse_sampler takes them. steps 0 and schedule '' are the preset's, or the
    sampler's usual ones; schedule RUN is the one that the run was trained under.

    weights, average: as open_run takes them. guide, guide_average, clip: as open_drawer does. autoencoder: folder of the one that decodes latents; None is the one they were made with.
    """

    n: int = 64
    sampler: str = "ddpm"
    steps: int = 0
    schedule: str = ""
    guidance: Guidance = Guidance()
    guide: Path | None = None
    guide_average: str = ""
    clip: str = "none"
    classes: str = "balanced"
    weights: str = "ema"
    average: str = ""
    seed: int = 0
    batch: int = 64
    device: str = "auto"
    precision: str = "fp32"
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


@torch.inference_mode()
def draw(
    denoiser: Denoiser,
    indices: range,
    shape: tuple[int, int, int],
    grid: list[float],
    settings: Settings,
    device: torch.device,
    output: Output,
) -> np.ndarray:
    """Images [len(indices), H, W, C] uint8: image i depends on (seed, i) alone, whatever the batch.

    shape: (height, width, channels) of what the network draws, which `output` turns into pixels.
    """
    height, width, channels = shape
    draws = 0

    def noise() -> Tensor:
        nonlocal draws
        draws += 1
        eps = Stream(settings.seed, f"sample-{draws}").normal(indices, (height, width, channels))
        return eps.to(device, non_blocking=True).permute(0, 3, 1, 2)

    with autocast(device, settings.precision):
        x = walk(settings.sampler, settings.params, noise(), grid, denoiser, noise)
    return output.pixels(x)


def sampling_schedule(run: TrainedRun, settings: Settings) -> Schedule:
    """What spaces the λ that the sampler visits, within the range that the run was trained on."""
    low, high, size = run.settings.logsnr_min, run.settings.logsnr_max, run.network.config.image_size
    if settings.schedule == RUN:
        return run.schedule()
    usual = parse_sampler(settings.sampler).usual.grid
    return resolve_schedule(settings.schedule or usual, low, high, clip=True, size=size)


def run(path: Path, target: Path | IO[bytes], settings: Settings) -> Iterator[Report]:
    """Draw `n` images from the run or checkpoint at `path` into `target` (a path, or a binary stream).

    Raises UsageError for settings that don't fit the run, FormatError when it is no run, DataError for another autoencoder.
    """
    warnings: list[str] = []
    device = choose_device(settings.device)
    sampler = parse_sampler(settings.sampler, settings.params)
    trained = open_run(path, device, warnings.append, settings.weights, settings.average)
    drawer = open_drawer(
        trained, settings.guidance, settings.guide, settings.guide_average, settings.clip, device, warnings.append
    )
    yield from (Report(message=text, level="warning") for text in warnings)
    config = trained.network.config
    schedule, steps = sampling_schedule(trained, settings), settings.steps or sampler.usual.steps
    grid = time_grid(schedule, steps)
    drawer.check(grid)
    names = [str(name) for name in trained.data.get("class_names", [])]
    labels = choose_labels(settings.classes, settings.n, config.num_classes, settings.seed, names)
    shape = (config.image_size, config.image_size, config.image_channels)
    where = trained.path / "config.yaml"
    output = open_output(trained.data, config, device, settings.autoencoder, where)
    space = latent_space(trained.data, config, where)
    about: dict[str, Any] = {
        "run": str(trained.path),
        **trained.about,
        "sampler": sampler.spec,
        "steps": steps,
        "nfe": drawer.evaluations(settings.sampler, settings.params, grid),
        "schedule": schedule.base,
        "logsnr_min": grid[0],
        "logsnr_max": grid[-2],
        **drawer.about,
        "classes": settings.classes,
        "seed": settings.seed,
        **({} if space is None else space.attributes()),
        "elbo_version": __version__,
        "command": settings.command,
    }
    plan = Plan((settings.n, *output.shape), labels, np.arange(settings.n, dtype=np.int64), names, about)
    yield Report(
        0,
        settings.n,
        "img",
        f"{trained.path}: step {trained.step}, weights {trained.about['weights']}; {sampler.spec}, {steps} steps, "
        f"logsnr {grid[0]:.4g} to {grid[-2]:.4g}",
    )
    evaluations = 0
    with open_samples(target, plan, settings.overwrite) as put:
        for start in range(0, settings.n, settings.batch):
            indices = range(start, min(start + settings.batch, settings.n))
            part = None if labels is None else torch.from_numpy(labels[indices.start : indices.stop]).long().to(device)
            denoiser = drawer.denoiser(part)
            put(draw(denoiser, indices, shape, grid, settings, device, output))
            evaluations = denoiser.evaluations
            yield Report(indices.stop, settings.n, "img")
    yield Report(message=f"{settings.n} images, {evaluations} network evaluations each")
