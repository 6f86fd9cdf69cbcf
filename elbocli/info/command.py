"""Command line of `elbo info`."""

import json
import sys
from pathlib import Path

import click

from elbocli.cli.commands import PATH, STREAM, Command, Output, common, option, overwrite_option, print_json, zoom_option
from elbocli.cli.text import visible
from elbocli.errors import UsageError


@click.command(cls=Command)
@click.argument("file", type=PATH)
@option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@option("--verify", is_flag=True, help="Read the whole file and compare it with its digests; exit 1 if it is damaged.")
@option(
    "--sheet",
    type=Output("images", suffixes=(".png",), stdout=True),
    metavar="FILE.png",
    help="Show images of a dataset or of samples as a picture, by class; - is standard output.",
    more="They are spread evenly over the file: 64 of at most 16 classes, and at least 8 of each. On standard output the "
    "picture replaces the lines.",
)
@zoom_option
@overwrite_option
@common
def info(file: Path, as_json: bool, verify: bool, sheet: Path | None, zoom: int | None) -> None:
    """Describe any file of elbo's, and show its images.

    FILE is a dataset, run, checkpoint, snapshot, average, loss log, schedule, statistics or samples.
    """
    from elbocli.files.contact_sheet import write_contact_sheet
    from elbocli.images.samples import refuse_terminal
    from elbocli.info import describe

    if sheet == STREAM:
        if as_json or verify:
            raise UsageError("'--sheet -' writes a picture to standard output, which can't hold text too; write --sheet FILE.png")
        refuse_terminal(sys.stdout)
        return write_contact_sheet(sys.stdout.buffer, *describe.images_of(file, zoom or 0))
    if sheet is not None:
        write_contact_sheet(sheet, *describe.images_of(file, zoom or 0))
    elif zoom:
        raise UsageError("--zoom enlarges the images of --sheet; add --sheet FILE.png, or leave --zoom out")
    facts = describe.verify(file) if verify else describe.describe(file)
    if as_json:
        return print_json(facts)
    width = max(map(len, facts))
    for key, value in facts.items():
        click.echo(visible(f"{key:<{width}}  {json.dumps(value) if isinstance(value, (dict, list)) else value}"))
