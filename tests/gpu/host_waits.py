"""Training steps and walks of a sampler in which any wait of the host for the card is an error."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import device_runs as on
import made_data
import torch
from record import Row
from worker import Session

from elbocli.core.samplers import parse_sampler, time_grid
from elbocli.core.sampling import CLIPS, Guidance, to_levels
from elbocli.core.schedule import parse_schedule
from elbocli.core.training import PRECISIONS
from elbocli.run.open import open_run
from elbocli.runtime.device import CudaGraphs, choose_device
from elbocli.sample.draw import Decoder, GuidedRun, SampleSettings, draw
from elbocli.train.state import TrainState
from elbocli.train.step import update

NARROW = {"channels": 32, "depth": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "U-Net": ("digits", {"preset": "digits", "schedule": "adaptive"}, {}),
    "U-ViT": ("digits", {"preset": "digits-uvit"}, {}),
    "U-ViT, one wavelet level": ("noise", {"preset": "small32-uvit"}, {**NARROW, "patching": "dwt-1"}),
    "U-ViT, two wavelet levels": ("noise", {"preset": "small32-uvit"}, {**NARROW, "patching": "dwt-2"}),
    "U-ViT, latents": ("latents", {"preset": "digits-uvit"}, {}),
}
"""Dataset, settings and changes of the network, by what the large presets are made of."""
SAMPLERS = ("ddpm", "ddim", "heun:s_churn=40", "dpmpp-2m", "dpmpp-2m-sde")
WARM, STEPS = 2, 2


def place_of(error: RuntimeError) -> str:
    """Return the line of elbo that an error comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "elbocli" in frame.filename]
    return f"{frames[-1].filename.rpartition('elbocli/')[2]}:{frames[-1].lineno}" if frames else "outside of elbo"


def watched(name: str, device: str, work: Callable[[], object], warm: int, times: int) -> Row:
    """Do some work a few times to warm up, then a few times without a wait."""
    try:
        for _ in range(warm):
            work()
        with on.no_waits(device):
            for _ in range(times):
                work()
    except RuntimeError as error:
        return Row(name, "waits or fails", ok=False, note=f"{place_of(error)}: {' '.join(str(error).split())[:120]}")
    return Row(name, "no wait" if device == "cuda" else "runs, unwatched on a CPU")


def training(state: TrainState) -> Callable[[], None]:
    """A step whose images are there."""

    def step() -> None:
        update(state)

    return step


def opened(run: Path, precision: str, device: str) -> GuidedRun:
    """A run as `elbo sample` draws from it, guided by itself without classes, and clipped."""

    def failed(why: str) -> None:
        raise RuntimeError(why)

    where = choose_device(device)
    clip, graphs = CLIPS.parse("dynamic:percentile=99"), CudaGraphs() if where.type == "cuda" else None
    trained = open_run(run, where)
    return GuidedRun(trained, Guidance(2.0), clip=clip).hastened(False, graphs)


def walking(run: GuidedRun, spec: str, precision: str, device: str) -> Callable[[], object]:
    """A walk of four steps, from noise to pixels."""
    config, where = run.trained.network.config, choose_device(device)
    shape = (config.image_size, config.image_size, config.image_channels)
    settings = SampleSettings(sampler=parse_sampler(spec), precision=precision, device=device)
    grid, labels = time_grid(parse_schedule("cosine", -10, 10), 4), torch.arange(4, device=where) % config.num_classes
    decoder = Decoder(shape, to_levels)
    return lambda: draw(run.denoiser(labels), range(4), shape, grid, settings, where, decoder)


def rows(session: Session) -> Iterator[Row]:
    """A row for each family and precision, in training and in sampling."""
    device = session.device
    data = {
        "digits": made_data.packed_digits(session.folder),
        "noise": made_data.packed(session.folder, 32, 3, count=64),
        "latents": made_data.packed_latents(session.folder, 8, count=64),
    }
    for family, (kind, options, network) in FAMILIES.items():
        first = family == "U-Net"
        for precision in PRECISIONS if first or not session.small else ("bf16",):
            how: dict[str, Any] = {**options, "batch": 4, "micro_batch": 2, "precision": precision}
            settings = on.resolved(data[kind], device, network=network, **how)
            with on.arithmetic(precision, device):
                step = training(TrainState(settings, data[kind]))
                yield watched(f"{family}, {precision}, training", device, step, WARM, STEPS)
            run = opened(
                on.untrained(data[kind], session.folder / f"{family} {precision}", settings), precision, device
            )
            # Samplers walk alike whatever the network: one family tries them all.
            for spec in SAMPLERS if first and not (session.small and precision != "fp32") else SAMPLERS[:1]:
                walk = walking(run, spec, precision, device)
                yield watched(f"{family}, {precision}, {spec}", device, walk, 1, 1)
    # In one part, so that CUDA graphs are replayed: the steps before are those in which they are made.
    settings = on.resolved(data["digits"], device, preset="digits", batch=8, compile="on", precision="bf16")
    with on.arithmetic("bf16", device):
        step = training(TrainState(settings, data["digits"]))
        yield watched("U-Net, bf16, compiled, training", device, step, 2 * WARM, STEPS)
