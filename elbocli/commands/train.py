"""Command line of `elbo train`."""

from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import PATH, Command, command_line, common, launched, option, plugin_option
from elbocli.commands.shared.setting_options import setting_options
from elbocli.runs.train_settings import KEPT, RUN, VALIDATION, TrainSettings
from elbocli.scoring.extractors import TINY


@click.command(cls=Command)
@click.argument("data", type=PATH, required=False, envvar="ELBO_DATA", metavar="[DATA.h5]")
@option(
    "-o",
    "--out",
    type=PATH,
    default="run",
    help="The run, new or to continue.",
    more="It is a folder, whose path is printed at the end.",
    group=RUN,
)
@option(
    "--dry-run",
    is_flag=True,
    help="Print the plan, with memory and time.",
    more="The plan is YAML, with the memory of each device, the operations, and the time by a few steps on this device; under "
    "torchrun, the memory of all its processes and no time. With "
    "--preset and no DATA.h5, the plan is for the data that the preset is made for, if the preset names some.",
    group=RUN,
)
@option(
    "--config",
    type=PATH,
    help="YAML of these options, or a run's config.yaml.",
    group=RUN,
)
@option(
    "--init",
    type=PATH,
    help="Begin from the weights of that run or checkpoint.",
    more="The new run takes the other run's network with its first average, or with the weights of a file in a checkpoint, "
    "such as RUN/checkpoints/step-00001000/model.safetensors. Steps, optimizer and averages begin anew. Objective and other "
    "settings are the other run's unless given; --preset then sets the training settings but not the network. Classes are "
    "matched by name where both datasets name them, else in order; a new class begins as no class. Images of another size shift "
    "the weighting by 2 log(old/new). Another prediction, other channels, and latents of another space are refused. The new run "
    "no longer needs the other one after its first checkpoint.",
    group=RUN,
)
@option(
    "--set",
    "words",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set network.KEY or training.KEY; may be repeated.",
    more="KEY is any key of a preset's section network or train; docs/presets.md lists those of the network: network.channels=32, "
    "network.dropout=.1, training.beta2=.99. VALUE is YAML.",
    group=RUN,
)
@setting_options(TrainSettings)
@option(
    "--log-to",
    multiple=True,
    metavar="TARGET",
    help="Also log to tensorboard or wandb.",
    more="May be repeated. tensorboard (pip install 'elbocli[tensorboard]') writes events into "
    "RUN/tensorboard. wandb (pip install 'elbocli[wandb]') logs to Weights & Biases, in the project elbo unless "
    "$WANDB_PROJECT names one, and goes on with the same W&B run when the run goes on; $WANDB_MODE=offline keeps it in "
    "RUN/wandb. Errors of these loggers are warnings. Neither a preset nor --config can set this option: give it at each start.",
    group=KEPT,
)
@option(
    "--eval-extractor",
    metavar="NAME",
    default=TINY,
    help="Extractor of 'elbo eval'.",
    more="A name or FILE.pt2. elbo-tiny needs no download, and serves to compare runs, not to publish. Neither a preset nor --config can set this option, "
    "because a program may run code: give it at each start.",
    group=VALIDATION,
)
@option("--eval-weights", type=PATH, help="File of its weights.", group=VALIDATION)
@plugin_option
@common
def train(
    data: Path | None,
    out: Path,
    config: Path | None,
    init: Path | None,
    words: tuple[str, ...],
    log_to: tuple[str, ...],
    eval_extractor: str,
    eval_weights: Path | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train a denoiser on DATA.h5, under any weighting.

    Precedence of settings: options, $ELBO_TRAIN_…, --config, the run, the preset. Without DATA.h5, the dataset is
    $ELBO_DATA, else the run's, else the only one here.
    """
    from elbocli.files.dataset import Dataset
    from elbocli.files.yaml_text import yaml_text
    from elbocli.runs import folder, settings
    from elbocli.runs.open import dataset_for, initial_of
    from elbocli.runtime.processes import joined
    from elbocli.training import loop, plan
    from elbocli.training.measure import NOT_MEASURED, measured_time
    from elbocli.training.targets import check_targets

    existing, given = settings.read_options(config, {**options, "data": data, "init": init}, words)
    data = given.pop("data", None)
    init = given.pop("init", None)
    preset = given.get("preset")
    existing = existing or folder.config_to_resume(out, data is not None, preset)
    if dry_run:
        if not Command.silent:
            initial = initial_of(init, existing, out)
            planned = settings.preset_data(preset) if preset and data is None and existing is None else None
            dataset = planned or Dataset(data or dataset_for(existing), latents=True)
            resolved = settings.resolve(given, dataset, existing, initial)
            content = plan.plan(resolved, launched())
            content["time"] = (
                measured_time(resolved, dataset, content) if isinstance(dataset, Dataset) else NOT_MEASURED.format("no dataset")
            )
            click.echo(yaml_text(content), nl=False)
        return
    with joined(given.get("device") or (existing.config.settings.device if existing else "auto")) as world:
        with world.together():
            check_targets(log_to)
            initial = initial_of(init, existing, out) if world.first else None  # only rank 0 reads the weights
        initial = world.broadcast(initial)
        with world.together():
            dataset = Dataset(data or dataset_for(existing), latents=True)
            resolved = settings.resolve(given, dataset, existing, initial)
        extractor = eval_extractor, eval_weights
        loop.run(dataset, out, resolved, world, command_line(), log_to, extractor)
    if world.first:
        click.echo(out)
