"""Types of options, which refuse nonsense and tell the shell how a word may go on."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import click
import msgspec
from msgspec import Meta

from elbocli.run.setting_type import LARGEST, LARGEST_COUNT, LARGEST_DURATION_S, LARGEST_SEED, Shift, convert_text

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def imported(name: str) -> Any:
    """The thing of that full name; its module is imported now, and not when a command is declared."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


class Value(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A value of an annotated type, such as Annotated[int, msgspec.Meta(ge=1)]. name: what the help calls it."""

    def __init__(self, hint: Any, name: str):
        self.hint, self.name = hint, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert text, or what YAML has. Raises UsageError for a value of another type, or out of bounds."""
        try:
            return convert_text(value, self.hint)
        except msgspec.ValidationError as error:
            self.fail(f"{value!r}: {str(error).replace('`', '').lower()}", param, ctx)


def value(kind: type, **bounds: float) -> Value:
    """Return the option type of an int or a float. bounds: ge, gt and le, as msgspec.Meta takes them."""
    least = {} if "gt" in bounds else {"ge": -LARGEST}
    known: Any = {**least, "le": LARGEST_COUNT if kind is int else LARGEST, **bounds}
    return Value(Annotated[kind, Meta(**known)], "count" if kind is int else "number")


SEED = value(int, ge=0, le=LARGEST_SEED)
LEVEL = value(float, ge=-50, le=50)
SHIFT = Value(Shift, "number|auto")


class Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A stretch of time in seconds: 3h50m, 90s, 1.5h, 2d, MM:SS, HH:MM:SS or D-HH:MM:SS; 0 is none.

    A number that is not text, as YAML has, is seconds already. Text without a unit is refused: schedulers of jobs
    take it for minutes, others for seconds.
    """

    name = "duration"
    UNITS: ClassVar[dict[str, int]] = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    IN_UNITS = re.compile(r"(?:([0-9.]+)d)?(?:([0-9.]+)h)?(?:([0-9.]+)m(?:in)?)?(?:([0-9.]+)s)?")
    IN_COLONS = re.compile(r"(?:(?:([0-9]+)-)?([0-9]+):)?([0-9]+):([0-9][0-9])")

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
    """Text that may begin with one of some names, which the shell completes; else with the name of a file.

    table: the module and the name in it that hold the names, imported when they are asked for. others: more names.
    """

    name = "spec"

    def __init__(self, table: str, *others: str):
        self.table, self.others = table, others

    @property
    def known(self) -> dict[str, str]:
        """Names and their formulas, "" where they have none."""
        table = imported(self.table)
        about = {key: table[key].formula for key in table} if isinstance(table, dict) else dict.fromkeys(table, "")
        return {**about, **dict.fromkeys(self.others, "")}

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names with their formulas."""
        from click.shell_completion import CompletionItem

        known = self.known.items()
        found = [CompletionItem(name, help=formula or None) for name, formula in known if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


class RunPath(click.Path):
    """A path. The shell completes runs and checkpoints in this folder, before other folders."""

    MARKS = ("config.yaml", "meta.json")

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Runs; names that a shell would take apart are left to its own completion of folders."""
        from click.shell_completion import CompletionItem

        if param.name not in ("run", "runs"):
            return super().shell_complete(ctx, param, incomplete)
        from shlex import quote

        folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
        runs = [path for path in folder.glob("*/") if any((path / mark).exists() for mark in self.MARKS)]
        names = [
            str(path) for path in sorted(runs) if str(path).startswith(incomplete) and quote(str(path)) == str(path)
        ]
        return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="dir")]


PATH = RunPath(path_type=Path)
STREAM = Path("-")


class Output(RunPath):
    """The path of a file that the command writes, of one of some kinds as `check_outputs` takes them.

    suffixes: its name ends in one of them; () is any. stdout: whether it may be - instead. streams: whether it may be a pipe
    or a device.
    """

    def __init__(self, *kinds: str, suffixes: tuple[str, ...] = (), stdout: bool = False, streams: bool = False):
        super().__init__(path_type=Path)
        self.kinds, self.suffixes, self.stdout, self.streams = kinds, suffixes, stdout, streams

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if path == STREAM and not self.stdout:
            self.fail("standard output is for other results; name a file", param, ctx)
        if path != STREAM and self.suffixes and path.suffix not in self.suffixes:
            raise click.UsageError(f"{path}: name a file that ends in {', '.join(self.suffixes)}", ctx)
        return path


DATASET = Output("a dataset", suffixes=(".h5",))
FIGURE = Output("a figure", "images", suffixes=(".svg", ".png", ".pdf"))
