"""Standard error: what is shown of a message, and what becomes of it when nobody is there to read it any more."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import click

STDERR = 2
OWN_OR_ANY = re.compile(r"\n  |.", re.DOTALL)
"""A line that a message goes on with, which is indented, or any character."""


@contextmanager
def heard() -> Iterator[None]:
    """Speak in the block, and from then on to nobody when the terminal is closed, the reader of a pipe gone or a disk full.

    A command's work matters more than its messages.
    """
    try:
        yield
    except OSError:
        nobody = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nobody, STDERR)
        os.close(nobody)


def visible(text: str) -> str:
    """Return text with everything escaped that moves a terminal's cursor, colours it or looks like nothing.

    Names of files, and what strangers' files say, may hold such things. Lines that a message goes on with stay.
    """

    def shown(found: re.Match[str]) -> str:
        part = found[0]
        return part if part.isprintable() or len(part) > 1 else part.encode("unicode_escape").decode()

    return OWN_OR_ANY.sub(shown, text)


def tell(text: str) -> None:
    """Say a message for people on standard error."""
    with heard():
        click.echo(visible(text), err=True)
