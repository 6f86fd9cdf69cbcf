"""Messages, types of options, grouped help and shared options of all commands."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from textwrap import dedent, indent
from typing import IO, TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import click

from elbocli.errors import UsageError
from elbocli.runtime.table import aligned
from elbocli.runtime.text import visible

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from elbocli.runtime.table import Table

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
LAUNCHERS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # of torchrun, srun, mpirun
COMPLETE = "_ELBO_COMPLETE"  # environment variable by which a shell requests completions
NAMES_WIDTH = 26
Function = TypeVar("Function", bound=Callable[..., object] | click.Command)  # that a decorator adds options to
SWITCH = re.compile(r"--(\S+) / --(no-|un)\1")
ADDED: dict[str, click.Command] = {}  # by plug-ins


# Types of options, which check values and complete words in the shell


class Value(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Click type that checks and converts text by a type annotation.

    hint: annotation. name: name of the type in the help.
    bounds: bounds of a number: `ge`, `gt` or `le` → value; None: as annotated. zero: word for 0, such as 'none'.
    """

    def __init__(self, hint: Any, name: str, bounds: Any = None, zero: str | None = None):
        self.hint = hint
        self.name = name
        self.bounds = bounds
        self.zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from msgspec import Meta  # both imports are here because they would slow down --help by 10 ms

        from elbocli.files.settings import convert_text

        if value == self.zero:
            return 0
        try:
            return convert_text(value, Annotated[self.hint, Meta(**self.bounds)] if self.bounds else self.hint)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


def value(kind: type, le: float = 10**12, **bounds: float) -> Value:
    """Return a click type for int or float. bounds: lower bound, `ge` (≥) or `gt` (>)."""
    return Value(kind, "count" if kind is int else "number", {"le": le, **bounds})


COUNT = value(int, ge=1)
LEVEL = value(float, ge=-50, le=50)


