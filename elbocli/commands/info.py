"""Command line of `elbo info`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from elbocli.commands.shared.commands import (
    PATH,
    STREAM,
    Command,
    Output,
    common,
    option,
    overwrite_option,
    print_json,
)
from elbocli.commands.shared.setting_options import setting_option
from elbocli.errors import UsageError
from elbocli.runtime.text import visible
from elbocli.sampling.settings import SampleSettings


@click.command(cls=Command)
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE|RUN...")
@option("--json", "as_json", is_flag=True, help="JSON instead of text: an object, or a list for several runs.")
@option("--verify", is_flag=True, help="Read the whole file and compare it with its digests; exit 1 if it is damaged.")
@option(
    "--sheet",
    type=Output("images", suffixes=(".png",), stdout=True),
    metavar="FILE.png",
    help="Show images of a dataset or of samples as a picture, by class; - is standard output.",
    more="They are spread evenly over the file: 64 of at most 16 classes, and at least 8 of each. On standard output the "
    "picture replaces the lines.",
)
@setting_option("zoom", SampleSettings.declared()["zoom"]._replace(group=""))
@overwrite_option
@common
def info(files: tuple[Path, ...], as_json: bool, verify: bool, sheet: Path | None, zoom: int | None) -> None:
    """Describe any file of elbo's, and show its images.

    FILE is a dataset, run, checkpoint, snapshot, average, loss log, schedule, statistics or samples. Several runs give
    a table: their states, speeds, losses and scores, and the settings that differ.
    """
    from elbocli.data.samples import refuse_terminal
    from elbocli.files.contact_sheet import write_contact_sheet
    from elbocli.report import describe

    if len(files) > 1:
        if verify or sheet or zoom:
            raise UsageError("--verify, --sheet and --zoom take a single FILE; name one, or leave these options out")
        return _show_runs(files, as_json)
    (file,) = files
    if sheet == STREAM:
        if as_json or verify:
            raise UsageError("'--sheet -' writes a picture to standard output, which can't hold text too; write --sheet FILE.png")
        refuse_terminal(sys.stdout)
        return write_contact_sheet(sys.stdout.buffer, *describe.images_of(file, zoom or 0))
    if sheet is not None:
        write_contact_sheet(sheet, *describe.images_of(file, zoom or 0))
    elif zoom:
        raise UsageError("--zoom enlarges the images of --sheet; add --sheet FILE.png, or leave --zoom out")
    description = describe.verify(file) if verify else describe.describe(file)
    if as_json:
        return print_json(description.json())
    lines = description.lines()
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(visible(f"{name:<{width}}  {text}"))


def _show_runs(runs: Sequence[Path], as_json: bool) -> None:
    from shutil import get_terminal_size

    from elbocli.report.runs_table import progress_of_runs, table_of_runs

    rows = progress_of_runs(runs)
    if as_json:
        return print_json(rows)
    width = get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    click.echo(table_of_runs(rows).text(width), nl=False)
