"""`elbo train`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from elbocli.cli.commands import Command, Joined, launched, option
from elbocli.cli.options import command_line, common, plugin_option
from elbocli.cli.types import PATH, Count, Duration, Named, Number, Shift
from elbocli.core.registry import nearest
from elbocli.run.setting_type import Setting
from elbocli.run.train_settings import KEPT, KIND, RUN, SETTINGS, TrainSettings

F = TypeVar("F", bound=Callable[..., Any])
TYPED = ("out", "overwrite", "on_checkpoint", "log_to")
"""Options that no file may say: where to write, and what to run. Anyone may have written the file."""


def _typed(value: Any) -> str:
    """A value of a file as one would type it: 1e3 is a whole number too."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> Any:
    """Defaults from a YAML file: below the command line and the environment, above the preset.

    Of a run's it returns path and content: only when every --plugin was run can its network be known.
    """
    if path is None:
        return None
    from elbocli.errors import ElboError
    from elbocli.files.reading import read_yaml

    try:
        content = read_yaml(path)
        if content.get("format") == "elbo-run":
            from elbocli.files.checkpoint import checked_config

            run = checked_config(content, path)
            for key in TYPED:
                if content["settings"].get(key):  # as an earlier version kept it
                    raise _not_typed(ctx, path, key)
            return path, run
    except ElboError as error:
        raise click.UsageError(str(error), ctx) from error
    # A file names no other file to read settings from (--config) and none to run (--plugin, which exposes no value).
    known = {
        option.name: option
        for option in ctx.command.params
        if option.expose_value and option.name not in ("config", "quiet", "verbose", "dry_run")
    }
    values: dict[str, Any] = {}
    for written, value in content.items():
        key = written.replace("-", "_")
        if key in TYPED:
            raise _not_typed(ctx, path, key)
        if key not in known:
            raise click.UsageError(f"{path}: unknown setting {key!r}; {nearest(key, known, 100)}", ctx)
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
    return None


def _not_typed(ctx: click.Context, path: Path, key: str) -> click.UsageError:
    return click.UsageError(
        f"{path}: {key} is taken from the command line or $ELBO_TRAIN_{key.upper()} alone, and from no file; "
        f"leave it out there, and give --{key.replace('_', '-')}",
        ctx,
    )


def _type(setting: Setting, kind: str) -> Any:
    """The click type that refuses what the setting refuses."""
    if setting.choices:
        return click.Choice(setting.choices)
    if setting.names:
        return Named(setting.names, *setting.words)
    if setting.metavar == "DURATION":
        return Duration()
    if kind == "int":
        return Count(int(setting.low), int(setting.high))
    return {"float": Number(setting.low, setting.high, above=setting.above), "float | str": Shift()}.get(kind, str)


def _option(name: str, setting: Setting, kind: str, default: Any) -> Callable[[F], F]:
    """An option that is None where it isn't given."""
    word = name.replace("_", "-")
    flags = setting.flags or (f"--{word}/--no-{word}" if kind == "bool" else f"--{word}")
    shown = setting.shown
    if shown is None and default not in (None, "", False):
        shown = "on" if default is True else str(default)
    return option(
        flags,
        name,
        type=None if kind == "bool" else _type(setting, kind),
        default=None,
        multiple=kind.startswith("tuple"),
        metavar=setting.metavar or "|".join(setting.choices) or None,
        help=setting.help + (f"  [default: {shown}]" if shown else ""),
        more=setting.more,
    )


def setting_options(function: F) -> F:
    """An option per setting of training, by its name; None (or empty) where it isn't given."""
    for field in reversed(fields(TrainSettings)):
        _option(field.name, SETTINGS[field.name], KIND[field.name], field.default)(function)
    return function


def setting_groups() -> dict[str, list[str]]:
    """Heading → settings under it, in the order of declaration."""
    groups: dict[str, list[str]] = {}
    for name, setting in SETTINGS.items():
        groups.setdefault(setting.group, []).append(name)
    return groups


GROUPS = setting_groups()
GROUPS[RUN] = ["out", "overwrite", "config", "init", "plugin", *GROUPS[RUN]]
GROUPS[KEPT] += ["log_to", "on_checkpoint"]
GROUPS["Plan, without training"] = ["dry_run"]