class NameOrFile(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Click type of a name, or of the path of a file to read. known: the names, as far as the type knows them."""

    name = "name"
    known: Collection[str] = ()


class Named(NameOrFile):
    """Click type of a SPEC, NAME:key=value,…, or of a path.

    table: registry of the names, as text "module.REGISTRY". others: further names.
    """

    name = "spec"

    def __init__(self, table: str, *others: str):
        self.table = table
        self.others = others

    @property
    def known(self) -> list[str]:  # type: ignore[override]
        return [*resolve_name(self.table), *self.others]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name) for name in self.known if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]


PATH = click.Path(path_type=Path)
STREAM = Path("-")


class Output(click.Path):  # type: ignore[type-arg, unused-ignore]
    """Click type of the path of an output file.

    kinds: existing files that the output may replace, such as "a dataset".
    suffixes: allowed suffixes; () for any. stdout: whether - is allowed. streams: whether pipes and devices are allowed.
    """

    def __init__(self, *kinds: str, suffixes: tuple[str, ...] = (), stdout: bool = False, streams: bool = False):
        super().__init__(path_type=Path)
        self.kinds = kinds
        self.suffixes = suffixes
        self.stdout = stdout
        self.streams = streams

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path == STREAM and not self.stdout:
            self.fail("- is standard output, which other results use; name a file", param, ctx)
        if path != STREAM and self.suffixes and path.suffix not in self.suffixes:
            raise click.UsageError(f"{path}: name a file that ends in {', '.join(self.suffixes)}", ctx)
        return path


DATASET = Output("a dataset", suffixes=(".h5",))
FIGURE = Output("a figure", "images", suffixes=(".svg", ".png", ".pdf"))


# Commands and their options


class Option(click.Option):
    """Click option that shows its default. more: text for the man page. group: heading in the help; "": that of other options."""

    def __init__(self, *args: Any, more: str = "", group: str = "", **kwargs: Any):
        shown = kwargs.get("default") not in (None, "") and not kwargs.get("is_flag")
        super().__init__(*args, **{"show_default": shown, **kwargs})
        self.more = more
        self.group = group


def option(*names: str, **attributes: Any) -> Callable[[Function], Function]:
    """Add an option to a command, as click.option does. more, group: as in Option."""
    return click.option(*names, cls=Option, **attributes)


def examples() -> dict[str, list[tuple[str, str]]]:
    """Return examples: full name of a command → pairs (sentence, lines of shell)."""
    by_command = {}
    for section in Path(__file__).with_name("examples.txt").read_text("utf-8").split("\n# "):
        name, _, rest = section.removeprefix("# ").partition("\n")
        parts = (block.partition("\n") for block in rest.strip().split("\n\n"))
        by_command[name] = [(text, dedent(code.rstrip("\n"))) for text, _, code in parts]
    return by_command


def write_examples(self: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write a command's first two examples into its help."""
    for text, code in examples().get(ctx.command_path, [])[:2]:
        formatter.write(f"\n{text}\n{indent(code, '  ')}\n")


class Command(click.Command):
    """Click command with grouped help; checks output files before it runs.

    path: full name of the running command. overwrite, quiet, verbose: its options. silent: this rank prints no messages.
    """

    path: ClassVar[str] = "elbo"
    overwrite: ClassVar[bool] = False
    quiet: ClassVar[bool] = False
    verbose: ClassVar[bool] = False
    silent: ClassVar[bool] = False  # on ranks other than 0, because rank 0 prints the same messages

    def sections(self, ctx: click.Context) -> dict[str, list[click.Option]]:
        """Return the help's sections: heading → options."""
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
        sections: dict[str, list[click.Option]] = {}
        for option in options:
            sections.setdefault(getattr(option, "group", ""), []).append(option)
        others = sections.pop("", [])
        return {**sections, "Other options" if sections else "Options": others}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, options in self.sections(ctx).items():
            records = filter(None, (option.get_help_record(ctx) for option in options))
            with formatter.section(heading):
                formatter.write_dl([(SWITCH.sub(r"--[\2]\1", names), text) for names, text in records], col_max=NAMES_WIDTH)

    format_epilog = write_examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        Command.silent = launched() > 1 and os.environ.get("RANK", "0") != "0"
        try:
            return super().parse_args(ctx, [*args])
        except click.NoSuchOption as error:
            name = error.option_name
            for line in Path(__file__).with_name("other_names.txt").read_text().splitlines():
                word, _, rest = line.partition(" ")
                if word == f"{name.replace('_', '-')}:":
                    raise click.UsageError(f"no option {name}; {rest}", ctx) from error
            raise

    def invoke(self, ctx: click.Context) -> object:
        Command.path = ctx.command_path
        for name in ("overwrite", "quiet", "verbose"):
            setattr(Command, name, ctx.params.pop(name, False))
        outputs = self._checked_outputs(ctx.params)
        import logging  # both imports are here because they would slow down --help

        from elbocli.commands.shared.progress_bar import shown_on_stderr

        level = logging.WARNING if Command.quiet else logging.DEBUG if Command.verbose else logging.INFO
        with shown_on_stderr(ctx.command_path, logging.CRITICAL if Command.silent else level):
            if not outputs:
                return super().invoke(ctx)
            from elbocli.files.atomic import named_together

            with named_together(outputs, Command.overwrite):
                return super().invoke(ctx)

    def _checked_outputs(self, params: Mapping[str, Any]) -> list[Path]:
        types = {param.name: param.type for param in self.params if isinstance(param.type, Output)}
        outputs = [(params[name], type) for name, type in types.items() if params[name] not in (None, STREAM)]
        if not outputs:
            return []
        from elbocli.files.atomic import streams
        from elbocli.files.outputs import check_outputs

        piped = [path for path, type in outputs if type.streams and path.suffix in ("", ".npy") and streams(path)]
        files = [(path, type.kinds) for path, type in outputs if path not in piped]
        check_outputs(files, self._inputs(params), Command.overwrite)
        return [path for path, _ in files]

    def _inputs(self, params: Mapping[str, Any]) -> list[Path]:
        # The files and folders that the command reads.
        inputs = list[Path]()
        for param in self.params:
            kind = param.type
            value = params.get(param.name or "")
            paths = [
                Path(word) for word in (value if isinstance(value, tuple) else [value]) if isinstance(word, str | Path) and word
            ]
            if isinstance(kind, click.Path) and not isinstance(kind, Output):
                inputs += [path for path in paths if path.exists()]
            elif isinstance(kind, NameOrFile):
                with suppress(OSError):  # a long name can't be a file's
                    inputs += [path for path in paths if path.is_file() and str(path).partition(":")[0] not in kind.known]
        return inputs


def launched() -> int:
    """Return WORLD_SIZE, the number of processes; 1 if unset.

    Raises UsageError if WORLD_SIZE is no number, or if srun or mpirun started several processes without it.
    """
    name = next((name for name in LAUNCHERS if name in os.environ), "WORLD_SIZE")
    count = os.environ.get(name, "1")
    if not count.isdecimal() or (name != "WORLD_SIZE" and count != "1"):
        raise UsageError(f"{name} is {count!r}; WORLD_SIZE must be the number of processes; start elbo with torchrun")
    return int(count)


def add_command(name: str, **how: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator that makes a plug-in's function the command `elbo NAME`.

    The function's docstring is the help; click.option adds options.
    how: further arguments of click.command.
    Raises UsageError if a plug-in has already added a command called `name`.
    """

    def add(function: Callable[..., Any]) -> click.Command:
        if name in ADDED:
            raise UsageError(f"the command {name!r} exists already; choose another name")
        ADDED[name] = click.command(name, cls=Command, **how)(common(function))
        return ADDED[name]

    return add


class Group(click.Group):
    """Click group with examples in its help."""

    format_epilog = write_examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)


# Options that several commands share


WEIGHTING = Named("elbocli.core.weighting_curves.WEIGHTINGS")
SCHEDULE = Named("elbocli.core.schedule_curves.SCHEDULES")


def common(function: Function) -> Function:
    """Add options -q and -v."""
    option("-v", "--verbose", is_flag=True, help="Say more; show where an error came from.")(function)
    option("-q", "--quiet", is_flag=True, help="Show only warnings and errors.")(function)
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
    help="Run this plug-in; may be repeated.",
    more="A plug-in may declare weightings, schedules, samplers, networks, metrics, extractors, image sources and commands.",
)


overwrite_option = option("--overwrite", is_flag=True, help="Replace an existing output.")


table_option = option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")

json_option = option("--json", "as_json", is_flag=True, help="JSON on a terminal, too.")


def out_option(*kinds: str) -> Callable[[Function], Function]:
    """Return a decorator that adds option -o. kinds: existing files that the output may replace, such as "a page"."""
    return option("-o", "--out", type=Output(*kinds, stdout=True), default="-", help="The file to write; - is standard output.")


def command_line() -> str:
    """Return the command line as typed."""
    import shlex

    return shlex.join(["elbo", *sys.argv[1:]])


def stdin_or_fail(what: str) -> IO[bytes]:
    """Return standard input; raise click.UsageError if it is a terminal. what: the input, for messages."""
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError(f"no input; name {what}, or pipe a file to standard input")
    return sys.stdin.buffer


def print_result(content: object, as_json: bool, *tables: Table) -> None:
    """Print a result: tables on a terminal, JSON elsewhere or if `as_json`."""
    if as_json or not sys.stdout.isatty():
        return print_json(content)
    from shutil import get_terminal_size

    click.echo("\n".join(table.text(get_terminal_size().columns) for table in tables), nl=False)


def print_rows(rows: Sequence[Mapping[str, object]], as_json: bool) -> None:
    """Print rows of equal keys as a table with headings, or as one JSON list."""
    if as_json:
        return print_json(rows)
    cells = [[key.upper().replace("_", " ") for key in rows[0]], *([*map(_cell, row.values())] for row in rows)]
    click.echo("\n".join(aligned(cells)))


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{key}={each if isinstance(each, str) else f'{each:g}'}" for key, each in value.items()]
    if isinstance(value, list):
        value = ", ".join(value)
    return visible(f"{value:,}" if isinstance(value, int) else value or "-")


def print_json(value: object) -> None:
    """Print a result as indented JSON. Raises ValueError for NaN."""
    import json  # imported here to save a millisecond for --help

    click.echo(json.dumps(value, indent=1, allow_nan=False))


def write_output(text: str, out: Path, report: Mapping[str, object] | None = None) -> None:
    """Write a text to `out`; - is standard output.

    report: JSON object to print on standard output; if `out` is -, only the report is printed.
    Raises DataError if the file can't be written.
    """
    from elbocli.files.atomic import write_text

    if report is not None:
        print_json(report)
    elif out == STREAM:
        click.echo(text.encode(errors="backslashreplace"), nl=False)  # UTF-8 in any locale
    if out != STREAM:
        write_text(out, text)
