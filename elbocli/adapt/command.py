"""`elbo adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from elbocli.cli.commands import Command, option
from elbocli.cli.options import WEIGHTING, common, hand_out, overwrite_option, plugin_option, stdin_or_fail
from elbocli.cli.types import FIGURE, PATH, STREAM, Count, Number, Output, Shift
from elbocli.core.training import CRITERIA

DEFAULT = click.core.ParameterSource.DEFAULT


@click.command(cls=Command)
@click.argument("sources", nargs=-1, type=PATH, metavar="[RUN|LOG|-]...")
@option(
    "--weighting",
    type=WEIGHTING,
    help="w(logsnr): NAME or NAME:key=value,…; see 'elbo weights list'.  [default: the log's own]",
)
@option("--bias", type=Number(), help="The weighting's parameter of that name.")
@option("--shift", type=Shift(), default=0.0, show_default=False, help="Move the weighting in logsnr.")
@option("--monotone/--no-monotone", help="Hold the weighting constant left of its peak.")
@option(
    "--criterion",
    type=click.Choice(list(CRITERIA)),
    default="loss",
    help="The density follows it: " + "; ".join(f"{c.name}: {c.formula} ({c.source})" for c in CRITERIA.values()) + ".",
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
    help="Fit to the least error of 'elbo optimum' alone: for data that nothing was trained on yet.",
)
@option("--bins", type=Count(2, 2000), help="Merge the log's bins to this many.")
@option(
    "--floor",
    type=Number(0, 1, above=True),
    default=0.01,
    help="Smallest density, relative to a uniform one, so that every level is sampled.",
)
@option("--since", type=Count(0), default=0, help="Use only intervals after this step.")
@option("-o", "--out", type=Output("a schedule", stdout=True), default="-", help="The file that the schedule goes to.")
@option("--plot", type=FIGURE, help="Also a picture (.svg, .png, .pdf) of the errors and the densities.")
@option(
    "--report",
    is_flag=True,
    help="Print each schedule's predicted variance as one JSON object; write the schedule only to the file of -o.",
)
@overwrite_option
@plugin_option
@common
def adapt(
    sources: tuple[Path, ...],
    out: Path,
    plot: Path | None,
    data_only: Path | None,
    report: bool,
    **options: Any,
) -> None:
    """Fit a noise schedule to the loss logs of runs, for any weighting.

    The logs hold unweighted errors, so one log serves every weighting. The schedule (YAML) goes to standard output.
    Standard error shows the predicted variance of the loss estimate for the log's own schedule, for others, and for
    one fitted by each criterion. Low-discrepancy t is drawn as in training, at the log's batch size.

    --data-only needs no log: the density follows the weighting times the least error on the images themselves. Standard
    error then says where half of the draws lie, and EDM's P_mean and P_std.
    """
    from elbocli.adapt import fit_log as loop
    from elbocli.cli.progress_bar import say

    if options["shift"] == "auto":
        raise click.UsageError("--shift auto needs images; give the number", click.get_current_context())
    if data_only is not None:
        _refuse_beside_data(click.get_current_context(), sources)
        _fit_data(data_only, out, plot, report, options)
        return
    inputs = [stdin_or_fail("a run or a loss log") if path == STREAM else path for path in sources or (STREAM,)]
    fitted = loop.run(inputs, **options)
    for name in fitted.log.cut:
        say(f"{name}: its last line is half written, and left out", "warning")
    told, best = fitted.report, "/ best"
    say(f"{told.weighting}, {told.criterion} criterion, {told.images} images in {told.intervals} intervals")
    say(f"predicted variance of the loss estimate per image, relative to the loss squared, batches of {told.batch}:")
    say(f"{'schedule':>21}  {'independent t':>13}  {best:>8}  {'low-discrepancy t':>17}  {best:>8}")
    for name, p in told.schedules.items():
        independent = f"{p.variance_independent:13.4g}  {p.ratio_independent:8.3g}"
        say(f"{name:>21}  {independent}  {p.variance_low_discrepancy:17.4g}  {p.ratio_low_discrepancy:8.3g}")
    if plot is not None:
        from elbocli.adapt.plot import plot_fit

        shown = {"log's own": loop.OWN, "cosine": "cosine", "edm": "edm", "fitted": loop.FITTED + told.criterion}
        densities = {label: fitted.candidates[name] for label, name in shown.items()}
        plot_fit(fitted.moments, fitted.weighting, densities, plot)
    hand_out(fitted.text, out, told.json() if report else None)


def _refuse_beside_data(ctx: click.Context, sources: tuple[Path, ...]) -> None:
    """Raise UsageError for what only a log can answer."""
    given = [key for key in ("criterion", "optimum", "bins", "since") if ctx.get_parameter_source(key) is not DEFAULT]
    if sources or given:
        what = f"--{given[0]}" if given else "a log"
        raise click.UsageError(f"--data-only needs no log, and {what} does not go with it", ctx)


def _fit_data(path: Path, out: Path, plot: Path | None, report: bool, options: dict[str, Any]) -> None:
    """Fit a schedule to data alone, and say what it is."""
    from elbocli.adapt import fit_optimum
    from elbocli.cli.progress_bar import say

    named = {key: options[key] for key in ("weighting", "shift", "monotone", "bias", "floor")}
    fitted = fit_optimum.run(path, **named)
    told = fitted.report
    low, high = told.half
    say(
        f"{told.weighting}, the least error of {told.images} images: half of the draws lie in logsnr {low:.3g} to {high:.3g}"
    )
    say(f"as EDM says it: P_mean {told.p_mean:.3g}, P_std {told.p_std:.3g}")
    if told.told_apart is not None:
        say(
            f"beyond logsnr {told.told_apart:.3g} so few images are told apart that the least error vanishes, and the error of a "
            "network doesn't: more images, a larger --floor, or 'elbo adapt RUN' after a short run give these levels more",
            "warning",
        )
    if plot is not None:
        from elbocli.adapt.plot import plot_least

        plot_least(fitted, plot)
    hand_out(fitted.text, out, told.json() if report else None)
