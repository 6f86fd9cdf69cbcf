"""`elbo sample`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from elbocli.cli.options import (
    PATH,
    STREAM,
    Count,
    Joined,
    Named,
    Number,
    command_line,
    common,
    device_options,
    overwrite_option,
    parameter_options,
    schedule_help,
    take_parameters,
    weights_options,
    with_params,
)
from elbocli.core.clipping import CLIPS, parse_clip
from elbocli.core.samplers import SAMPLERS, STEPS
from elbocli.core.samplers.walk import parse_sampler
from elbocli.core.schedule_curves import SCHEDULES

PRESETS = ", ".join(
    f"{declared.name}:{name} ({preset.steps} steps)"
    for declared in SAMPLERS.values()
    for name, preset in declared.traits.presets.items()
)
GRIDS = sorted({declared.traits.usual.grid for declared in SAMPLERS.values()})
USUAL = "; ".join(
    f"{grid} for {', '.join(each.name for each in SAMPLERS.values() if each.traits.usual.grid == grid)}"
    for grid in GRIDS
)


@click.command(cls=Joined)
@click.argument("run", type=PATH)
@click.option("-n", "--n", "n", type=Count(1, 10**9), default=64, show_default=True, help="How many images.")
@click.option(
    "--sampler",
    type=Named(SAMPLERS),
    metavar="SPEC",
    default="ddpm",
    show_default=True,
    help=f"NAME, NAME:key=value,… or NAME:PRESET. Names: {with_params(SAMPLERS)}. Presets, whose steps, schedule and "
    f"parameters other options override: {PRESETS}.",
)
@click.option(
    "--steps", type=Count(1, 100_000), help=f"Levels of noise visited.  [default: {STEPS}, or the sampler preset's]"
)
@parameter_options(SAMPLERS)
@click.option(
    "--schedule",
    type=Named(SCHEDULES),
    metavar="SPEC",
    help=schedule_help(
        f"Grid of noise levels, within the run's range (default: {USUAL}). 'run' is the schedule that the run was "
        "trained under; one that adapts, as it was at the checkpoint."
    ),
)
@click.option(
    "--guidance",
    type=Number(-1e3, 1e3),
    default=1.0,
    show_default=True,
    help="Scale of guidance, away from the network without classes (classifier-free) or from --guide; 1 is none, 0 that "
    "network alone.",
)
@click.option(
    "--guidance-interval", type=Number(-50, 50), nargs=2, metavar="LO HI", help="Guide only where LO <= logsnr <= HI."
)
@click.option(
    "--guide",
    type=PATH,
    metavar="RUN",
    help="Autoguidance: a worse run of the same images and classes, or a checkpoint, to guide away from.",
)
@click.option(
    "--guide-ema",
    "guide_average",
    metavar="NAME|FILE",
    default="",
    help="Which average of --guide, or without it of RUN itself, as --ema says it.",
)
@click.option(
    "--clip",
    type=Named(CLIPS),
    metavar="SPEC",
    default="none",
    show_default=True,
    help=f"Keep each estimate of the image within the range of pixels, after guidance. Names: {with_params(CLIPS)}.",
)
@click.option(
    "--classes",
    metavar="balanced|random|LIST",
    default="balanced",
    show_default=True,
    help="Class of each image: i mod K, random, or a list of numbers or names repeated to length, such as 3,5,7.",
)
@weights_options("ema", "")
@click.option(
    "--seed", type=Count(0, 2**63 - 1), default=0, show_default=True, help="Image i depends on (seed, i) alone."
)
@click.option(
    "--batch",
    type=Count(1, 10**6),
    default=64,
    show_default=True,
    help="Images that a process draws at a time; changes nothing else.",
)
@device_options
@click.option("--compile", is_flag=True, help="torch.compile the network: minutes at first, then faster.")
@click.option(
    "--autoencoder",
    type=PATH,
    metavar="DIR",
    help="Decodes a run of latents: a diffusers AutoencoderKL folder.  [default: the one they were made with]",
)
@click.option(
    "-o",
    "--out",
    type=PATH,
    default="-",
    show_default=True,
    help="- (an NPY stream), .npy, .npz, .h5, .png (a grid), or a folder name for PNGs.",
)
@overwrite_option
@common
def sample(
    run: Path,
    out: Path,
    guidance: float,
    guidance_interval: tuple[float, float] | None,
    device: str | None,
    precision: str | None,
    **options: Any,
) -> None:
    """Draw images from RUN, or from one of its checkpoints.

    Without -o, images go to standard output as one NPY array, for 'elbo eval' or numpy.load. A file that was not finished
    is gone on with by the same command; under torchrun, processes share the work. Image i is the same in any case.
    """
    from elbocli.cli.progress_bar import show
    from elbocli.core.guidance import Guidance
    from elbocli.images.samples import refuse_terminal
    from elbocli.runtime.processes import joined
    from elbocli.sample import draw as loop

    target: Any = out
    if out == STREAM:
        refuse_terminal(sys.stdout)
        target = sys.stdout.buffer
    params = take_parameters(SAMPLERS, options)
    options["sampler"] = parse_sampler(options["sampler"], params)
    options["clip"] = parse_clip(options["clip"])
    guided = Guidance(guidance, *(guidance_interval or ()))
    settings = loop.SampleSettings(
        guidance=guided,
        device=device or "auto",
        precision=precision or "fp32",
        schedule=options.pop("schedule") or "",
        steps=options.pop("steps") or 0,
        command=command_line(),
        **options,
    )
    with joined(settings.device) as world:
        show(loop.run(run, target, settings, world))
