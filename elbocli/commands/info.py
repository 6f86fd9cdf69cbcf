"""Command line of `elbo info`."""

import json
import sys
import time
from collections.abc import Sequence
from csv import DictWriter
from datetime import datetime
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
    zoom_option,
)
from elbocli.errors import UsageError
from elbocli.runtime.text import visible


@click.command(cls=Command)
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE|RUN...")
@option("--json", "as_json", is_flag=True, help="JSON instead of text: an object, or a list for several runs.")
@option("--csv", is_flag=True, help="CSV instead of text, a line for each run.")
@option(
    "--follow",
    is_flag=True,
    help="Show runs again every two seconds until none is running.",
    more="On a terminal the table is renewed in place. A pipe gets a line for each run, or a JSON object with --json.",
)
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
def info(
    files: tuple[Path, ...], as_json: bool, csv: bool, follow: bool, verify: bool, sheet: Path | None, zoom: int | None
) -> None:
    """Describe any file of elbo's, and show its images.

    FILE is a dataset, run, checkpoint, snapshot, average, loss log, schedule, statistics or samples. Several runs give
    a table: their states, speeds, losses and scores, and the settings that differ.
    """
    from elbocli.data.samples import refuse_terminal
    from elbocli.files.contact_sheet import write_contact_sheet
    from elbocli.report import describe

    if len(files) > 1 or csv or follow:
        if verify or sheet or zoom or (csv and (as_json or follow)):
            raise UsageError(
                "several runs, --csv and --follow allow no --verify, --sheet or --zoom; --csv, no --json or --follow"
            )
        return _show_runs(files, as_json, csv, follow)
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
    facts = describe.verify(file) if verify else describe.describe(file)
    if as_json:
        return print_json(facts)
    if "time" in facts:
        facts["time"] = datetime.fromisoformat(facts["time"]).strftime("%Y-%m-%d %H:%M:%S")
    facts = {key: value for key, value in facts.items() if value is not None}
    width = max(map(len, facts))
    for key, value in facts.items():
        click.echo(visible(f"{key:<{width}}  {json.dumps(value) if isinstance(value, (dict, list)) else value}"))


RENEWAL_S = 2.0


def _show_runs(runs: Sequence[Path], as_json: bool, csv: bool, follow: bool) -> None:
    from shutil import get_terminal_size

    from elbocli.report.runs_table import progress_of_runs, table_of_runs
    from elbocli.runs.folder import RUNNING

    in_place = follow and sys.stdout.isatty() and not as_json
    height = 0
    while True:
        rows = progress_of_runs(runs)
        if csv:
            writer = DictWriter(sys.stdout, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        elif follow and not in_place:
            for row in rows:
                said = " ".join(f"{key}={value}" for key, value in row.items() if value not in (None, ""))
                click.echo(json.dumps(row) if as_json else visible(said))
        elif as_json:
            print_json(rows)
        else:
            width = get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
            lines = table_of_runs(rows).text(width).splitlines()
            click.echo(f"\x1b[{height}A\x1b[J" * (height > 0) + "\n".join(lines))
            height = len(lines)
        if not follow or all(row["state"] != RUNNING for row in rows):
            return
        sys.stdout.flush()
        time.sleep(RENEWAL_S)
