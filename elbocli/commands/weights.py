"""Command line of `elbo list`, and of `elbo weights` with the commands show, check and plot."""

import json
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import click

from elbocli.commands.shared.commands import (
    CONTEXT,
    FIGURE,
    LEVEL,
    SCHEDULE,
    WEIGHTING,
    Command,
    Function,
    Group,
    common,
    option,
    overwrite_option,
    plugin_option,
    print_rows,
    table_option,
    value,
)
from elbocli.runtime.text import visible

# KIND of `elbo list` → module and name of the registry.
REGISTRIES = {
    "weightings": "elbocli.core.weighting_curves.WEIGHTINGS",
    "learned-weightings": "elbocli.core.weighting_curves.LEARNED_WEIGHTINGS",
    "schedules": "elbocli.core.schedule_curves.SCHEDULES",
    "predictions": "elbocli.core.prediction.PREDICTIONS",
    "factors": "elbocli.core.weighting.FACTORS",
    "samplers": "elbocli.sampling.samplers.SAMPLERS",
    "spacings": "elbocli.sampling.spacing.SPACINGS",
    "starts": "elbocli.core.noise.STARTS",
    "thresholds": "elbocli.sampling.guidance.THRESHOLDS",
    "roundings": "elbocli.core.pixels.ROUNDINGS",
    "averages": "elbocli.core.averages.AVERAGES",
    "extractors": "elbocli.scoring.extractors.EXTRACTORS",
    "metrics": "elbocli.scoring.metrics.METRICS",
}


SAME = 1e-6  # largest relative deviation of weightings that are the same up to a constant


def _range_options(function: Function) -> Function:
    option("--logsnr-max", "high", type=LEVEL, default=15.0)(function)
    option("--logsnr-min", "low", type=LEVEL, default=-15.0)(function)
    return function


@click.command("list", cls=Command)
@click.argument("kind", type=click.Choice(list(REGISTRIES)), default="weightings", metavar="[KIND]")
@table_option
@plugin_option
@common
def list_(kind: str, as_json: bool) -> None:
    """List the names of a KIND: weightings, samplers and others.

    Each with its formula, parameters and source; with -v, also aliases; weightings also with whether they are monotone.
    KIND is weightings (the default), learned-weightings, schedules, predictions, factors, samplers, spacings, noises, starts, thresholds,
    roundings, averages, extractors or metrics.
    """
    from elbocli.core.registry import load_installed

    registry = resolve_name(REGISTRIES[kind])
    load_installed()
    rows: list[dict[str, Any]] = []
    for declared in registry.values():
        row = {"name": declared.name, "formula": declared.formula, "parameters": dict(declared.params)}
        if kind == "weightings":
            row["monotone"] = "yes" if declared.monotone else "no"
        if Command.verbose or as_json:
            row["known as"] = list(declared.known_as)
        rows.append({**row, "source": declared.source})
    print_rows(rows, as_json)


@click.group(cls=Group, context_settings=CONTEXT)
def weights() -> None:
    """Show, check and plot weightings.

    A SPEC is NAME or NAME:key=value,…, with the modifiers shift=S and monotone, as in sigmoid:bias=2 or edm:monotone.

    A SPEC may also be a loss as papers write it, TARGET-mse[:FACTOR]@SCHEDULE: the squared error of a prediction, times a
    factor or any weighting, with t uniform and logsnr(t) given by a schedule or a schedule file. 'elbo list KIND'
    lists predictions, factors and schedules. Examples: v-mse@cosine, x-mse:min-snr:5@linear-beta,
    eps-mse:monotone@fitted.yaml. A shift or monotone before @ changes the resulting weighting; a shift after @ shifts
    the schedule.

    The path of a diffusers scheduler_config.json is a SPEC, too: the loss of its prediction at its timesteps.

    The folder of a run is a SPEC for the run's weighting. A learned weighting ('elbo train --weighting uncertainty')
    is shown as it is after the run's last step; 'elbo weights check RUN' shows it over the course of training.
    """


@weights.command(cls=Command)
@click.argument("specs", type=WEIGHTING, nargs=-1, required=True, metavar="SPEC...")
@_range_options
@option("--points", type=value(int, ge=2, le=10**6), default=61, help="Levels, evenly spaced.")
@plugin_option
@common
def show(specs: tuple[str, ...], low: float, high: float, points: int) -> None:
    """Print w(logsnr) as TSV: a column logsnr, then one per SPEC."""
    import torch

    from elbocli.core.schedule import check_range
    from elbocli.files.losslog import table_text

    check_range(low, high)
    at = torch.linspace(low, high, points, dtype=torch.float64)
    columns = {"logsnr": at, **{visible(spec): _weighting(spec)(at) for spec in specs}}
    click.echo(table_text(columns), nl=False)


