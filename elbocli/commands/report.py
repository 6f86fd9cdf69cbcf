"""Command line of `elbo report`."""

import sys
from pathlib import Path

import click

from elbocli.commands.shared.commands import (
    PATH,
    STREAM,
    Command,
    common,
    hand_out,
    option,
    out_option,
    overwrite_option,
    plugin_option,
)

CARD = "README.md"


@click.command(cls=Command)
@click.argument("runs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@out_option("a page", "a model card")
@option(
    "--samples",
    type=PATH,
    multiple=True,
    help="Images to show by class (.h5, .npz, .npy, a folder); once for each RUN.  [default: the last preview]",
)
@option(
    "--scores",
    "results",
    type=PATH,
    multiple=True,
    help="A result of 'elbo eval' or 'elbo bound'; may be repeated. Results in RUN are always shown.",
)
@option(
    "--card",
    is_flag=True,
    help="Write a model card instead, README.md in RUN unless -o names another file.",
    more="The card is Markdown with the metadata of the Hugging Face Hub: data, objective and whether the loss is an ELBO, network, "
    "training, the results that lie in RUN, and how to sample. It is made of RUN's files alone. Fill in the licence; 'hf upload' of the "
    "folder then gives a usable page. elbo uploads nothing.",
)
@overwrite_option
@plugin_option
@common
def report(
    runs: tuple[Path, ...],
    out: Path,
    samples: tuple[Path, ...],
    results: tuple[Path, ...],
    card: bool,
) -> None:
    """Show a run, or several, on one page of HTML.

    The page shows the settings, whether the loss is an ELBO, losses and validation, the error by noise level, the noise
    levels drawn, previews, samples by class, scores, the bound, and the commands that repeat the run. The run may
    be unfinished or damaged; the page names missing files.

    Several runs are compared: settings that differ, losses and errors in shared plots, and samples of each run.
    """
    from elbocli.report.gather import RunFacts
    from elbocli.report.page import model_card, render

    if samples and len(samples) != len(runs):
        raise click.UsageError(f"--samples: {len(samples)} files for {len(runs)} runs; give one file per run, or omit --samples")
    if results and len(runs) > 1:
        raise click.UsageError("--scores needs a single RUN; for several runs, put each result file into its run's folder")
    if out == STREAM and sys.stdout.isatty() and not card:
        raise click.UsageError("standard output is a terminal; add -o FILE")
    if card:
        if len(runs) > 1 or samples or results:
            raise click.UsageError("--card takes one RUN, and no --samples or --scores; put results into RUN's folder")
        from elbocli.files.outputs import check_outputs

        (run,) = runs
        if click.get_current_context().get_parameter_source("out") is click.core.ParameterSource.DEFAULT:
            out = run / CARD
        text = model_card(RunFacts(run))
        if out == run / CARD:
            check_outputs([(out, ["a model card"])], [], Command.overwrite)
        return hand_out(text, out)
    facts = [RunFacts(run, drawn, results) for run, drawn in zip(runs, samples or [None] * len(runs))]
    hand_out(render(*facts), out)
