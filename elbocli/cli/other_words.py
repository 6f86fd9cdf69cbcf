"""Words by which other tools call elbo's options and commands, so that a message can name the right one."""

from __future__ import annotations

from typing import Any

import click

MEANT = {
    "--steps, which counts updates: epochs times images over --batch": "--epochs --num-epochs --max-epochs",
    "--steps": "--iterations --iters --max-steps --num-steps --total-steps --max-train-steps --num-inference-steps "
    "--sampling-steps --nfe",
    "--lr": "--learning-rate --learn-rate",
    "--batch": "--batch-size --bs --train-batch-size",
    "--micro-batch": "--grad-accum --gradient-accumulation-steps --accumulate --batch-gpu",
    "--n | --limit": "--num-samples --n-samples --num-images --count",
    "--out | OUT.h5": "--output --output-dir --outdir --out-dir --save-dir --logdir",
    "--out, the run to go on with": "--resume-from-checkpoint --resume",
    "--guidance": "--cfg --cfg-scale --guidance-scale --w",
    "--device, as in --device cuda:0": "--gpu --gpus --cuda",
    "--precision": "--fp16 --bf16 --amp --mixed-precision --dtype",
    "--size": "--resolution --image-size --img-size --res",
    "--classes": "--class --class-labels --labels --label --cond",
    "--ref": "--reference --real --ref-path",
    "--metrics": "--fid --isc --kid --prc --metric",
    "--ema": "--ema-decay --ema-rate --use-ema",
    "--weighting": "--loss --loss-type --loss-weighting --weighting-scheme",
    "--weighting, as in --weighting min-snr:5": "--snr-gamma --min-snr-gamma",
    "--schedule": "--noise-schedule --beta-schedule",
    "--sampler | --schedule": "--scheduler",
    "--prediction": "--prediction-type --parameterization --objective",
    "--clip": "--max-grad-norm --grad-clip --clip-grad",
    "--flip | --mirror": "--hflip --xflip --random-flip",
    "--save-every": "--snap --save-steps --checkpointing-steps --save-interval",
    "DATA.h5 | SRC": "--data --dataset --data-dir --data-path --train-data-dir",
    "RUN": "--model --model-path --checkpoint --ckpt --network --run",
    "--workers": "--num-workers --threads -j",
    "--overwrite": "--force -f -y",
}
OPTIONS = {word: ours.split(" | ") for ours, words in MEANT.items() for word in words.split()}
"""Option of another tool → what it is here; a command has one of them or none. What has no dash is an argument."""
COMMANDS = {
    word: ours
    for ours, words in {
        "sample": "generate draw inference sampling",
        "eval": "evaluate score fid metrics",
        "prep": "pack convert preprocess prepare dataset dataset-tool",
        "bound": "nll likelihood bpd",
        "adapt": "fit schedule",
        "ema": "average post-hoc phema",
        "info": "describe inspect",
        "train": "training fine-tune",
        "train -o RUN": "resume",
        "weights plot": "plot",
        "weights list": "list",
        "weights check": "check",
        "weights show": "show",
        "--version": "version",
        "--help": "help",
    }.items()
    for word in words.split()
}
"""Command of another tool → the end of a command line of elbo's."""


def renamed_option(error: click.NoSuchOption, ctx: click.Context) -> click.UsageError:
    """Return the error with elbo's own word for another tool's option, where the command has it."""
    own = {name for param in ctx.command.params for name in param.opts}
    own |= {param.human_readable_name.strip("[].") for param in ctx.command.params if isinstance(param, click.Argument)}
    for ours in OPTIONS.get(error.option_name.replace("_", "-"), ()):
        if ours.partition(",")[0] in own:
            where = (
                "" if ours.startswith("-") else f", without an option: {ctx.command.get_usage(ctx)[len('Usage: ') :]}"
            )
            return click.UsageError(f"No such option {error.option_name!r}; here it is {ours}{where}", ctx)
    return error


class NoCommand(click.UsageError):
    """A group without a command; its message is the group's help."""


class Group(click.Group):
    """A group of commands that knows words of others for its own."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command as click does, and name the one that was meant where there is none."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            from elbocli.core.registry import nearest

            ours = COMMANDS.get(name)
            meant = f"'elbo {ours}' does that" if ours else nearest(name, self.list_commands(ctx))
            raise click.UsageError(f"No such command {name!r}; {meant}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, and say where options stand when one stands before the command. Raises NoCommand."""
        if not args and not ctx.resilient_parsing:
            raise NoCommand(ctx.get_help(), ctx)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            said = f"No such option {error.option_name!r} before a command; options stand after it: "
            raise click.UsageError(f"{said}{ctx.command_path} COMMAND {error.option_name}", ctx) from error


def nearest_setting(word: str, known: Any) -> str:
    """Return the end of a message on an unknown setting of a file: elbo's word for it, or the nearest."""
    for ours in OPTIONS.get(f"--{word.replace('_', '-')}", ()):
        if (name := ours.partition(",")[0].lstrip("-").replace("-", "_")) in known:
            return f"here it is {name}"
    from elbocli.core.registry import nearest

    return nearest(word, sorted(known), most=100)
