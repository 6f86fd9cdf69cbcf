"""`elbo train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from elbocli.cli.options import (
    PATH,
    Command,
    Count,
    Duration,
    Joined,
    Named,
    Number,
    command_line,
    common,
    device_options,
    launched,
    schedule_help,
    take_parameters,
    weighting_options,
    with_params,
)
from elbocli.core.averages import AVERAGES
from elbocli.core.prediction import PREDICTIONS
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.nn import presets

PLANNING = ("dry_run", "devices", "device_tflops")


def _typed(value: Any) -> str:
    """A value of a file as one would type it: 1e3 is a whole number too."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Defaults from a YAML file: below the command line and the environment, above the preset."""
    if path is None:
        return
    from elbocli.errors import ElboError
    from elbocli.files import strict_yaml

    try:
        content = strict_yaml.read(path)
        if content.get("format") == "elbo-run":
            from elbocli.files.checkpoint import checked_config

            run = checked_config(content, path)
            network = run["network"]
            shown = {"dropout": network.get("dropout"), "conditional": bool(network.get("num_classes"))}
            content = {**run["settings"], **shown}
    except ElboError as error:
        raise click.UsageError(str(error), ctx) from error
    known = {
        option.name: option
        for option in ctx.command.params
        if option.name not in ("config", "quiet", "verbose", *PLANNING)
    }
    values: dict[str, Any] = {}
    for written, value in content.items():
        key = written.replace("-", "_")
        if key not in known:
            raise click.UsageError(f"{path}: unknown setting {key!r}; known: {', '.join(sorted(known))}", ctx)
        if key in values:
            raise click.UsageError(f"{path}: {key!r} is given twice", ctx)
        several = known[key].multiple if isinstance(known[key], click.Option) else False
        items = value if isinstance(value, list) and several else [value]
        for item in items:
            if isinstance(item, (dict, list)):
                raise click.UsageError(f"{path}: {key} is a {type(item).__name__}, expected one value", ctx)
        # As on the command line, so that nothing else is refused or understood; but YAML has read 1:30:00 as seconds.
        if not isinstance(known[key].type, Duration):
            items = [None if item is None else _typed(item) for item in items]
        values[key] = items if several and value is not None else items[0]
    ctx.default_map = {key: value for key, value in values.items() if value is not None}


