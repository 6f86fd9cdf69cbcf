"""Messages for people on standard error. Nothing that a file or a name says can move a terminal's cursor or colour it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import click

OWN_OR_ANY = re.compile(r"\n  |.", re.DOTALL)
"""A line that a message goes on with, which is indented, or any character."""
ODD = re.compile(r"[^\n\x20-\x7e]")
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of what is no letter, sign or space: control characters, those that turn text, half characters."""


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def visible(text: str) -> str:
    """Show a message or a name on one line. Lines that a message goes on with, which are indented, stay."""

    def shown(found: re.Match[str]) -> str:
        part = found[0]
        return part if part.isprintable() or len(part) > 1 else _escaped(part)

    return OWN_OR_ANY.sub(shown, text)


def visible_lines(text: str) -> str:
    """Show a whole text, whose lines and spaces stay."""

    import unicodedata  # a megabyte, which help does without

    def shown(found: re.Match[str]) -> str:
        return _escaped(found[0]) if unicodedata.category(found[0]) in HIDDEN else found[0]

    return ODD.sub(shown, text)


def lettered(name: str) -> str:
    """Show a name on a figure, whose letters between two $ would be mathematics."""
    return visible(name).replace("$", r"\$")


@contextmanager
def on_stderr() -> Iterator[None]:
    """Write to standard error in the block; when its terminal is closed or its disk full, send it to nobody from then on."""
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def tell(text: str) -> None:
    """Print a message on standard error."""
    with on_stderr():
        click.echo(visible(text), err=True)
