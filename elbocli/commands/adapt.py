"""Command line of `elbo adapt`."""

import sys
from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import (
    FIGURE,
    PATH,
    STREAM,
    WEIGHTING,
    Command,
    common,
    option,
    out_option,
    overwrite_option,
    plugin_option,
    print_result,
    stdin_or_fail,
    value,
    write_output,
)


@click.command(cls=Command)
@click.argument("sources", nargs=-1, type=PATH, metavar="[RUN|LOG|-]...")
@option(
    "--weighting",
    type=WEIGHTING,
    help="w(logsnr): NAME or NAME:key=value,…; see 'elbo list'.  [default: the log's own]",
)
@option(
    "--floor",
    type=value(float, gt=0, le=1),
    default=0.01,
    help="Smallest density, relative to a uniform one, so that every level is sampled.",
)
@option("--since", type=value(int, ge=0), default=0, help="Use only intervals of the loss log after this step.")
@out_option("a schedule")
@option("--plot", type=FIGURE, help="Also a picture (.svg, .png, .pdf) of the errors and the densities.")
@option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print each schedule's predicted variance as one JSON object; write the schedule only to the file of -o.",
)
@overwrite_option
@plugin_option
@common
def adapt(
    sources: tuple[Path, ...],
    weighting: str | None,
    out: Path,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Fit a noise schedule to loss logs, for any weighting.

    The logs hold unweighted errors, so one log serves every weighting. The schedule (YAML) goes to a file or a pipe. A
    table gives the predicted variance of a batch's mean loss, with independent t and with low-discrepancy t as in
    training, for the log's schedule, fixed schedules, and the fitted one.
    """
    from elbocli.report.plots import plot_fit
    from elbocli.runtime.progress import log
    from elbocli.training.schedule_fit import fit_log

    inputs = [stdin_or_fail("a run or a loss log") if path == STREAM else path for path in sources or (STREAM,)]
    fitted = fit_log(inputs, weighting, **options)
    if plot:
        plot_fit(fitted, plot)
    table = fitted.report.table()
    if as_json or sys.stdout.isatty():
        print_result(fitted.report.json(), as_json, table)
        if out == STREAM and not as_json:
            log.info("the schedule isn't shown here; -o FILE writes it")
    else:
        for line in filter(None, table.text(80).splitlines()):
            log.info(line)
    if out != STREAM or not (as_json or sys.stdout.isatty()):
        write_output(fitted.text, out)
