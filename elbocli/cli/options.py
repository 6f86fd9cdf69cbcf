"""Options that several commands share, and the ways in which commands print results."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from elbocli.cli.commands import option
from elbocli.cli.types import LEVEL, PATH, STREAM, Named, value
from elbocli.core.training import AUTO, PRECISIONS

if TYPE_CHECKING:
    from elbocli.core.sampling import Guidance

WEIGHTING = Named("elbocli.core.weighting_curves.WEIGHTINGS")
SCHEDULE = Named("elbocli.core.schedule_curves.SCHEDULES")


def common(function: Any) -> Any:
    """Add -q and -v."""
    option("-v", "--verbose", is_flag=True, help="Say more; show where an error came from.")(function)
    option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")(function)
    return function


def _run_plugins(ctx: click.Context, param: click.Parameter, files: tuple[Path, ...]) -> None:
    if files:
        from elbocli.files.plugins import run_plugin

        for file in files:
            run_plugin(file)


plugin_option = option(
    "--plugin",
    type=PATH,
    multiple=True,
    is_eager=True,
    expose_value=False,
    envvar="ELBO_PLUGIN",
    callback=_run_plugins,
    metavar="FILE.py",
    help="Run this plug-in, which declares more names; may be repeated.",
    more="It may declare weightings, schedules, samplers, networks, metrics and extractors, as docs/extending.md shows.",
)


overwrite_option = option("--overwrite", is_flag=True, help="Replace an existing output.")


weights_option = option(
    "--weights",
    metavar="ema|model|NAME|FILE",
    default="ema",
    help="The run's first average (ema), its last weights (model), another average, or a file of 'elbo ema'.",
    more="An average in the checkpoint is named as it was given to 'elbo train --ema', or as its file is called.",
)

batch_option = option(
    "--batch",
    type=value(int, ge=1, le=10**6),
    default=64,
    help="Images that a process draws at a time; changes nothing else.",
)

scale_option = option(
    "--scale",
    type=value(int, ge=1, le=64),
    metavar="N",
    help="Enlarge each image of a grid N times; 1 keeps its pixels.  [default: to at most 96 pixels]",
    more="Each pixel becomes a square of N x N equal ones, so that the image can be had back. The default enlarges less, or "
    "not at all, where the grid would become wider than 4096 pixels.",
)

device_option = option(
    "--device",
    metavar="NAME",
    default=AUTO,
    show_default=False,
    help="cpu, cuda, cuda:1, …  [default: $ELBO_DEVICE, else cuda if there is one]",
)


def device_options(function: Any) -> Any:
    """Add --device and --precision."""
    option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        help="Precision of the network: fp32 is strict.",
        more="tf32 multiplies with 10-bit mantissas on CUDA, and is fp32 on a CPU; bf16 and fp16 are by autocast.",
    )(function)
    return device_option(function)


def command_line() -> str:
    """The command as typed, for provenance."""
    import shlex

    return shlex.join(["elbo", *sys.argv[1:]])


def stdin_or_fail(what: str) -> Any:
    """Standard input as a binary stream. A terminal there is a mistake."""
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError(f"name {what}, or pipe one in")
    return sys.stdin.buffer


GUIDANCE = ("guidance", "guidance_interval", "guidance_channels", "guide", "guide_weights")
"""Their Python names, in the order of the help."""


def guidance_options(function: Any) -> Any:
    """Add --guidance, --guidance-interval, --guidance-channels, --guide and --guide-weights."""
    option(
        "--guide-weights",
        "guide_weights",
        metavar="ema|model|NAME|FILE",
        default="",
        help="Like --weights, for --guide; without --guide, other weights of RUN.",
    )(function)
    option(
        "--guide",
        type=PATH,
        metavar="RUN",
        help="Autoguidance: a worse run, or a checkpoint, to guide away from.",
        more="It is of the same images, and of the same classes or none.",
    )(function)
    option(
        "--guidance-channels",
        type=value(int, ge=1, le=10_000),
        metavar="N",
        help="Guide only the first N channels of pixels or latents.  [default: all]",
        more="DiT's own sampling guides 3 of its latents' 4 channels, and its published figures are of that. A learned variance is "
        "never guided: it is the one that the network gives with the class.",
    )(function)
    option("--guidance-interval", type=LEVEL, nargs=2, metavar="LO HI", help="Guide only where LO <= logsnr <= HI.")(
        function
    )
    option(
        "--guidance",
        type=value(float, ge=-1e3, le=1e3),
        default=1.0,
        help="Scale of guidance; 1 is none.",
        more="Guides away from the network without classes (classifier-free) or from --guide; 0 uses only that network.",
    )(function)
    return function


def guidance_of(options: dict[str, Any]) -> Guidance:
    """The guidance that was asked for; takes its scale, interval and channels out of the options. Raises UsageError."""
    from elbocli.core.sampling import Guidance

    low, high = options.pop("guidance_interval") or (-math.inf, math.inf)
    return Guidance(options.pop("guidance"), low, high, options.pop("guidance_channels") or 0)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns that are as wide as their longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())


def print_json(value: Any) -> None:
    """Print a result as indented JSON. Raises ValueError for NaN."""
    import json  # a millisecond, which help does without

    click.echo(json.dumps(value, indent=1, allow_nan=False))


def hand_out(text: str, out: Path, report: dict[str, Any] | None = None) -> None:
    """Write a file's text to `out`, where - is standard output.

    report: an object that standard output gets instead, as JSON; then the text goes to a file alone. Raises DataError.
    """
    from elbocli.files.atomic import write_text

    if report is not None:
        print_json(report)
    elif out == STREAM:
        click.echo(text, nl=False)
    if out != STREAM:
        write_text(out, text)
