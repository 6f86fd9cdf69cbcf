"""Command line of `elbo sample`."""

from pathlib import Path
from typing import IO

import click

from elbocli.commands.shared.commands import (
    PATH,
    STREAM,
    Command,
    Output,
    command_line,
    common,
    option,
    overwrite_option,
    plugin_option,
)
from elbocli.commands.shared.setting_options import setting_options
from elbocli.sampling.settings import IMAGES, SampleSettings


@click.command(cls=Command)
@click.argument("run", type=PATH)
@setting_options(SampleSettings)
@option(
    "-o",
    "--out",
    type=Output("samples", "images", "a folder of PNGs", stdout=True, streams=True),
    default="-",
    help="- (an NPY stream), .npy, .npz, .h5, .png (a sheet), or a folder name for PNGs.",
    more="A contact sheet has rows for each class, with its name, where there are at most 16 classes, or as many images of each.",
    group=IMAGES,
)
@overwrite_option
@plugin_option
@common
def sample(run: Path, out: Path, **options: object) -> None:
    """Draw images from RUN, or from one of its checkpoints.

    Without -o, images go to standard output as one NPY array, for 'elbo eval' or numpy.load. If the command is
    interrupted, run it again: it continues the unfinished file. Under torchrun, processes share the work. Image i
    depends on (seed, i) alone.
    """
    from elbocli.data.samples import refuse_terminal
    from elbocli.files.atomic import streams, writing
    from elbocli.runtime.processes import joined
    from elbocli.sampling.draw import draw_samples

    target: Path | IO[bytes] = out
    if out == STREAM or (streams(out) and not Command.silent):  # only rank 0 writes to a pipe or a device
        with writing(out):
            target = click.get_current_context().with_resource(click.open_file(out, "wb"))
        refuse_terminal(target)
    settings = SampleSettings.of(options, overwrite=Command.overwrite, command=command_line())
    with joined(settings.device) as world:
        draw_samples(run, target, settings, world)
