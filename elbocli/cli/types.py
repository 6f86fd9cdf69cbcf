"""Types of options, which refuse nonsense and tell the shell how a word may go on."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Value(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A value of an annotated type, such as Annotated[int, msgspec.Meta(ge=1)].

    name: what the help calls it. bounds: of a plain int or float, as msgspec.Meta takes them.
    """

    def __init__(self, hint: Any, name: str, bounds: Any = None):
        self.hint, self.name, self.bounds = hint, name, bounds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert text, or what YAML has. Raises UsageError for a value of another type, or out of bounds."""
        from msgspec import Meta  # 10 ms with the settings, which help does without

        from elbocli.run.train_settings import convert_text

        try:
            return convert_text(value, Annotated[self.hint, Meta(**self.bounds)] if self.bounds else self.hint)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


def value(kind: type, le: float = 10**12, **bounds: float) -> Value:
    """Return a click type for an int or a float within bounds, which msgspec.Meta calls ge, gt and le."""
    return Value(kind, "count" if kind is int else "number", {"le": le, **bounds})


SEED = value(int, ge=0, le=2**63 - 1)
LEVEL = value(float, ge=-50, le=50)


class Named(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Text that may begin with one of some names, which the shell completes; else with the name of a file.

    table: the module and the name in it that hold the names, imported when they are asked for. others: more names.
    """

    name = "spec"

    def __init__(self, table: str, *others: str):
        self.table, self.others = table, others

    @property
    def known(self) -> list[str]:
        """All names."""
        return [*resolve_name(self.table), *self.others]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names, else files."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name) for name in self.known if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


PATH = click.Path(path_type=Path)
STREAM = Path("-")


class Output(click.Path):  # type: ignore[type-arg, unused-ignore]
    """The path of a file that the command writes, of one of some kinds as `check_outputs` takes them.

    suffixes: its name ends in one of them; () is any. stdout: whether it may be - instead. streams: whether it may be a pipe
    or a device.
    """

    def __init__(self, *kinds: str, suffixes: tuple[str, ...] = (), stdout: bool = False, streams: bool = False):
        super().__init__(path_type=Path)
        self.kinds, self.suffixes, self.stdout, self.streams = kinds, suffixes, stdout, streams

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert text to a Path. Raises UsageError for a name that is none of such a file."""
        path = Path(value)
        if path == STREAM and not self.stdout:
            self.fail("standard output is for other results; name a file", param, ctx)
        if path != STREAM and self.suffixes and path.suffix not in self.suffixes:
            raise click.UsageError(f"{path}: name a file that ends in {', '.join(self.suffixes)}", ctx)
        return path


DATASET = Output("a dataset", suffixes=(".h5",))
FIGURE = Output("a figure", "images", suffixes=(".svg", ".png", ".pdf"))
