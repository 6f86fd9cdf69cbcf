"""`elbo bound`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from msgspec import structs

from elbocli.cli.commands import Command, launched, option
from elbocli.cli.options import (
    SCHEDULE,
    WEIGHTING,
    common,
    device_options,
    overwrite_option,
    plugin_option,
    weights_options,
)
from elbocli.cli.types import FIGURE, PATH, Count, Named, Number, Output

EVERY = {"run", "data", "seed", "device", "precision", "weights", "average", "logsnr_min", "logsnr_max", "overwrite"}
MODES = {
    "--check": {"check", "images", "draws", "batch", "weightings"},
    "--classify": {"classify", "images", "draws", "batch", "schedule", "per_image"},
}
"""Options beside EVERY of the questions that are not the plain bound."""
GROUPS = {
    "Questions": ("estimators", "check", "classify", "optimum", "weightings", "schedule"),
    "Precision of the answer": ("images", "draws", "target_se", "seed", "logsnr_min", "logsnr_max"),
    "Outputs": ("per_image", "curve", "plot", "log", "overwrite"),
    "Weights": ("weights", "average"),
    "Speed and memory": ("batch", "device", "precision"),
}


def _mode(ctx: click.Context) -> str:
    """The question that is asked; "" is the plain bound. Raises UsageError for an option of another one."""
    default = click.core.ParameterSource.DEFAULT
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is not default} - EVERY
    asked = [mode for mode in MODES if mode[2:] in given]
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(asked)} are two questions; ask one at a time", ctx)
    wrong = given - MODES[asked[0]] if asked else given & {"weightings"}
    for parameter in ctx.command.params:
        if parameter.name in wrong:
            owner = "--check" if parameter.name == "weightings" else "the plain bound"
            raise click.UsageError(f"{parameter.opts[-1]} goes with {owner}", ctx)
    return asked[0] if asked else ""


def _check_outputs(ctx: click.Context, estimators: list[Any], options: dict[str, Any]) -> None:
    """Raise UsageError for what the estimators that were asked for can't give."""
    names = [each.name for each in estimators]
    if options["target_se"] and (names != ["variational"] or options["per_image"]):
        raise click.UsageError("--target-se goes with --estimator variational alone, and not with --per-image", ctx)
    for name in ("curve", "plot", "log", "optimum"):
        if options[name] and not any(each.traits.drawn for each in estimators):
            raise click.UsageError(f"--{name} is of drawn noise levels; add --estimator variational", ctx)


