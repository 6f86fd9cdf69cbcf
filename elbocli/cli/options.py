"""Options that several commands share, and the types that refuse nonsense."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from elbocli.core.foreign_loss import FACTORS
from elbocli.core.prediction import PREDICTIONS
from elbocli.core.registry import LARGEST, Registry
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting_curves import WEIGHTINGS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
LARGEST_COUNT = 10**12
LARGEST_DURATION_S = 1000 * 86400


class Command(click.Command):
    """Remembers which command runs, for messages, and whether it should be quiet or verbose."""

    path: ClassVar[str] = "elbo"
    quiet: ClassVar[bool] = False
    verbose: ClassVar[bool] = False
    silent: ClassVar[bool] = False
    """Not even errors that another process of the same run says."""

    def invoke(self, ctx: click.Context) -> Any:
        Command.path = ctx.command_path
        Command.quiet, Command.verbose = ctx.params.pop("quiet", False), ctx.params.pop("verbose", False)
        return super().invoke(ctx)


class Joined(Command):
    """A command whose processes torchrun starts: only the first of them speaks."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        Command.silent = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"
        return super().parse_args(ctx, args)


def launched() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


class Number(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A finite number within bounds."""

    name = "number"

    def __init__(self, low: float = -LARGEST, high: float = LARGEST, *, above: bool = False):
        self.low, self.high, self.above = low, high, above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a number", param, ctx)
        if not math.isfinite(number) or number < self.low or number > self.high or (self.above and number == self.low):
            least = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
            self.fail(f"{value} is not {least} and at most {self.high:g}", param, ctx)
        return number


class Shift(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number, or `auto`."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        return "auto" if value == "auto" else Number().convert(value, param, ctx)


class Count(click.IntRange):
    """A whole number, at least `least`."""

    name = "count"

    def __init__(self, least: int = 1, most: int = LARGEST_COUNT):
        super().__init__(least, most)


class Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A stretch of time in seconds: 3h50m, 90s, 1.5h, 2d, MM:SS, HH:MM:SS or D-HH:MM:SS; 0 is none.

    A number that is not text, as YAML has, is seconds already. Text without a unit is refused: schedulers of jobs
    take it for minutes, others for seconds.
    """

    name = "duration"
    UNITS: ClassVar[dict[str, int]] = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    IN_UNITS = re.compile(r"(?:([0-9.]+)d)?(?:([0-9.]+)h)?(?:([0-9.]+)m(?:in)?)?(?:([0-9.]+)s)?")
    IN_COLONS = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d\d)")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, str):
            value = self._seconds("".join(value.lower().split()), value, param, ctx)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"{value!r} is not a duration; {self._expected}", param, ctx)
        if not 0 <= value <= LARGEST_DURATION_S:
            self.fail(f"{value:g} s is not at least 0 and at most {LARGEST_DURATION_S / 86400:g} days", param, ctx)
        return float(value)

    _expected = "expected one like 3h50m, 90s, 1.5h or 1:30:00"

    def _seconds(self, text: str, said: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if text in ("0", "0.0"):
            return 0.0
        if re.fullmatch(r"[0-9.]+", text):
            self.fail(f"{said} of what? {text}s are seconds, {text}m minutes, {text}h hours", param, ctx)
        colons, units = self.IN_COLONS.fullmatch(text), self.IN_UNITS.fullmatch(text)
        if colons:
            days, hours, minutes, seconds = (int(part or 0) for part in colons.groups())
            within = seconds < 60 and (colons[2] is None or minutes < 60) and (colons[1] is None or hours < 24)
            if within:
                return float(days * 86400 + hours * 3600 + minutes * 60 + seconds)
        elif units and any(units.groups()):
            try:
                return sum(float(part or 0) * each for part, each in zip(units.groups(), self.UNITS.values()))
            except ValueError:  # 1.2.3h
                pass
        self.fail(f"{said!r} is not a duration; {self._expected}", param, ctx)


class Named(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Text that may begin with one of these names, which the shell completes; else with the name of a file."""

    name = "text"

    def __init__(self, names: Collection[str]):
        self.names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names with their formulas."""
        from click.shell_completion import CompletionItem

        about = {name: d.formula for name, d in self.names.items()} if isinstance(self.names, Registry) else {}
        found = [CompletionItem(name, help=about.get(name)) for name in self.names if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


class RunPath(click.Path):
    """A path. Where a run is asked for, the shell completes the runs and checkpoints here, before other folders."""

    MARKS = ("config.yaml", "meta.json")

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Runs; names that a shell would take apart are left to its own completion of folders."""
        from click.shell_completion import CompletionItem

        if param.name != "run":
            return super().shell_complete(ctx, param, incomplete)
        folder = Path(incomplete if incomplete.endswith("/") else os.path.dirname(incomplete))
        runs = [path for path in folder.glob("*/") if any((path / mark).exists() for mark in self.MARKS)]
        names = [
            str(path) for path in sorted(runs) if str(path).startswith(incomplete) and quote(str(path)) == str(path)
        ]
        return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="dir")]


PATH = RunPath(path_type=Path)
COMPLETE = "_ELBO_COMPLETE"
"""The variable by which a shell asks how a command line may go on."""
STREAM = Path("-")


def names(registry: Registry[Any]) -> str:
    """All names, for help."""
    return ", ".join(registry)


def with_params(registry: Registry[Any]) -> str:
    """All names with their parameters and defaults, for help."""
    return ", ".join(declared.spec(declared.params) for declared in registry.values())


def common(function: F) -> F:
    """-q and -v."""
    click.option("-v", "--verbose", is_flag=True, help="Say more; show where an error came from.")(function)
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")(function)
    return function


def parameters_of(registry: Registry[Any]) -> dict[str, list[str]]:
    """Every parameter of any declaration, with the names that have it."""
    found: dict[str, list[str]] = {}
    for declared in registry.values():
        for key in declared.params:
            found.setdefault(key, []).append(declared.name)
    return found


def parameter_options(registry: Registry[Any]) -> Callable[[F], F]:
    """An option per parameter of anything in the registry: `--weighting sigmoid --bias 2`."""

    def decorate(function: F) -> F:
        for key, owners in reversed(parameters_of(registry).items()):
            option = f"--{key.replace('_', '-')}"
            click.option(option, key, type=Number(), help=f"Parameter of {registry.kind} {', '.join(owners)}.")(
                function
            )
        return function

    return decorate


def take_parameters(registry: Registry[Any], options: dict[str, Any]) -> dict[str, float]:
    """Remove the registry's parameters from the options; those that were given."""
    values = {key: options.pop(key) for key in parameters_of(registry)}
    return {key: value for key, value in values.items() if value is not None}


def weighting_help(lead: str) -> str:
    """Help for an option that takes a weighting."""
    return (
        f"{lead} Names: {with_params(WEIGHTINGS)}. Or a loss, TARGET-mse[:FACTOR]@SCHEDULE, TARGET one of "
        f"{names(PREDICTIONS)}, FACTOR one of {with_params(FACTORS)} or a weighting: v-mse@cosine, "
        "x-mse:min-snr:5@linear-beta. Or schedule:SCHEDULE, its density; or the path of a diffusers "
        "scheduler_config.json."
    )


def weighting_options(default: str) -> Callable[[F], F]:
    """--weighting, its parameters, --shift and --monotone. default: said in the help."""

    def decorate(function: F) -> F:
        click.option(
            "--monotone/--no-monotone",
            default=None,
            help="Hold the weighting constant left of its peak, so that it never increases.",
        )(function)
        click.option(
            "--shift", type=Shift(), help="Shift the weighting in logsnr; auto is 2 log(64/d) for images of d pixels."
        )(function)
        parameter_options(WEIGHTINGS)(function)
        lead = f"w(logsnr), as NAME or NAME:key=value,… [{default}]."
        click.option("--weighting", type=Named(WEIGHTINGS), metavar="SPEC", help=weighting_help(lead))(function)
        return function

    return decorate


def schedule_help(lead: str) -> str:
    """Help for an option that takes a schedule."""
    return f"{lead} Names: {with_params(SCHEDULES)} (each also takes shift=; size= is that of a dataset's or run's images unless given); or a FILE: a schedule of 'elbo adapt', or a diffusers scheduler_config.json."


def overwrite_option(function: F) -> F:
    """--overwrite."""
    return click.option("--overwrite", is_flag=True, help="Replace an existing output.")(function)


def weights_options(default: str | None, note: str) -> Callable[[F], F]:
    """--weights and --ema: which weights of a run. default: of --weights; note: what else its help says."""

    def decorate(function: F) -> F:
        click.option(
            "--ema",
            "average",
            metavar="NAME|FILE",
            callback=_average,
            help="An average other than the run's first: one in the checkpoint, as it was given to 'elbo train --ema' "
            "or as its file is called, or a file made by 'elbo ema'.",
        )(function)
        click.option(
            "--weights",
            type=click.Choice(["ema", "model"]),
            default=default,
            show_default=default is not None,
            is_eager=True,
            help=f"The run's first average, or the last weights.{note}",
        )(function)
        return function

    return decorate


def _average(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    if value is not None and ctx.params.get("weights") == "model":
        raise click.UsageError("--weights model is no average; leave it out, or --ema", ctx)
    return value or ""


def device_options(function: F) -> F:
    """--device and --precision."""
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default=None,
        help="Of the network, by autocast.  [default: fp32]",
    )(function)
    click.option(
        "--device", metavar="NAME", default=None, help="cpu, cuda, cuda:1, …  [default: cuda if there is one]"
    )(function)
    return function


def command_line() -> str:
    """The command as typed, for provenance."""
    import shlex

    return shlex.join(["elbo", *sys.argv[1:]])


def stdin_or_fail(what: str) -> Any:
    """Standard input as a binary stream. A terminal there is a mistake."""
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError(f"name {what}, or pipe one in", click.get_current_context())
    return sys.stdin.buffer
