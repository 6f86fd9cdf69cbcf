"""`elbo train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from elbocli.cli.grouped_help import Command, Joined, launched, option
from elbocli.cli.options import command_line, common, plugin_option
from elbocli.cli.other_words import nearest_setting
from elbocli.cli.setting_options import setting_groups, setting_options
from elbocli.cli.types import PATH, Count, Duration, Number
from elbocli.run.train_settings import KEPT, RUN

PLANNING = ("dry_run", "devices", "device_tflops")
TYPED = ("out", "on_checkpoint")
"""Options that no file may say: where to write, and what to run. Anyone may have written the file."""


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
            said = {key: value for key, value in content["settings"].items() if key in TYPED and value}
            content = {**run["settings"], **shown, **said}
    except ElboError as error:
        raise click.UsageError(str(error), ctx) from error
    # A file names no other file to read settings from (--config) and none to run (--plugin): these expose no value.
    known = {
        option.name: option
        for option in ctx.command.params
        if option.expose_value and option.name not in ("quiet", "verbose", *PLANNING)
    }
    values: dict[str, Any] = {}
    for written, value in content.items():
        key = written.replace("-", "_")
        if key in TYPED:
            raise click.UsageError(
                f"{path}: {key} is taken from the command line or $ELBO_TRAIN_{key.upper()} alone, and from no file; "
                f"leave it out there, and give --{key.replace('_', '-')}",
                ctx,
            )
        if key not in known:
            raise click.UsageError(f"{path}: unknown setting {key!r}; {nearest_setting(key, known)}", ctx)
        if key in values:
            raise click.UsageError(f"{path}: {key!r} is given twice", ctx)
        several = isinstance(option := known[key], click.Option) and option.multiple
        items = value if isinstance(value, list) and several else [value]
        if not items:
            raise click.UsageError(f"{path}: {key} is an empty list; name at least one, or leave it out", ctx)
        for item in items:
            if isinstance(item, (dict, list)):
                raise click.UsageError(f"{path}: {key} is a {type(item).__name__}, expected one value", ctx)
        # As on the command line, so that nothing else is refused or understood; but YAML has read 1:30:00 as seconds.
        if not isinstance(known[key].type, Duration):
            items = [None if item is None else _typed(item) for item in items]
        values[key] = items if several and value is not None else items[0]
    ctx.default_map = {key: value for key, value in values.items() if value is not None}


GROUPS = setting_groups()
GROUPS[RUN] = ["out", "config", "plugin", *GROUPS[RUN]]
GROUPS[KEPT].append("on_checkpoint")
GROUPS["Plan, without training"] = [*PLANNING]


@click.command(cls=Joined, groups=GROUPS)
@click.argument("data", type=PATH, required=False, envvar="ELBO_DATA", metavar="[DATA.h5]")
@option("-o", "--out", type=PATH, default="run", help="The run's folder, new or to go on with.")
@option(
    "--config",
    type=PATH,
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="YAML of these options, or a run's config.yaml.",
)
@setting_options
@option(
    "--on-checkpoint",
    metavar="COMMAND",
    default="",
    help="Run this in a shell after each checkpoint.",
    more="Training goes on meanwhile: $ELBO_CHECKPOINT, $ELBO_RUN and $ELBO_STEP say of which checkpoint, and the output goes to "
    "stderr. One at a time: of the checkpoints that come meanwhile, the newest is next. The end of training waits for it; an "
    "interrupted or failed run ends it (SIGTERM, after 5 s SIGKILL). No file can say it: neither a preset nor --config.",
)
@option(
    "--dry-run",
    is_flag=True,
    help="Print what would run, need and fit; then stop.",
    more="It is YAML, with the memory of each device and the operations. With --preset and no DATA.h5, unless the only dataset here fits "
    "it, this is for the data that the preset is made for.",
)
@option("--devices", type=Count(1, 10**6), help="Plan for that many.  [default: torchrun's, or 1]")
@option("--device-tflops", type=Number(0, above=True), help="10^12 operations a second, of each; adds days.")
@plugin_option
@common
def train(data: Path | None, out: Path, on_checkpoint: str, dry_run: bool, **options: Any) -> None:
    """Train a denoiser on DATA.h5, under any weighting of the noise levels.

    Without DATA.h5, the dataset is $ELBO_DATA, else the only one in this folder. Options not given come from
    $ELBO_TRAIN_… variables, then --config, then the preset. The run's path is printed at the end.
    """
    from elbocli.cli.progress_bar import say, show
    from elbocli.files.dataset import Dataset, find_dataset
    from elbocli.run import folder, settings
    from elbocli.runtime.processes import joined
    from elbocli.train import held_out, loop
    from elbocli.train import tensorboard as board

    options["ema"] = options["ema"] or None
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
            resolved = settings.resolve(options, dataset, folder.settings_before(out))
            if resolved.settings.tensorboard:
                board.require()
            held_out.open_held_out(resolved.settings, dataset, resolved.network.num_classes > 0)
        for note in resolved.notes:
            say(note)
        where = show(loop.run(dataset, out, resolved, world, command_line(), on_checkpoint))
    if world.first:
        click.echo(os.fsencode(where))  # for a script, which needs the name itself


def _plan(data: Path | None, options: dict[str, Any], devices: int | None, device_tflops: float | None) -> None:
    """Do --dry-run, in the first process alone, for as many as there are."""
    from elbocli.cli.progress_bar import say
    from elbocli.files import strict_yaml
    from elbocli.files.dataset import Dataset
    from elbocli.run import preset_data, settings
    from elbocli.train import plan

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