@weights.command(cls=Command)
@click.argument("spec", type=WEIGHTING)
@option("--equals", type=WEIGHTING, help="Also say whether this is the same weighting up to a constant.")
@_range_options
@option("--json", "as_json", is_flag=True, help="One JSON object instead of sentences.")
@plugin_option
@common
@click.pass_context
def check(ctx: click.Context, spec: str, equals: str | None, low: float, high: float, as_json: bool) -> None:
    """Say whether a weighting w never increases with logsnr, so that its loss is the ELBO of noise-augmented data.

    The exit status is 0 if w never increases, and is finite and 0 or more, else 1, and the output names the intervals
    on which w rises, is negative or infinite. With --equals, the exit status is 0 if the two weightings are the same up
    to a constant. The range is limited to the noise levels at which the weightings are not zero.

    SPEC may be the folder of a run. The run's own range then applies, and a learned weighting is checked at the start
    and end of training, and at up to ten steps between: the exit status is 0 if w increases at none of these steps.
    """
    from elbocli.core.monotone import likeness
    from elbocli.core.schedule import check_range
    from elbocli.files.schedule_file import finite
    from elbocli.runs.open import means_run, weighting_of_run

    if equals is None and means_run(spec):
        settings, effective = weighting_of_run(Path(spec))
        times = [item.json() for item in effective]
        good = all(row["monotone"] for row in times)
        verdict: dict[str, Any] = {
            "run": spec,
            "weighting": settings.weighting,
            "schedule": settings.schedule,
            "monotone": good,
            "logsnr": [settings.logsnr_min, settings.logsnr_max],
            "times": times,
        }
        sentences = [f"{spec}: {settings.weighting} after step {w.step}: {w.verdict}" for w in effective]
    else:
        weighting, *others = curves = [_weighting(text) for text in (spec, equals) if text is not None]
        for curve in curves:
            low, high = curve.within_support(low, high)
        check_range(low, high)
        rising = weighting.rising(low, high)
        faults = weighting.faults(low, high)
        good = not rising and not faults
        verdict = {"weighting": weighting.spec, "monotone": good, "rising": rising, "faults": faults, "logsnr": [low, high]}
        sentences = [f"{weighting.spec}: {weighting.verdict(low, high)}"]
        for other in others:
            scale, off, at = likeness(weighting, other, low, high)
            good = off <= SAME and not faults and not other.faults(low, high)
            at = round(at, 6) + 0.0
            verdict["equals"] = {"weighting": other.spec, "same": good, "scale": scale, "deviation": finite(off), "logsnr": at}
            end = f"the same up to a constant, {scale:.6g}; largest relative deviation {off:.3g}, at logsnr {at:g}"
            sentences.append(f"{weighting.spec} and {other.spec} are {'' if good else 'not '}{end}")
    click.echo(json.dumps(verdict) if as_json else "\n".join(map(visible, sentences)))
    ctx.exit(0 if good else 1)


def _weighting(text: str) -> Any:
    """Return the Weighting of a SPEC; for a run, the weighting after its last step. Raises ElboError."""
    from elbocli.files.schedule_file import resolve_weighting
    from elbocli.runs.open import means_run, weighting_of_run

    if means_run(text):
        return weighting_of_run(Path(text))[1][-1].weighting
    return resolve_weighting(text)


@weights.command(cls=Command)
@click.argument("specs", type=WEIGHTING, nargs=-1, required=True, metavar="SPEC...")
@option(
    "--schedule",
    "schedules",
    type=SCHEDULE,
    multiple=True,
    help="Also its density: NAME:key=value,… or a FILE; may be repeated.",
)
@_range_options
@option("-o", "--out", type=FIGURE, required=True, help="A picture: .svg, .png or .pdf.")
@overwrite_option
@plugin_option
@common
def plot(specs: tuple[str, ...], schedules: tuple[str, ...], low: float, high: float, out: Path) -> None:
    """Draw weightings over logsnr: w, the implied noise augmentation p_w = -dw/dlogsnr, and schedules' densities.

    Weightings that are the same up to a constant share a line. If w never rises, p_w divided by the largest w is a
    distribution, with a point mass at the largest logsnr.
    """
    from elbocli.core.schedule import check_range
    from elbocli.files.schedule_file import resolve_schedule
    from elbocli.report.plots import plot_weights

    check_range(low, high)
    weightings = {}
    for text in specs:
        weighting = _weighting(text)
        weightings[weighting.spec + (f"@{Path(text)}" if weighting.learned else "")] = weighting
    plot_weights(weightings, [resolve_schedule(spec, low, high, clip=True) for spec in schedules], low, high, out)
