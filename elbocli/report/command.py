"""`elbo report`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from elbocli.cli.grouped_help import Command, option
from elbocli.cli.options import common, overwrite_option, plugin_option
from elbocli.cli.types import PATH, STREAM


@click.command(cls=Command)
@click.argument("run", type=PATH)
@option("-o", "--out", type=PATH, default="-", help="The file that the page goes to; - is standard output.")
@option(
    "--samples", type=PATH, help="Images to show by class (.h5, .npz, .npy, a folder).  [default: the last preview]"
)
@option(
    "--scores",
    "results",
    type=PATH,
    multiple=True,
    help="A result of 'elbo eval' or 'elbo bound', told by content; may be repeated. Those in RUN are shown anyway.",
)
@option(
    "--json", "as_json", is_flag=True, help="Print the facts as one JSON object; the page only goes to the file of -o."
)
@overwrite_option
@plugin_option
@common
def report(
    run: Path, out: Path, samples: Path | None, results: tuple[Path, ...], as_json: bool, overwrite: bool
) -> None:
    """Show RUN on one page of HTML, which needs nothing but itself.

    It is for a colleague, or for later. What was trained and whether its loss is an ELBO, losses and validation, the
    error by noise level and the noise levels drawn over time, previews, samples by class, scores, the bound, and
    the commands to repeat it. A run that is still trained, was interrupted or is damaged is shown as far as it
    goes, and what is missing is said.
    """
    from elbocli.cli.progress_bar import say
    from elbocli.files.atomic import refuse_existing, writing
    from elbocli.report import gather as loop

    if out != STREAM:
        refuse_existing(out, overwrite)
    elif sys.stdout.isatty() and not as_json:
        raise click.UsageError("standard output is a terminal; add -o FILE", click.get_current_context())
    found = loop.gather(run, samples, results)
    for sentence in found.missing:
        say(sentence, "detail")
    if as_json:
        click.echo(json.dumps(found.json(), indent=1, allow_nan=False))
    if out == STREAM and as_json:
        return
    from elbocli.report.page import render

    page = render(found).encode(errors="backslashreplace")  # UTF-8, as the page says, whatever the locale and paths are
    if out == STREAM:
        click.echo(page, nl=False)
        return
    with writing(out) as file:
        file.write(page)