@click.command(cls=Joined, groups=GROUPS)
@click.argument("data", type=PATH, required=False, envvar="ELBO_DATA", metavar="[DATA.h5]")
@option(
    "-o",
    "--out",
    type=PATH,
    default="run",
    help="The run, new or to continue.",
    more="It is a folder, whose path is printed at the end.",
)
@option("--overwrite", is_flag=True, help="Begin a run anew whose checkpoints are gone.")
@option(
    "--config",
    type=PATH,
    is_eager=True,
    callback=_read_config,
    help="YAML of these options, or a run's config.yaml.",
)
@option(
    "--init",
    type=PATH,
    help="Begin from the weights of that run or checkpoint.",
    more="The new run takes the network of the other one with its first average, or with the weights of a file in a checkpoint, such as "
    "RUN/checkpoints/step-00001000/model.safetensors. Steps, optimizer and averages begin anew. Objective and other settings are the "
    "other run's unless given; --preset says its training settings, and no network. Classes are matched by name where both "
    "datasets name them, else in order: what is new begins as no class. Images of another size shift the weighting by 2 log(old/new). "
    "Another prediction, other channels, and latents of another space are refused. Once the new run has a checkpoint, the other "
    "is not needed.",
)
@setting_options
@option(
    "--log-to",
    multiple=True,
    metavar="TARGET",
    help="Also log to tensorboard, wandb or a FILE.jsonl; may be repeated.",
    more="FILE.jsonl gets the lines of metrics.jsonl. tensorboard (pip install 'elbocli[tensorboard]') writes events into "
    "RUN/tensorboard. wandb (pip install 'elbocli[wandb]') logs to Weights & Biases, in the project elbo unless "
    "$WANDB_PROJECT names one, and goes on with the same W&B run when the run goes on; $WANDB_MODE=offline keeps it in "
    "RUN/wandb. What goes wrong there is a warning. No file can say it, and each start asks for it anew.",
)
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
    more="It is YAML, with the memory of each device and the operations; under torchrun, for all its processes. With --preset and no DATA.h5, unless the only dataset here fits "
    "it, this is for the data that the preset is made for.",
)
@plugin_option
@common
def train(
    data: Path | None,
    out: Path,
    config: Any,
    init: Path | None,
    log_to: tuple[str, ...],
    on_checkpoint: str,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train a denoiser on DATA.h5, under any weighting of the noise levels.

    Settings come from options, $ELBO_TRAIN_…, --config, RUN where it is a run, and the preset, in this order. The
    dataset is DATA.h5, else $ELBO_DATA, else the run's, else the only one here.
    """
    from elbocli.cli.progress_bar import say
    from elbocli.files.dataset import Dataset
    from elbocli.run import folder, settings
    from elbocli.run.initial import Initial, initial_of
    from elbocli.runtime.processes import joined
    from elbocli.train import log_targets, loop, validate

    options["ema"] = options["ema"] or None
    basis = settings.Basis.of(*config) if config else folder.basis_of(out, data is not None, options["preset"])

    def warn(text: str) -> None:
        say(text, "warning")

    if dry_run:
        return _plan(data, options, basis, initial_of(init, basis, out, warn))
    with joined(options["device"] or (basis.settings.device if basis else "auto")) as world:
        initial: Initial | None = None
        with world.together():
            log_targets.check(log_to, out)
            if world.first:  # which alone reads all of its weights, to compare their digests
                initial = initial_of(init, basis, out, warn)
        initial = world.of_first(initial)
        with world.together():
            dataset = Dataset(data or _found(basis, initial), latents=True)
            resolved = settings.resolve(options, dataset, basis, initial)
            validate.open_held_out(resolved.settings, dataset, resolved.network.num_classes > 0)
        for note in resolved.notes:
            say(note)
        loop.run(dataset, out, resolved, world, command_line(), on_checkpoint, log_to, Command.overwrite)
    if world.first:
        click.echo(os.fsencode(out))  # for a script, which needs the name itself


def _found(basis: Any, initial: Any) -> Path:
    """The dataset where none is named: that of the run, or of the one it begins from, else the only one here; said.

    Raises DataError.
    """
    from elbocli.cli.progress_bar import say
    from elbocli.errors import DataError
    from elbocli.files.dataset import find_dataset

    if basis is None and initial is not None and initial.dataset is not None:
        data = initial.dataset
        say(f"dataset {data}, of {initial.path}")
    elif basis is None:
        data = find_dataset(Path())
        say(f"dataset {data}, the only one here")
    else:
        data = basis.data
        if not data.exists():
            raise DataError(
                f"{data}: no such dataset, and {basis.where} names it; it was moved, or the run was started in another "
                "folder: give the path that it has now, as DATA.h5"
            )
        say(f"dataset {data}, of {basis.where}")
    return data


def _plan(data: Path | None, options: dict[str, Any], basis: Any, initial: Any) -> None:
    """Do --dry-run, in the first process alone, for as many as there are."""
    from elbocli.cli.progress_bar import say
    from elbocli.files.dataset import Dataset
    from elbocli.files.reading import yaml_text
    from elbocli.run import preset_data, settings
    from elbocli.train import plan

    if Command.silent:
        return
    if data is not None or basis is not None or (initial is not None and options["preset"] is None):
        planned: Dataset | preset_data.PresetData = Dataset(data or _found(basis, initial), latents=True)
    else:
        planned, why = preset_data.planned_for(options["preset"], Path())
        say(why)
    resolved = settings.resolve(options, planned, basis, initial)
    for note in resolved.notes:
        say(note)
    click.echo(yaml_text(plan.plan(resolved, len(planned), launched())), nl=False)