@click.command(cls=Command, groups=GROUPS)
@click.argument("run", type=PATH)
@click.argument("data", type=PATH, required=False, metavar="[DATA.h5]")
@option(
    "--estimator",
    "estimators",
    type=Named("elbocli.bound.estimators.ESTIMATORS"),
    multiple=True,
    help="Estimate -log p this way: NAME or NAME:key=value,…; repeated, compare them.  [default: variational]",
    more="information is Kong's integral with the data's Gaussian as a control variate, from the same draws. ode follows "
    "the probability-flow equation by Heun's method, with 2 x steps x draws evaluations for an image and a backward pass "
    "for each; its solver_nats says what the steps cost, and nats_se includes it.",
)
@option("--check", is_flag=True, help="Check the paper's theorem on this network, for each --weighting.")
@option(
    "--classify", is_flag=True, help="Measure the run as a classifier: accuracy, log loss and calibration of p(c|x)."
)
@option("-n", "--images", type=Count(2, 10**9), help="Number of images.  [default: 1000, or all with --target-se]")
@option("--draws", type=Count(2, 10**6), default=16, help="Noise levels for each image, an even number.")
@option("--target-se", type=Number(0, above=True), help="Draw until the standard error, per dimension, is below this.")
@option(
    "--weighting",
    "weightings",
    type=WEIGHTING,
    multiple=True,
    help="w(logsnr) to check: NAME or NAME:key=value,…; may be repeated.  [default: the run's own]",
)
@option(
    "--schedule",
    type=SCHEDULE,
    default="",
    help="Schedule of the draws: NAME:key=value,…, FILE or fitted:CRITERION.",
    more="FILE is a schedule of 'elbo adapt', or a diffusers scheduler_config.json. fitted:CRITERION is fitted to the run's "
    "own log.",
)
@option(
    "--optimum",
    type=PATH,
    metavar="FILE",
    help="Also the error above the least one of 'elbo optimum --like RUN', and whether the network copies.",
    more="The network's own images are measured, too, without those held out. The result has 'excess', and the curve two more columns.",
)
@option(
    "--per-image",
    type=Output("a table", suffixes=(".tsv", ".txt")),
    help="Also each image's number and error: a table (.tsv).",
)
@option("--curve", type=Output("a table"), help="Also a table (TSV) over logsnr: the error and the bound L(t;x).")
@option("--plot", type=FIGURE, help="Also a picture (.svg, .png, .pdf) of the same.")
@option("--log", type=Output("a loss log"), help="Also the errors as a loss log, for 'elbo adapt'.")
@option("--logsnr-min", type=Number(-50, 50), help="Noisiest level.  [default: the run's]")
@option("--logsnr-max", type=Number(-50, 50), help="Cleanest level, where images are read.  [default: the run's]")
@weights_options
@option("--seed", type=Count(0, 2**63 - 1), default=0, help="Seed of images and noise.")
@option(
    "--batch", type=Count(1, 10**6), help="Network inputs at a time.  [default: 256, fewer for images above 32 pixels]"
)
@device_options
@overwrite_option
@plugin_option
@common
def bound(run: Path, data: Path | None, **options: Any) -> None:
    """Measure the variational bound of RUN on DATA.h5, in nats and bits per dimension.

    Without DATA.h5 it uses the run's own dataset. It prints one JSON object with the prior, reconstruction (a softmax
    over the 256 levels) and diffusion terms and their standard errors: bpd_se for the dataset's mean, bpd_se_noise for
    the noise alone, bpd_se_population for the distribution's mean. Of latents it is the bound of their density, in nats
    and nats_per_latent_dimension, because they have no levels: it compares models of one latent space.

    --check compares the weighted loss with an integral of bounds over the noise levels that the weighting implies, from
    independent draws. The exit status is then 0 if they agree within 4 standard errors, else 1.

    --estimator names other ways to the same number; then the object has 'estimates' and their 'differences', each with
    its error. --classify tells how well the run finds the classes of images by p(c|x) ~ exp(-bound).
    """
    from elbocli.bound import classify, estimate, excess, likelihood, theorem
    from elbocli.bound.measure import ALL, MeasureSettings, open_measurement
    from elbocli.cli.progress_bar import say, show
    from elbocli.files.atomic import write_text
    from elbocli.files.likelihood_file import write_table

    ctx = click.get_current_context()
    mode = _mode(ctx)
    if launched() > 1:
        raise click.UsageError("elbo bound measures in one process; start it without torchrun", ctx)
    curve, plot, log, per_image = (options[name] for name in ("curve", "plot", "log", "per_image"))
    keys = ("draws", "seed", "batch", "device", "precision", "weights", "average", "logsnr_min", "logsnr_max")
    settings = MeasureSettings(
        images=ALL if options["target_se"] and options["images"] is None else options["images"],
        **{key: options[key] for key in keys},
    )
    estimators = likelihood.parse_estimators(options["estimators"] or [likelihood.DEFAULT])
    _check_outputs(ctx, estimators, options)
    probe = open_measurement(run, data, settings, lambda text: say(text, "warning"))
    schedule = options["schedule"]
    if mode == "--classify":
        classified, scores = show(classify.run(probe, schedule))
        if per_image:
            write_table(per_image, scores.table())
            classified = structs.replace(classified, per_image=str(per_image))
        click.echo(json.dumps(classified.json(), indent=1))
        return
    if mode == "":
        optimum = options["optimum"]
        own = optimum and excess.open_own(probe, optimum, settings, lambda text: say(text, "warning"))
        plain = not per_image and [each.name for each in estimators] == [likelihood.DEFAULT]
        if plain:
            found = show(estimate.run(probe, schedule, options["target_se"]))
            told = found.bound.json()
        else:
            several = show(likelihood.run(probe, estimators, schedule))
            if per_image:
                write_table(per_image, several.table(probe.dataset.labels))
            told, found = several.told(str(per_image) if per_image else None), several.bound
        beyond = optimum and show(excess.run(probe, own, optimum, found, schedule))
        click.echo(json.dumps({**told, "excess": beyond.report} if beyond else told, indent=1))
        if curve:
            write_text(curve, beyond.tsv(found.curve) if beyond else found.curve.tsv())
        if log:
            write_text(log, estimate.log_text(probe, found))
        if plot:
            found.curve.plot(plot)
        return
    result = show(theorem.run(probe, probe.weightings(options["weightings"])))
    click.echo(json.dumps(result.json(), indent=1))
    ctx.exit(0 if result.agree else 1)
