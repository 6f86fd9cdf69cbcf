"""Commands whose help is grouped, options that have more to say on their page than in it, and messages on standard error.

Nothing that a file or a name says can move a terminal's cursor or colour it.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import click

from elbocli.cli.types import STREAM, Output
from elbocli.errors import UsageError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
COMPLETE = "_ELBO_COMPLETE"
"""The variable by which a shell asks how a command line may go on."""
NAMES_WIDTH = 26
SWITCH = re.compile(r"--(\S+) / --(no-|un)\1")
ADDED: dict[str, click.Command] = {}
"""Commands of plug-ins, by name."""


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def visible(text: str) -> str:
    """Show a message or a name on one line. Lines that a message goes on with, which are indented, stay."""
    return "\n  ".join(map(_escaped, text.split("\n  ")))


def visible_lines(text: str) -> str:
    """Show a whole text, whose lines stay."""
    return "\n".join(map(_escaped, text.split("\n")))


def tell(text: str) -> None:
    """Print a message on standard error, if it can be written."""
    with suppress(OSError):
        click.echo(visible(text), err=True)


class Option(click.Option):
    """An option, whose help shows its default where it has one. more: what its page says besides its help."""

    def __init__(self, *args: Any, more: str = "", **kwargs: Any):
        shown = kwargs.get("default") not in (None, "") and not kwargs.get("is_flag")
        super().__init__(*args, **{"show_default": shown, **kwargs})
        self.more = more


def option(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """Decorator that adds an Option to a command, as click.option adds its own."""
    return click.option(*names, cls=Option, **attributes)


class Command(click.Command):
    """Remembers which command runs, for messages, and the options that all commands share; checks the files to write.

    groups: heading → the Python names of the options under it.
    """

    path: ClassVar[str] = "elbo"
    overwrite: ClassVar[bool] = False
    quiet: ClassVar[bool] = False
    verbose: ClassVar[bool] = False
    silent: ClassVar[bool] = False
    """Not even errors that another process of the same run says."""

    def __init__(self, *args: Any, groups: Mapping[str, Collection[str]] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.groups = groups or {}

    def sections(self, ctx: click.Context) -> dict[str, list[click.Option]]:
        """Headings, in order, and the options under each. Those in no group come last."""
        left = {option.name: option for option in self.get_params(ctx) if isinstance(option, click.Option)}
        found = {heading: [left.pop(name) for name in names] for heading, names in self.groups.items()}
        return {**found, "Other options" if found else "Options": list(left.values())}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each section's options, switches as --[no-]name."""
        for heading, options in self.sections(ctx).items():
            records = filter(None, (option.get_help_record(ctx) for option in options))
            with formatter.section(heading):
                formatter.write_dl(
                    [(SWITCH.sub(r"--[\2]\1", names), text) for names, text in records], col_max=NAMES_WIDTH
                )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        Command.silent = launched() > 1 and os.environ.get("RANK", "0") != "0"
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        Command.path = ctx.command_path
        Command.quiet, Command.verbose = ctx.params.pop("quiet", False), ctx.params.pop("verbose", False)
        Command.overwrite = ctx.params.pop("overwrite", False)
        self._check_outputs(ctx.params)
        from elbocli.cli.progress_bar import shown_on_stderr

        with shown_on_stderr():
            return super().invoke(ctx)

    def _check_outputs(self, params: Mapping[str, Any]) -> None:
        """Check what the command is to write against what lies there, and against all that it was given to read."""
        types = {param.name: param.type for param in self.params if isinstance(param.type, Output)}
        outputs = [(params[name], type) for name, type in types.items() if params[name] not in (None, STREAM)]
        if outputs:
            from elbocli.files.atomic import streams
            from elbocli.files.recognise import check_outputs

            given = [value for name, value in params.items() if name not in types]
            words = [word for value in given for word in (value if isinstance(value, tuple) else [value])]
            # A word, such as --schedule's, may be a file.
            inputs = [Path(word) for word in words if word and isinstance(word, str | Path) and Path(word).exists()]
            piped = [path for path, type in outputs if type.streams and path.suffix in ("", ".npy") and streams(path)]
            files = [(path, type.kinds) for path, type in outputs if path not in piped]
            check_outputs(files, inputs, Command.overwrite)


def launched() -> int:
    """Return how many processes torchrun, or another launcher that sets WORLD_SIZE, has started for this run."""
    count = os.environ.get("WORLD_SIZE", "1")
    if not count.isdecimal():
        raise UsageError(f"WORLD_SIZE is {count!r}; expected a number of processes")
    return int(count)


def add_command(name: str, **how: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Decorator of a plug-in that makes a function a command of elbo: its docstring is the help, click.option adds options.

    how: as click.command takes it. Raises UsageError when a plug-in has added one of that name.
    """

    def add(function: Callable[..., Any]) -> click.Command:
        from elbocli.cli.options import common

        if name in ADDED:
            raise UsageError(f"a command is called {name!r} already; choose another name")
        ADDED[name] = click.command(name, cls=Command, **how)(common(function))
        return ADDED[name]

    return add


class Group(click.Group):
    """A group of commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does. No arguments are wrong usage, which help answers on standard error."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)
