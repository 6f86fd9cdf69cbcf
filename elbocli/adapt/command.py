"""Command line of `elbo adapt`."""

import sys
from pathlib import Path
from typing import Any

import click

from elbocli.cli.commands import (
    FIGURE,
    LEVEL,
    PATH,
    STREAM,
    WEIGHTING,
    Command,
    common,
    hand_out,
    option,
    out_option,
    overwrite_option,
    plugin_option,
    print_result,
    since_option,
    stdin_or_fail,
    value,
)
from elbocli.core.criteria import CRITERIA


@click.command(cls=Command)
@click.argument("sources", nargs=-1, type=PATH, metavar="[RUN|LOG|-]...")
@option(
    "--weighting",
    type=WEIGHTING,
    help="w(logsnr): NAME or NAME:key=value,…; see 'elbo list'.  [default: the log's own]",
)
@option("--bias", type=value(float, ge=-1e6, le=1e6), help="The weighting's parameter of that name.")
@option("--shift", type=LEVEL, default=0.0, show_default=False, help="Move the weighting in logsnr.")
@option("--monotone/--no-monotone", help="Hold the weighting constant left of its peak.")
@option(
    "--criterion",
    type=click.Choice(list(CRITERIA)),
    default="loss",
    help="Criterion of the density: " + "; ".join(f"{c.name}: {c.formula} ({c.source})" for c in CRITERIA.values()) + ".",
)
@option(
    "--optimum",
    type=PATH,
    metavar="FILE",
    help="The least error, by 'elbo optimum --like RUN', for --criterion excess.",
)
@option(
    "--data-only",
    type=PATH,
    metavar="FILE",
    help="Fit to the least error of 'elbo optimum' alone, for data without a trained network.",
)
@option("--bins", type=value(int, ge=2, le=2000), help="Merge the log's bins to this many.")
@option(
    "--floor",
    type=value(float, gt=0, le=1),
    default=0.01,
    help="Smallest density, relative to a uniform one, so that every level is sampled.",
)
@since_option
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
    bias: float | None,
    shift: float,
    monotone: bool,
    out: Path,
    plot: Path | None,
    data_only: Path | None,
    as_json: bool,
    floor: float,
    **options: Any,
) -> None:
    """Fit a noise schedule to loss logs, for any weighting.

    The logs hold unweighted errors, so one log serves every weighting. The schedule (YAML) goes to a file or a pipe. A
    table gives the predicted variance of a batch's mean loss, with independent t and with low-discrepancy t as in
    training, for the log's schedule, fixed schedules, and a schedule fitted by each criterion.

    --data-only needs no log: the density follows the weighting times the least possible error for the images. The
    table then gives the logsnr range of the middle half of the noise levels, and EDM's P_mean and P_std.
    """
    from elbocli.adapt.fit import fit_data, fit_log, plot_fit
    from elbocli.files.schedule_file import resolve_weighting
    from elbocli.runtime.progress import log

    def choose(usual: str) -> Any:
        return resolve_weighting(
            weighting or usual, shift=shift, monotone=monotone, given=None if bias is None else {"bias": bias}
        )

    if data_only:
        source, ctx = click.core.ParameterSource, click.get_current_context()
        given = [f"--{key}" for key in options if ctx.get_parameter_source(key) is not source.DEFAULT]
        if sources or given:
            raise click.UsageError(f"--data-only uses no loss log; omit --data-only or {', '.join(given) or 'LOG'}")
        fitted = fit_data(data_only, choose("elbo"), floor)
    else:
        inputs = [stdin_or_fail("a run or a loss log") if path == STREAM else path for path in sources or (STREAM,)]
        fitted = fit_log(inputs, choose, floor=floor, **options)
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
        hand_out(fitted.text, out)
