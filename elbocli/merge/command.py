"""Command line of `elbo merge`."""

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

    Shards of one prep (elbo prep --shard I/N) must be complete, and are joined in their order. Other datasets are
    joined in the order given. PARTs must agree in encoding (--store), size, channels, classes and crop. Each PART's
    digests are checked. To continue an interrupted merge, run the same command again.
    """
    from elbocli.merge.combine import merge_datasets

    merge_datasets(parts, out, Command.overwrite, command_line())
