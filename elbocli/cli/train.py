"""`elbo train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from elbocli.cli.options import (
    PATH,
    Command,
    Count,
    Number,
    common,
    device_options,
    schedule_help,
    take_parameters,
    weighting_options,
    with_params,
)
from elbocli.core.prediction import PREDICTIONS
from elbocli.core.weighting import WEIGHTINGS
from elbocli.nn import presets

PLANNING = ("dry_run", "devices", "device_tflops")


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Defaults from a YAML file: below the command line and the environment, above the preset."""
    if path is None:
        return
    from elbocli.errors import ElboError
    from elbocli.files import yamls

    try:
        content = yamls.read(path)
    except ElboError as error:
        raise click.UsageError(str(error), ctx) from error
    if content.get("format") == "elbo-run":
        content = {**content.get("settings", {}), "dropout": content.get("network", {}).get("dropout")}
    known = {
        option.name for option in ctx.command.params if option.name not in ("config", "quiet", "verbose", *PLANNING)
    }
    values = {key.replace("-", "_"): value for key, value in content.items()}
    unknown = sorted(set(values) - known)
    if unknown:
        raise click.UsageError(f"{path}: unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}", ctx)
    for key, value in values.items():
        if isinstance(value, (dict, list)):
            raise click.UsageError(f"{path}: {key} is a {type(value).__name__}, expected one value", ctx)
    ctx.default_map = {key: value for key, value in values.items() if value is not None}


@click.command(cls=Command)
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
    metavar="NAME",
    help=f"Network and settings: {', '.join(presets.NAMES)}, or a FILE.yaml.  [default: by image size and count]",
)
@weighting_options("sigmoid")
@click.option(
    "--schedule",
    metavar="SPEC",
    help=schedule_help(
        "How logsnr is sampled; it doesn't change the loss, only its variance. 'adaptive' fits it while training."
    ),
)
@click.option("--prediction", metavar="SPEC", help=f"What the network outputs: {with_params(PREDICTIONS)}.")
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
@click.option("--ema", type=Number(0, 0.9999999), help="Decay of the average of the weights.")
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
@click.option("--compile/--no-compile", "compile", default=None, help="torch.compile the network.")
@click.option("--seed", type=Count(0, 2**63 - 1), help="All draws are functions of it.  [default: 0]")
@click.option(
    "--floor",
    type=Number(0, 1, above=True),
    help="Least density of an adaptive schedule, as a share of the uniform one.  [default: 0.01]",
)
@click.option("--log-every", type=Count(), help="Updates per line of metrics.jsonl and losslog.jsonl.")
@click.option("--save-every", type=Count(), help="Updates per checkpoint.")
@click.option("--preview-every", type=Count(0), help="Updates per preview picture; 0 is none.")
@click.option("--keep", type=Count(), help="Checkpoints to keep.  [default: 2]")
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
    from elbocli.cli.progress import say, show
    from elbocli.files.dataset import Dataset, find_dataset
    from elbocli.loops import settings
    from elbocli.loops import train as loop

    options["params"] = take_parameters(WEIGHTINGS, options)
    devices, device_tflops = options.pop("devices"), options.pop("device_tflops")
    if dry_run:
        return _plan(data, options, devices, device_tflops)
    if devices is not None or device_tflops is not None:
        raise click.UsageError("--devices and --device-tflops go with --dry-run", click.get_current_context())
    if data is None:
        data = find_dataset(Path())
        say(f"dataset {data}, the only one here")
    dataset = Dataset(data, latents=True)
    resolved = settings.resolve(options, dataset)
    for note in resolved.notes:
        say(note)
    show(loop.run(dataset, out, resolved))
    click.echo(out)


def _plan(data: Path | None, options: dict[str, Any], devices: int | None, device_tflops: float | None) -> None:
    """--dry-run: in the first process alone, for as many as there are."""
    from elbocli.cli.progress import say
    from elbocli.files import yamls
    from elbocli.files.dataset import Dataset
    from elbocli.loops import intended, plan, settings

    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if under_torchrun and os.environ["RANK"] != "0":
        return
    if data is not None:
        planned: settings.Data = Dataset(data, latents=True)
    else:
        planned, why = intended.planned_for(options["preset"], Path())
        say(why)
    resolved = settings.resolve(options, planned)
    for note in resolved.notes:
        say(note)
    devices = devices or (int(os.environ["WORLD_SIZE"]) if under_torchrun else 1)
    click.echo(yamls.dump(plan.plan(resolved, len(planned), devices, device_tflops)), nl=False)
