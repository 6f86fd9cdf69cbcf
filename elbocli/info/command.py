"""`elbo info`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from elbocli.cli.grouped_help import Command, option
from elbocli.cli.options import common
from elbocli.cli.types import PATH


@click.command(cls=Command)
@click.argument("file", type=PATH)
@option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@option("--verify", is_flag=True, help="Read it all and compare it with its digests; exit 1 when it is damaged.")
@common
def info(file: Path, as_json: bool, verify: bool) -> None:
    """Say what FILE is and how it was made.

    It is a dataset, run, checkpoint, snapshot, average, loss log, schedule, statistics or samples.
    """
    from elbocli.cli.progress_bar import show
    from elbocli.info.describe import describe
    from elbocli.info.verify import run

    facts = show(run(file)) if verify else describe(file)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        click.echo(f"{key:<{width}}  {json.dumps(value) if isinstance(value, (dict, list)) else value}")
