"""Commands whose help is grouped, and options that have more to say on their page than in it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import click

from elbocli.cli.other_words import renamed_option
from elbocli.cli.types import STREAM, Output
from elbocli.errors import DataError, UsageError
from elbocli.runtime.descriptors import writable

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
COMPLETE = "_ELBO_COMPLETE"
"""The variable by which a shell asks how a command line may go on."""
NAMES_WIDTH = 26
SWITCH = re.compile(r"--(\S+) / --(no-|un)\1")


class Option(click.Option):
    """An option, whose help shows its default where it has one. more: what its page says besides its help."""

    def __init__(self, *args: Any, more: str = "", **kwargs: Any):
        shown = kwargs.get("default") not in (None, "") and not kwargs.get("is_flag")
        super().__init__(*args, **{"show_default": shown, **kwargs})
        self.more = more


option = partial(click.option, cls=Option)
"""Decorator that adds an Option, as click.option does its own."""
STDOUT = 1
CLOSED = "standard output: is closed, or not open for writing, and the result goes there; redirect it: > FILE"


def always(params: Mapping[str, Any]) -> bool:
    """True for every command line."""
    return True


def never(params: Mapping[str, Any]) -> bool:
    """False for every command line."""
    return False


def without_file(params: Mapping[str, Any]) -> bool:
    """True unless -o names a file and nothing else is asked for."""
    return str(params["out"]) in ("-", "None") or bool(params.get("as_json") or params.get("report"))


class Command(click.Command):
    """Remembers which command runs, for messages, and the options that all commands share; checks the files to write.

    groups: heading → the Python names of the options under it. prints: whether its result goes to standard output, by
    its parameters.
    """

    path: ClassVar[str] = "elbo"
    overwrite: ClassVar[bool] = False
    quiet: ClassVar[bool] = False
    verbose: ClassVar[bool] = False
    silent: ClassVar[bool] = False
    """Not even errors that another process of the same run says."""

    def __init__(
        self,
        *args: Any,
        groups: Mapping[str, Collection[str]] | None = None,
        prints: Callable[[Mapping[str, Any]], bool] = always,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.groups, self.prints = groups or {}, prints

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise renamed_option(error, ctx) from error

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

    def invoke(self, ctx: click.Context) -> Any:
        Command.path = ctx.command_path
        Command.quiet, Command.verbose = ctx.params.pop("quiet", False), ctx.params.pop("verbose", False)
        Command.overwrite = ctx.params.pop("overwrite", False)
        if self.prints(ctx.params) and not Command.silent and not writable(STDOUT):
            raise DataError(CLOSED)  # now, and not after the work
        self._check_outputs(ctx.params)
        return super().invoke(ctx)

    def _check_outputs(self, params: Mapping[str, Any]) -> None:
        """Check what the command is to write against what lies there, and against all that it was given to read."""
        types = {param.name: param.type for param in self.params if isinstance(param.type, Output)}
        outputs = [(params[name], type) for name, type in types.items() if params[name] not in (None, STREAM)]
        if outputs:
            from elbocli.files.file_system import streams
            from elbocli.files.outputs import check_outputs

            given = [value for name, value in params.items() if name not in types]
            words = [word for value in given for word in (value if isinstance(value, tuple) else [value])]
            inputs = [Path(word) for word in words if isinstance(word, str | Path) and str(word)]
            checked = [(path, type.kinds) for path, type in outputs if not (type.streams and streams(path))]
            check_outputs(checked, inputs, Command.overwrite)


class Joined(Command):
    """A command that several processes may run together: only the first of them speaks."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        Command.silent = launched() > 1 and os.environ.get("RANK", "0") != "0"
        return super().parse_args(ctx, args)


def launched() -> int:
    """Return how many processes torchrun, or another launcher that sets WORLD_SIZE, has started for this run."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal():
        raise UsageError(f"WORLD_SIZE is {size!r}, which is no number of processes; unset it, or start with torchrun")
    return int(size)
