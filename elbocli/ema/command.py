"""`elbo ema`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from elbocli.cli.commands import Command, option
from elbocli.cli.options import command_line, common, overwrite_option, plugin_option
from elbocli.cli.types import PATH, Count, Number, Output
from elbocli.core.training import MAX_STD


@click.command(cls=Command)
@click.argument("run", type=PATH)
@option(
    "--std",
    type=Number(0, MAX_STD, above=True),
    required=True,
    help="Standard deviation of the weights' profile, as a share of the steps so far: 0.1 averages mostly the "
    "last third; at most 0.288675, the plain mean.",
)
@option("--at", type=Count(), metavar="STEP", help="A step that has a snapshot.  [default: the last one]")
@option(
    "-o",
    "--out",
    type=Output("an average of weights"),
    required=True,
    metavar="FILE",
    help="The file that the average goes to (.safetensors).",
)
@overwrite_option
@plugin_option
@common
def ema(run: Path, std: float, at: int | None, out: Path) -> None:
    """Make an average of RUN's weights after training.

    The average is power:std=STD, made from the snapshots of 'elbo train --snapshot-every'. Give FILE to 'elbo sample
    --ema' and 'elbo bound --ema'. The command prints a JSON object; its residual says how well the snapshots can
    express this average: 0 is exact, and above 0.1 elbo warns.
    """
    from elbocli.cli.progress_bar import show
    from elbocli.ema import post_hoc as loop

    click.echo(json.dumps(show(loop.run(run, std, out, at, command_line())), indent=1))