@click.command(cls=Joined)
@click.argument("data", type=PATH, required=False, envvar="ELBO_DATA", metavar="[DATA.h5]")
@click.option(
    "-o",
    "--out",
    type=PATH,
    default="run",
    show_default=True,
    help="The run folder; the same command again goes on with it.",
)
@click.option(
    "--config",
    type=PATH,
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="YAML file of these options (or a run's config.yaml).",
)
@click.option(
    "--preset",
    type=Named(presets.NAMES),
    metavar="NAME",
    help=f"Network and settings: {', '.join(presets.NAMES)}, or a FILE.yaml.  [default: by image size and count]",
)
@weighting_options("sigmoid")
@click.option(
    "--schedule",
    type=Named((*SCHEDULES, "adaptive")),
    metavar="SPEC",
    help=schedule_help(
        "How logsnr is sampled; it doesn't change the loss, only its variance. 'adaptive' fits it while training."
    ),
)
@click.option(
    "--prediction",
    type=Named(PREDICTIONS),
    metavar="SPEC",
    help=f"What the network outputs: {with_params(PREDICTIONS)}.",
)
@click.option("--logsnr-min", type=Number(-50, 50), help="Noisiest level.")
@click.option("--logsnr-max", type=Number(-50, 50), help="Cleanest level.")
@click.option(
    "--t-sampling",
    type=click.Choice(["low-discrepancy", "independent"]),
    help="How t is drawn in a batch.  [default: low-discrepancy]",
)
@click.option("--steps", type=Count(), help="Optimizer updates in all.")
@click.option("--batch", type=Count(1, 10**6), help="Images per update.")
@click.option("--lr", type=Number(0, 1e3, above=True), help="Learning rate of AdamW.")
@click.option("--warmup", type=Count(0), help="Updates over which lr rises from zero.")
@click.option("--weight-decay", type=Number(0, 1e3), help="Of AdamW.  [default: 0]")
@click.option("--beta2", type=Number(0, 0.9999999), help="Of AdamW, whose beta1 is 0.9.  [default: 0.999]")
@click.option("--adam-eps", type=Number(0, 1, above=True), help="Of AdamW.  [default: 1e-8]")
@click.option("--clip", type=Number(0), help="Largest gradient norm; 0 is no limit.")
@click.option(
    "--ema",
    type=Named(AVERAGES),
    multiple=True,
    metavar="SPEC",
    help="Average of the weights; may be repeated, and the first is the one that previews, sample and bound use. A "
    f"number is the decay per update; or NAME:key=value,…: {with_params(AVERAGES)}.",
)
@click.option("--dropout", type=Number(0, 0.99), help="Inside the network's blocks.")
@click.option("--label-dropout", type=Number(0, 1), help="Share of images shown without their class, for guidance.")
@click.option(
    "--flip/--no-flip",
    default=None,
    help="Mirror half of the images; not of latents, whose mirror images 'elbo prep --mirror' packs.",
)
@click.option(
    "--conditional/--unconditional", default=None, help="Show the network the classes.  [default: if there are several]"
)
@device_options
@click.option(
    "--tf32/--no-tf32",
    default=None,
    help="Multiply fp32 in TF32 on CUDA, which is several times as fast and keeps 10 bits of mantissa.  [default: tf32]",
)
@click.option("--compile/--no-compile", "compile", default=None, help="torch.compile the network.")
@click.option("--seed", type=Count(0, 2**63 - 1), help="All draws are functions of it.  [default: 0]")
@click.option(
    "--floor",
    type=Number(0, 1, above=True),
    help="Least density of an adaptive schedule, as a share of the uniform one.  [default: 0.01]",
)
@click.option(
    "--multiscale/--no-multiscale",
    default=None,
    help="Sum the loss over average-pooled resolutions 32, 64, … up to the image's, each weighted by 1/resolution, so "
    "that coarse structure counts for more. It is then no ELBO, as that weighs all pixels' errors alike; the loss log "
    "and validation's bits per dimension stay plain.  [default: no]",
)
@click.option("--log-every", type=Count(), help="Updates per line of metrics.jsonl and losslog.jsonl.")
@click.option("--save-every", type=Count(), help="Updates per checkpoint.")
@click.option("--preview-every", type=Count(0), help="Updates per preview picture; 0 is none.")
@click.option(
    "--snapshot-every",
    type=Count(0),
    help="Updates per snapshot of the power averages, from which 'elbo ema' makes others; 0 is none. Where --ema names no "
    "power average, those of std 0.05 and 0.1 are added.  [default: steps/20 if --ema names one, else 0]",
)
@click.option("--keep", type=Count(), help="Checkpoints to keep.  [default: 2]")
@click.option(
    "--milestone-every", type=Count(0), help="Updates per checkpoint that is never deleted; 0 is none.  [default: 0]"
)
@click.option(
    "--time-limit",
    type=Duration(),
    help="Save and end once training has gone on for so long: 3h50m, 90s, 1:30:00. The same command goes on. Leave time "
    "to start and to save.  [default: none]",
)
@click.option(
    "--on-nonfinite",
    type=click.Choice(["stop", "skip"]),
    help="When loss or gradient is not finite: stop with exit 4, or leave that update out and warn.  [default: stop]",
)
@click.option(
    "--max-skips", type=Count(), help="Updates left out in a row before the run stops after all.  [default: 10]"
)
@click.option(
    "--on-checkpoint",
    metavar="COMMAND",
    help="Run this in a shell after each checkpoint, while training goes on: $ELBO_CHECKPOINT, $ELBO_RUN and $ELBO_STEP say "
    "of which, and its output goes to stderr. One at a time: of the checkpoints that come meanwhile, the newest is next. "
    "The end of training waits for it; an interrupted or failed run ends it (SIGTERM, after 5 s SIGKILL).",
)
@click.option(
    "--val",
    metavar="PATH",
    help="Validate on this dataset, packed as DATA.h5 was: the error at each noise level, the weighted loss, and bits per "
    "dimension (of pixels).",
)
@click.option(
    "--val-split",
    type=Count(0),
    help="Validate on this many images of DATA.h5, which are chosen by the seed and never trained on; 0 is none.  "
    "[default: 0]",
)
@click.option(
    "--val-every",
    type=Count(0),
    help="Images of training between validations; 0 is as often as takes 2 % of the work.  [default: 0]",
)
@click.option("--val-images", type=Count(0), help="At most this many images per validation; 0 is all.  [default: 0]")
@click.option(
    "--tensorboard/--no-tensorboard",
    default=None,
    help="Also write metrics and previews for TensorBoard, to RUN/tensorboard. Needs the extra: pip install "
    "'elbocli[tensorboard]'.  [default: no]",
)
@click.option(
    "--parallel",
    type=click.Choice(["ddp", "fsdp"]),
    help="Under torchrun: every process holds the network, or a share of each of its weights.  [default: ddp]",
)
@click.option(
    "--micro-batch",
    type=Count(0, 10**6),
    help="Images that a process sees at once, the gradients of a batch being added up; 0 takes its whole share of the "
    "batch on a CPU, on CUDA the most that fits.  [default: 0]",
)
@click.option(
    "--activation-checkpointing/--no-activation-checkpointing",
    default=None,
    help="Keep only what enters each block and compute the rest again for the gradients: less memory, slower.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print (YAML) what would run, what it needs of each device and computes, and what would fit; then stop. With "
    "--preset and no DATA.h5, unless the only dataset here fits it, this is for the data that the preset is made for.",
)
@click.option(
    "--devices", type=Count(1, 10**6), help="With --dry-run: plan for that many.  [default: torchrun's, or 1]"
)
@click.option(
    "--device-tflops",
    type=Number(0, above=True),
    help="With --dry-run: 10^12 operations that a device sustains per second; adds the days that a run takes.",
)
@common
def train(data: Path | None, out: Path, dry_run: bool, **options: Any) -> None:
    """Train a denoiser on DATA.h5, under any weighting of the noise levels.

    Without DATA.h5, the dataset is $ELBO_DATA, else the only one in this folder. Options not given come from
    $ELBO_TRAIN_… variables, then --config, then the preset. The run's path is printed at the end.
    """
    from elbocli.cli.progress_bar import say, show
    from elbocli.files.dataset import Dataset, find_dataset
    from elbocli.run import settings
    from elbocli.runtime.processes import joined
    from elbocli.train import held_out, loop
    from elbocli.train import tensorboard as board

    options["ema"] = options["ema"] or None
    options["params"] = take_parameters(WEIGHTINGS, options)
    devices, device_tflops = options.pop("devices"), options.pop("device_tflops")
    if dry_run:
        return _plan(data, options, devices, device_tflops)
    if devices is not None or device_tflops is not None:
        raise click.UsageError("--devices and --device-tflops go with --dry-run", click.get_current_context())
    with joined(options["device"] or "auto") as world:
        with world.together():
            if data is None:
                data = find_dataset(Path())
                say(f"dataset {data}, the only one here")
            dataset = Dataset(data, latents=True)
            resolved = settings.resolve(options, dataset)
            if resolved.settings.tensorboard:
                board.require()
            held_out.open_held_out(resolved.settings, dataset, resolved.network.num_classes > 0)
        for note in resolved.notes:
            say(note)
        show(loop.run(dataset, out, resolved, world, command_line()))
    if world.first:
        click.echo(out)


def _plan(data: Path | None, options: dict[str, Any], devices: int | None, device_tflops: float | None) -> None:
    """--dry-run: in the first process alone, for as many as there are."""
    from elbocli.cli.progress_bar import say
    from elbocli.files import strict_yaml
    from elbocli.files.dataset import Dataset
    from elbocli.run import settings
    from elbocli.train import plan, preset_data

    if Command.silent:
        return
    if data is not None:
        planned: settings.Data = Dataset(data, latents=True)
    else:
        planned, why = preset_data.planned_for(options["preset"], Path())
        say(why)
    resolved = settings.resolve(options, planned)
    for note in resolved.notes:
        say(note)
    devices = devices or launched()
    click.echo(strict_yaml.dump(plan.plan(resolved, len(planned), devices, device_tflops)), nl=False)
