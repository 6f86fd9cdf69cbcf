"""Command line of `elbo bound`."""

from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import (
    COUNT,
    LEVEL,
    PATH,
    WEIGHTING,
    Command,
    Named,
    Output,
    common,
    device_options,
    json_option,
    launched,
    option,
    overwrite_option,
    plugin_option,
    print_result,
    seed_option,
    value,
    weights_option,
)

IMAGES = 1000
GROUPS = {
    "Questions": ("estimator", "check", "optimum", "weighting"),
    "Precision of the answer": ("images", "draws", "seed", "logsnr_min", "logsnr_max"),
    "Outputs": ("per_image", "curve", "log", "as_json", "overwrite"),
    "Weights": ("weights",),
    "Speed and memory": ("batch_size", "device", "precision"),
}


@click.command(cls=Command, groups=GROUPS)
@click.argument("run", type=PATH)
@click.argument("data", type=PATH, required=False, metavar="[DATA.h5]")
@option(
    "--estimator",
    type=Named("elbocli.bound.estimate.ESTIMATORS"),
    multiple=True,
    help="Estimate -log p this way: NAME or NAME:key=value,…; repeated, compare them.  [default: variational]",
    more="information is Kong's integral with the data's Gaussian as a control variate, from the same draws. ode follows "
    "the probability-flow equation by Heun's method, with 2 x steps x draws evaluations for an image and a backward pass "
    "for each; solver_nats is the error of the finite number of steps, and nats_se includes it.",
)
@option("--check", is_flag=True, help="Check the paper's theorem on this network, for each --weighting.")
@option(
    "-n",
    "--images",
    type=value(int, ge=2, le=10**9),
    default=IMAGES,
    help="Number of images.",
)
@option("--draws", type=value(int, ge=2, le=10**6), default=16, help="Noise levels for each image, an even number.")
@option(
    "--weighting",
    type=WEIGHTING,
    multiple=True,
    help="w(logsnr) to check: NAME or NAME:key=value,…; may be repeated.  [default: the run's own]",
)
@option(
    "--optimum",
    type=PATH,
    metavar="FILE",
    help="Also the error above the least one of 'elbo optimum --like RUN', and whether the network copies.",
    more="The network's training images are measured, too, without held-out ones. The result has 'excess', and the curve two "
    "more columns.",
)
@option(
    "--per-image",
    type=Output("a table", suffixes=(".tsv", ".txt")),
    help="Also a table (.tsv) of each image's value and error.",
)
@option("--curve", type=Output("a table"), help="Also a table (TSV) over logsnr: the error and the bound L(logsnr; x).")
@option("--log", type=Output("a loss log"), help="Also the errors as a loss log, for 'elbo adapt'.")
@option("--logsnr-min", type=LEVEL, help="Noisiest level.  [default: the run's]")
@option("--logsnr-max", type=LEVEL, help="Cleanest level, where images are read.  [default: the run's]")
@weights_option
@seed_option
@option("--batch-size", type=COUNT, help="Network inputs at a time.  [default: 256, fewer for images above 32 pixels]")
@device_options
@json_option
@overwrite_option
@plugin_option
@common
def bound(
    run: Path,
    data: Path | None,
    estimator: tuple[str, ...],
    weighting: tuple[str, ...],
    optimum: Path | None,
    per_image: Path | None,
    curve: Path | None,
    log: Path | None,
    check: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure the variational bound, in bits per dimension.

    Without DATA.h5, the run's dataset is used. The result is one JSON object with prior, reconstruction (a softmax
    over the 256 levels) and diffusion terms and their standard errors: bpd_se for the dataset's mean, bpd_se_noise for
    the noise alone, bpd_se_population for the distribution's mean. Latents have no levels, so their bound is on the
    density, given as nats and nats_per_latent_dimension: compare it only within one latent space.

    --check compares the weighted loss with an integral of bounds on noised data, measured on other draws: in theory,
    the two are equal. The exit status is then 0 if they agree within 4 standard errors, else 1.

    --estimator names other estimates of -log p; the object then has 'estimates' and their 'differences', with standard
    errors.
    """
    from msgspec.structs import replace

    from elbocli.bound import estimate, judge
    from elbocli.bound.measure import open_measurement
    from elbocli.files.atomic import write_text
    from elbocli.files.losslog import table_text

    ctx = click.get_current_context()
    if launched() > 1:
        raise click.UsageError("elbo bound measures in one process; start elbo bound without torchrun")
    estimators = estimate.parse_estimators(estimator or ("variational",))
    names = [each.name for each in estimators]
    alone = names == ["variational"]
    drawn = ("curve", "log", "optimum")
    rules = (
        (check, "--check", ("per_image", "estimator", *drawn)),
        (not check, "the bound, only with --check", ("weighting",)),
        (names == ["ode"], "--estimator ode alone", drawn),
    )
    for holds, other, refused in rules:
        for name in refused if holds else ():
            if ctx.params[name]:
                raise click.UsageError(f"--{name.replace('_', '-')} can't be combined with {other}; leave one of them out")
    measured = open_measurement(run, data, **how)
    training = judge.open_training_images(measured, optimum) if optimum else measured
    result: Any
    profile: Any = None
    table: Any = None
    if check:
        result = judge.check_theorem(measured, weighting)
    else:
        several = estimate.measure_likelihoods(measured, estimators)
        profile = several.bound
        table = several.table(measured.rows, measured.dataset.labels)
        result = profile.bound if alone else several.result
    facts: dict[str, Any] = {}
    if optimum:
        facts["excess"], profile = judge.add_excess(measured, training, optimum, profile)
    if per_image:
        facts["per_image"] = str(per_image)
        write_text(per_image, table_text(table))
    result = replace(result, about={**facts, **measured.about()})
    print_result(result.json(), as_json, result.table())
    if curve:
        write_text(curve, profile.tsv())
    if log:
        write_text(log, profile.log_text(measured))
    if check and not result.agree:
        ctx.exit(1)
