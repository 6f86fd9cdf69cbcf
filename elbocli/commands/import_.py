"""Command line of `elbo import`."""

from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import (
    LEVEL,
    PATH,
    SCHEDULE,
    WEIGHTING,
    Command,
    Named,
    Output,
    command_line,
    common,
    option,
    plugin_option,
    value,
)

GROUPS = {
    "Contents of SOURCE": ("format", "weights", "prefix", "rename", "network", "autoencoder"),
    "Facts that SOURCE lacks": (
        "prediction",
        "noise_input",
        "weighting",
        "schedule",
        "logsnr_min",
        "logsnr_max",
        "attention",
        "size",
        "channels",
        "num_classes",
    ),
}


@click.command(cls=Command, groups=GROUPS)
@click.argument("source", type=PATH)
@click.argument("run", type=Output(), required=False)
@option("--format", type=Named("elbocli.networks.published.FORMATS"), default="", help="Format.  [default: by content]")
@option(
    "--weights",
    metavar="ema|model|KEY",
    default="ema",
    help="The average, the last weights, or the weights under a key of SOURCE.",
)
@option("--prefix", metavar="TEXT", help="Take only names that begin with TEXT, and remove TEXT.")
@option(
    "--rename",
    metavar="OLD=NEW",
    multiple=True,
    help="Replace OLD, which may be empty, by NEW at the beginning of names; may be repeated.",
)
@option("--network", metavar="FAMILY[:KEY=VALUE,...]", help="Your own network, declared in a plug-in.")
@option("--autoencoder", type=PATH, metavar="DIR", help="For latents: the AutoencoderKL of diffusers that made them.")
@option(
    "--prediction",
    type=Named("elbocli.core.prediction.PREDICTIONS"),
    help="Network's output; see 'elbo list predictions'.",
)
@option(
    "--noise-input",
    type=Named("elbocli.core.schedule.LEVEL_CODES"),
    help="The network's input for the noise level: logsnr:factor=F, sigma, flow, t:linear, …",
)
@option("--weighting", type=WEIGHTING, help="Weighting that it was trained with.")
@option("--schedule", type=SCHEDULE, help="Schedule that it was trained with.")
@option("--logsnr-min", type=LEVEL, help="Noisiest level that it was trained on.")
@option("--logsnr-max", type=LEVEL, help="Cleanest level that it was trained on.")
@option(
    "--attention",
    metavar="heads=N|width=N[,new]",
    help="For guided-diffusion: number of heads, or channels per head; new: its new order.",
)
@option("--size", type=value(int, ge=1, le=4096), help="Side in pixels, or of latents.")
@option("--channels", type=value(int, ge=1, le=1024), help="Channels of images or latents.")
@option("--num-classes", type=value(int, ge=0, le=10**6), help="Number of classes; 0 is none.")
@plugin_option
@common
def import_(source: Path, run: Path | None, format: str, **options: Any) -> None:
    """Make RUN of another program's checkpoint.

    'elbo import list' says which formats are known and what is known of the published weights; docs/models.md has the
    commands that should reproduce their published numbers. elbo runs no code of SOURCE. Options give what SOURCE
    lacks. RUN can be sampled, measured, scored and reported; 'elbo train --init RUN' trains its weights further, in a new
    run.
    """
    from elbocli.networks.published import FORMATS, ImportOptions
    from elbocli.runs.imported import import_run

    if run is None:
        if str(source) != "list":
            raise click.UsageError("RUN is missing; write the new run's folder after SOURCE")
        for name, declared in FORMATS.items():
            click.echo(f"{name}\n    {declared.about}\n    Licence: {declared.licence}\n    Source: {declared.source}")
        return
    said = ImportOptions(**{key: value for key, value in options.items() if value is not None})
    import_run(source, run, said, format, command_line())
    click.echo(run)
