"""`elbo merge`."""

from __future__ import annotations

from pathlib import Path

import click

from elbocli.cli.grouped_help import Command, option
from elbocli.cli.options import command_line, common, overwrite_option
from elbocli.cli.types import PATH


@click.command(cls=Command)
@click.argument("out", type=PATH, metavar="OUT.h5")
@click.argument("parts", type=PATH, nargs=-1, required=True, metavar="PART...")
@option(
    "--virtual",
    is_flag=True,
    help="Write a small file that refers to the parts, which must stay where they are: beside or below OUT.h5.",
)
@overwrite_option
@common
def merge(out: Path, parts: tuple[Path, ...], virtual: bool, overwrite: bool) -> None:
    """Make one dataset, OUT.h5, of several PARTs.

    Shards of one prep (elbo prep --shard I/N) must all be there, and are put in order; other datasets are joined in
    the order given. They must be made in one way: store, size, channels, classes, crop. Each is checked against its
    digests. Killed at any moment, the same command goes on where it stopped.
    """
    from elbocli.cli.progress_bar import show
    from elbocli.merge.combine import run

    show(run(parts, out, virtual, overwrite, command_line()))
