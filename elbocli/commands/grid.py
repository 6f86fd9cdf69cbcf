"""Command line of `elbo grid`."""

from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import (
    PATH,
    Command,
    Named,
    NameOrFile,
    batch_option,
    common,
    device_options,
    guidance_of,
    guidance_options,
    option,
    out_option,
    overwrite_option,
    plugin_option,
    seed_option,
    value,
    weights_option,
    write_output,
)
from elbocli.sampling.samplers import USUAL


@click.command(cls=Command)
@click.argument("run", type=PATH)
@option(
    "--sampler",
    type=Named("elbocli.sampling.samplers.SAMPLERS"),
    default=USUAL,
    help="The sampler to use it with: NAME or NAME:key=value,….",
)
@option("--steps", type=value(int, ge=2, le=10_000), help="Number of levels.  [default: 25]")
@guidance_options
@option(
    "--classes",
    type=NameOrFile(),
    metavar="data|balanced|random|LIST|FILE",
    default="balanced",
    help="Class of trajectory i, as in 'elbo sample'.",
)
@option("-n", "--images", type=value(int, ge=1, le=10_000), default=32, help="Trajectories to measure along.")
@seed_option
@out_option("a schedule")
@weights_option
@batch_option
@device_options
@overwrite_option
@plugin_option
@common
def grid(run: Path, out: Path, **options: Any) -> None:
    """Find the noise levels for sampling RUN in few steps.

    The grid is a schedule (YAML) for 'elbo sample --schedule', with the same --sampler, --steps and guidance. elbo moves
    the levels until all steps have equal errors, which it measures along the run's own trajectories. Messages show the
    steps' errors on this grid and on others, such as cosine. The sampler must add no noise.
    """
    from elbocli.sampling.noise_levels import make_grid
    from elbocli.sampling.samplers import parse_sampler

    write_output(make_grid(run, parse_sampler(options.pop("sampler")), guidance=guidance_of(options), **options), out)
