"""Standard error: how a message is said, and what becomes of it when nobody is there to read it any more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from elbocli.cli.visible import visible

STDERR = 2


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


def tell(text: str) -> None:
    """Say a message for people on standard error."""
    with heard():
        click.echo(visible(text), err=True)
