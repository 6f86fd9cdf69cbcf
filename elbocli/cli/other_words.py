"""Words by which other tools call elbo's options and commands, so that a message can name the right one."""

from __future__ import annotations

from typing import Any

import click

from elbocli.core.registry import nearest

UPDATES = "--steps, which counts updates: epochs times images over --batch"
LIKE_MIN_SNR = "--weighting, as in --weighting min-snr:5"
OPTIONS = {
    "--epochs": (UPDATES,),
    "--num-epochs": (UPDATES,),
    "--max-epochs": (UPDATES,),
    **dict.fromkeys(["--iterations", "--iters", "--max-steps", "--num-steps", "--total-steps"], ("--steps",)),
    **dict.fromkeys(["--max-train-steps", "--num-inference-steps", "--sampling-steps", "--nfe"], ("--steps",)),
    **dict.fromkeys(["--learning-rate", "--learn-rate"], ("--lr",)),
    **dict.fromkeys(["--batch-size", "--bs", "--train-batch-size"], ("--batch",)),
    **dict.fromkeys(
        ["--grad-accum", "--gradient-accumulation-steps", "--accumulate", "--batch-gpu"], ["--micro-batch"]
    ),
    **dict.fromkeys(["--num-samples", "--n-samples", "--num-images", "--count"], ("--n", "--limit")),
    **dict.fromkeys(
        ["--output", "--output-dir", "--outdir", "--out-dir", "--save-dir", "--logdir"], ["--out", "OUT.h5"]
    ),
    **dict.fromkeys(["--cfg", "--cfg-scale", "--guidance-scale", "--scale", "--w"], ("--guidance",)),
    **dict.fromkeys(["--gpu", "--gpus", "--cuda"], ("--device, as in --device cuda:0",)),
    **dict.fromkeys(["--fp16", "--bf16", "--amp", "--mixed-precision", "--dtype"], ("--precision",)),
    **dict.fromkeys(["--resolution", "--image-size", "--img-size", "--res"], ("--size",)),
    **dict.fromkeys(["--class", "--class-labels", "--labels", "--label", "--cond"], ("--classes",)),
    **dict.fromkeys(["--reference", "--real", "--ref-path"], ("--ref",)),
    **dict.fromkeys(["--fid", "--isc", "--kid", "--prc", "--metric"], ("--metrics",)),
    **dict.fromkeys(["--ema-decay", "--ema-rate", "--use-ema"], ("--ema",)),
    **dict.fromkeys(["--loss", "--loss-type", "--loss-weighting", "--weighting-scheme"], ("--weighting",)),
    **dict.fromkeys(["--snr-gamma", "--min-snr-gamma"], (LIKE_MIN_SNR,)),
    **dict.fromkeys(["--noise-schedule", "--beta-schedule"], ("--schedule",)),
    "--scheduler": ("--sampler", "--schedule"),
    **dict.fromkeys(["--prediction-type", "--parameterization", "--objective"], ("--prediction",)),
    **dict.fromkeys(["--max-grad-norm", "--grad-clip", "--clip-grad"], ("--clip",)),
    **dict.fromkeys(["--hflip", "--xflip", "--random-flip"], ("--flip", "--mirror")),
    **dict.fromkeys(["--resume", "--resume-from-checkpoint"], ("--out, the run to go on with",)),
    **dict.fromkeys(["--snap", "--save-steps", "--checkpointing-steps", "--save-interval"], ("--save-every",)),
    **dict.fromkeys(["--data", "--dataset", "--data-dir", "--data-path", "--train-data-dir"], ("DATA.h5", "SRC")),
    **dict.fromkeys(["--model", "--model-path", "--checkpoint", "--ckpt", "--network", "--run"], ("RUN",)),
    **dict.fromkeys(["--num-workers", "--threads", "-j"], ("--workers",)),
    **dict.fromkeys(["--force", "-f", "-y"], ("--overwrite",)),
}
"""Option of another tool → what it is here; a command has one of them or none. What has no dash is an argument."""
COMMANDS = {
    **dict.fromkeys(["generate", "draw", "inference", "sampling"], "sample"),
    **dict.fromkeys(["evaluate", "score", "fid", "metrics"], "eval"),
    **dict.fromkeys(["pack", "convert", "preprocess", "prepare", "dataset", "dataset-tool"], "prep"),
    **dict.fromkeys(["nll", "likelihood", "bpd"], "bound"),
    **dict.fromkeys(["fit", "schedule"], "adapt"),
    **dict.fromkeys(["average", "post-hoc", "phema"], "ema"),
    **dict.fromkeys(["describe", "inspect"], "info"),
    **dict.fromkeys(["training", "fine-tune"], "train"),
    "resume": "train -o RUN",
    "plot": "weights plot",
    "list": "weights list",
    "check": "weights check",
    "show": "weights show",
    "version": "--version",
    "help": "--help",
}
"""Command of another tool → the end of a command line of elbo's."""


def renamed_option(error: click.NoSuchOption, ctx: click.Context) -> click.UsageError:
    """Return the error with elbo's own word for another tool's option, where the command has it."""
    own = {name for param in ctx.command.params for name in param.opts}
    own |= {param.make_metavar(ctx).strip("[].") for param in ctx.command.params if isinstance(param, click.Argument)}
    for ours in OPTIONS.get(error.option_name.replace("_", "-"), ()):
        if ours.partition(",")[0] in own:
            where = (
                "" if ours.startswith("-") else f", without an option: {ctx.command.get_usage(ctx)[len('Usage: ') :]}"
            )
            return click.UsageError(f"No such option {error.option_name!r}; here it is {ours}{where}", ctx)
    return error


class Group(click.Group):
    """A group of commands that knows words of others for its own."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command as click does, and name the one that was meant where there is none."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            ours = COMMANDS.get(name)
            meant = f"'elbo {ours}' does that" if ours else nearest(name, self.list_commands(ctx))
            raise click.UsageError(f"No such command {name!r}; {meant}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, and say where options stand when one stands before the command."""
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
    return nearest(word, sorted(known), most=100)
