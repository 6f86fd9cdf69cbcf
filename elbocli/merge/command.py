"""Command line of `elbo merge`: options, and the function that runs the command."""

from pathlib import Path

import click

from elbocli.cli.commands import DATASET, PATH, Command, command_line, common, overwrite_option


@click.command(cls=Command)
@click.argument("out", type=DATASET, metavar="OUT.h5")
@click.argument("parts", type=PATH, nargs=-1, required=True, metavar="PART...")
@overwrite_option
@common
def merge(out: Path, parts: tuple[Path, ...]) -> None:
    """Make one dataset, OUT.h5, of several PARTs.

    Shards of one prep (elbo prep --shard I/N) must all be there, and are joined in order; other datasets are joined in
    the order given. Store, size, channels, classes and crop must agree. It checks each part against its digests. If it is
    killed, run the same command again: it continues where it stopped.
    """
    from elbocli.merge.combine import merge_datasets

    merge_datasets(parts, out, Command.overwrite, command_line())
