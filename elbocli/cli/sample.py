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
    Number,
    command_line,
    common,
    device_options,
    overwrite_option,
    parameter_options,
    schedule_help,
    take_parameters,
    weights_options,
)
from elbocli.core.sampler import SAMPLERS


@click.command(cls=Joined)
@click.argument("run", type=PATH)
@click.option("-n", "--n", "n", type=Count(1, 10**9), default=64, show_default=True, help="How many images.")
@click.option("--sampler", type=click.Choice(list(SAMPLERS)), default="ddpm", show_default=True)
@click.option("--steps", type=Count(1, 100_000), default=128, show_default=True, help="Levels of noise visited.")
@parameter_options(SAMPLERS)
@click.option(
    "--schedule",
    metavar="SPEC",
    help=schedule_help(
        "Grid of noise levels, within the run's range (default: "
        + ", ".join(f"{s.facts['grid']} for {s.name}" for s in SAMPLERS.values())
        + ")."
    ),
)
@click.option(
    "--guidance",
    type=Number(-1e3, 1e3),
    default=1.0,
    show_default=True,
    help="Scale of classifier-free guidance; 1 is none, 0 unconditional.",
)
@click.option(
    "--guidance-interval", type=Number(-50, 50), nargs=2, metavar="LO HI", help="Guide only where LO <= logsnr <= HI."
)
@click.option(
    "--classes",
    metavar="balanced|random|LIST",
    default="balanced",
    show_default=True,
    help="Class of each image: i mod K, random, or a list repeated to length, such as 3,5,7.",
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
    from elbocli.cli.progress import show
    from elbocli.core.guidance import Guidance
    from elbocli.files.samples import refuse_terminal
    from elbocli.loops import sample as loop
    from elbocli.loops.world import joined

    target: Any = out
    if out == STREAM:
        refuse_terminal(sys.stdout)
        target = sys.stdout.buffer
    params = take_parameters(SAMPLERS, options)
    SAMPLERS.find(options["sampler"]).bind(params)
    guided = Guidance(guidance, *(guidance_interval or ()))
    settings = loop.Settings(
        guidance=guided,
        params=params,
        device=device or "auto",
        precision=precision or "fp32",
        schedule=options.pop("schedule") or "",
        command=command_line(),
        **options,
    )
    with joined(settings.device) as world:
        show(loop.run(run, target, settings, world))
