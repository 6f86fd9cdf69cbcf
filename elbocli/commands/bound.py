"""Command line of `elbo bound`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from elbocli.bound.settings import OUTPUTS, QUESTIONS, BoundSettings
from elbocli.commands.shared.commands import (
    PATH,
    WEIGHTING,
    Command,
    Named,
    Output,
    common,
    json_option,
    launched,
    option,
    overwrite_option,
    plugin_option,
    print_result,
)
from elbocli.commands.shared.setting_options import setting_options

if TYPE_CHECKING:
    from elbocli.bound.result import Bound, FlowLikelihood

VARIATIONAL = "variational"


@click.command(cls=Command)
@click.argument("run", type=PATH)
@click.argument("data", type=PATH, required=False, metavar="[DATA.h5]")
@option(
    "--estimator",
    type=Named("elbocli.bound.ode.ESTIMATORS", VARIATIONAL),
    default=VARIATIONAL,
    help="Estimate -log p this way: variational, or ode:key=value,…",
    more="ode follows the probability-flow equation by Heun's method, with 2 x steps x draws evaluations for an image and a "
    "backward pass for each; solver_nats is the error of the finite number of steps, and nats_se includes it.",
    group=QUESTIONS,
)
@option("--check", is_flag=True, help="Check the paper's theorem on this network, for each --weighting.", group=QUESTIONS)
@option(
    "--weighting",
    type=WEIGHTING,
    multiple=True,
    help="w(logsnr) to check: NAME or NAME:key=value,…; may be repeated.  [default: the run's own]",
    group=QUESTIONS,
)
@option(
    "--curve", type=Output("a table"), help="Also a table (TSV) over logsnr: the error and the bound L(logsnr; x).", group=OUTPUTS
)
@option("--log", type=Output("a loss log"), help="Also the errors as a loss log, for 'elbo adapt'.", group=OUTPUTS)
@setting_options(BoundSettings)
@json_option
@overwrite_option
@plugin_option
@common
def bound(
    run: Path,
    data: Path | None,
    estimator: str,
    weighting: tuple[str, ...],
    curve: Path | None,
    log: Path | None,
    check: bool,
    as_json: bool,
    **options: object,
) -> None:
    """Measure the variational bound, in bits per dimension.

    Without DATA.h5, the run's dataset is used. The result is one JSON object with prior, reconstruction (a softmax
    over the 256 levels) and diffusion terms and their standard errors: bpd_se for the dataset's mean, bpd_se_noise for
    the noise alone, bpd_se_population for the distribution's mean. Latents have no levels, so their bound is on the
    density, given as nats and nats_per_latent_dimension: compare it only within one latent space.

    --check compares the weighted loss with an integral of bounds on noised data, measured on other draws: in theory,
    the two are equal. The exit status is then 0 if they agree within 4 standard errors, else 1.

    --estimator ode estimates -log p by the probability-flow equation instead.
    """
    from msgspec.structs import replace

    from elbocli.bound.estimate import measure_bound
    from elbocli.bound.judge import check_theorem
    from elbocli.bound.measure import open_measurement
    from elbocli.bound.ode import ESTIMATORS
    from elbocli.bound.result import Theorem
    from elbocli.files.atomic import write_text

    if launched() > 1:
        raise click.UsageError("elbo bound measures in one process; start elbo bound without torchrun")
    by_ode = None if estimator == VARIATIONAL else ESTIMATORS.parse(estimator)
    outputs = {"--curve": curve, "--log": log}
    for holds, condition, refused in (
        (check, "--check", outputs | {"--estimator": by_ode}),
        (not check, "the bound, only with --check", {"--weighting": weighting}),
        (by_ode is not None, "--estimator ode", outputs),
    ):
        for name, given in refused.items() if holds else ():
            if given:
                raise click.UsageError(f"{name} can't be combined with {condition}; leave one of them out")
    measured = open_measurement(run, data, BoundSettings.of(options))
    result: Bound | FlowLikelihood | Theorem
    if check:
        result = check_theorem(measured, weighting)
    elif by_ode:
        result = by_ode(measured)
    else:
        estimate = measure_bound(measured)
        result = estimate.bound
    result = replace(result, about=measured.about())
    print_result(result.json(), as_json, result.table())
    if curve:
        write_text(curve, estimate.tsv())
    if log:
        write_text(log, estimate.log_text(measured))
    if isinstance(result, Theorem) and not result.agree:
        click.get_current_context().exit(1)
