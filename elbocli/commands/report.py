"""Command line of `elbo report`."""

import sys
from pathlib import Path

import click

from elbocli.commands.shared.commands import (
    PATH,
    STREAM,
    Command,
    common,
    option,
    out_option,
    overwrite_option,
    plugin_option,
)


@click.command(cls=Command)
@click.argument("sources", metavar="RUN|FILE...", type=PATH, nargs=-1, required=True)
@out_option("a page", "a model card")
@option(
    "--card",
    is_flag=True,
    help="Write a model card of one RUN instead, such as -o RUN/README.md.",
    more="The card is Markdown with the metadata of the Hugging Face Hub, made of RUN's files alone. Fill in the licence; 'hf upload' of "
    "the folder then gives a usable page. elbo uploads nothing.",
)
@overwrite_option
@plugin_option
@common
def report(sources: tuple[Path, ...], out: Path, card: bool) -> None:
    """Show runs, loss logs, results and images on one page of HTML.

    Of a run, which may be unfinished, the page shows losses, validation, bound and scores while training, errors by
    noise level with the schedule's density, whether the loss is an ELBO, previews, the results of 'elbo eval', 'bound'
    and 'compare' that lie in its folder, and its settings. Several runs share the plots. FILE is a loss log, such a
    result, or images (a dataset, samples, a folder), which are shown by class.
    """
    from elbocli.report.page import write_report

    if card and len(sources) > 1:
        raise click.UsageError("--card takes one RUN; put results into RUN's folder")
    if out == STREAM and sys.stdout.isatty() and not card:
        raise click.UsageError("standard output is a terminal; add -o FILE")
    write_report(sources, sys.stdout.buffer if out == STREAM else out, card)
