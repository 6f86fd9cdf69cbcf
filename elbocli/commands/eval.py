"""Command line of `elbo eval`."""

import io
from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import (
    PATH,
    STREAM,
    Command,
    Function,
    NameOrFile,
    command_line,
    common,
    json_option,
    option,
    overwrite_option,
    plugin_option,
    print_result,
    stdin_or_fail,
)
from elbocli.commands.shared.setting_options import setting_option, setting_options
from elbocli.scoring.extractors import DEFAULT, EXTRACTORS
from elbocli.scoring.metrics import METRICS, metric_options
from elbocli.scoring.settings import EXTRACTOR, PROTOCOLS, SCORES, EvalSettings, settings_of

# Only --protocol sets is_order.
OPTIONS = {item.name: item for item in metric_options() if item.name != "is_order"}


def add_metric_options(function: Function) -> Function:
    """Add the options of all metrics to a command."""
    for name, item in reversed(OPTIONS.items()):
        function = setting_option(name, item.setting._replace(group=SCORES))(function)
    return function


@click.command("eval", cls=Command)
@click.argument("samples", type=PATH, nargs=-1, metavar="[SAMPLES...|-]")
@option(
    "--ref",
    type=PATH,
    help="Reference: a dataset or other images, saved features, or statistics (.npz, also ADM's and EDM's).",
    group=SCORES,
)
@option(
    "--protocol",
    type=click.Choice(list(PROTOCOLS)),
    help="Score as published tables do: sets metrics, their options, extractor and n, and refuses others.",
    more="; ".join(f"{name}: {p.formula} ({p.tables})" for name, p in PROTOCOLS.items()) + ".",
    group=SCORES,
)
@option(
    "--metrics",
    metavar="LIST",
    default="fid,is",
    show_default=False,
    help="Names from 'elbo list metrics'.  [default: fid,is by Inception, and fid by another --extractor]",
    more="; ".join(f"{metric.name}: {metric.formula}" for metric in METRICS.values()) + ".",
    group=SCORES,
)
@add_metric_options
@option(
    "--extractor",
    type=NameOrFile(),
    metavar="NAME|FILE.pt2",
    help=f"A name from 'elbo list extractors', or a torch.export program.  [default: that of saved features, or {DEFAULT}]",
    more="A program takes uint8 NCHW and gives features, or (features, logits). "
    + "; ".join(f"{e.name}: {e.formula} ({e.source})" for e in EXTRACTORS.values())
    + ".  elbocli.export_extractor(network, images, 'FILE.pt2') writes a network of yours as such a program.",
    group=EXTRACTOR,
)
@setting_options(EvalSettings)
@json_option
@overwrite_option
@plugin_option
@common
def evaluate(
    samples: tuple[Path, ...],
    ref: Path | None,
    protocol: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score SAMPLES against a reference: FID and others.

    SAMPLES are a stream, .npy, .npz, .h5, saved features, or what 'elbo prep' reads, of one size. With features of the published
    Inception network, FID is named frechet_inception_distance, and with those of another extractor frechet_distance[NAME].
    Several SAMPLES count as repeats with different seeds: scores are means over the repeats, with standard deviations.
    Under torchrun, processes share the images, except those of a stream.
    """
    from elbocli.runtime.processes import joined
    from elbocli.scoring import scoring

    context = click.get_current_context()
    source = click.core.ParameterSource
    by_protocol = {name: options.pop(name) for name in (*OPTIONS, "metrics", "extractor")}
    by_user = {name: setting for name, setting in by_protocol.items() if context.get_parameter_source(name) is not source.DEFAULT}
    metrics = by_user.pop("metrics", None)
    extractor = by_user.pop("extractor", None)
    settings = EvalSettings.of(options, command=command_line(), **settings_of(protocol or "", by_user, metrics, extractor))
    for name, item in OPTIONS.items():
        if item.metric not in settings.metrics and context.get_parameter_source(name) is source.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')} is for --metrics {item.metric}; add this metric, or leave the option out"
            )
    sources: Any = samples or (STREAM,)
    if STREAM in sources:
        if len(sources) > 1:
            raise click.UsageError("a stream can't be one of several SAMPLES; name files")
        sources = [io.BytesIO() if Command.silent else stdin_or_fail("samples")]  # only rank 0 reads the stream
    with joined(settings.device) as world:
        result = scoring.run(sources, ref, settings, world)
    if result:
        print_result(result.json(), as_json, result.table())
