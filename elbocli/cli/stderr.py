"""Standard error: how a message is said, and what becomes of it when nobody is there to read it any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from elbocli.cli.visible import visible
from elbocli.runtime.descriptors import let_nobody_have

STDERR = 2


@contextmanager
def heard() -> Iterator[None]:
    """Speak in the block, and from then on to nobody when the terminal is closed, the reader of a pipe gone or a disk full.

    A command's work matters more than its messages.
    """
    try:
        yield
    except OSError:
        let_nobody_have(STDERR)


def tell(text: str) -> None:
    """Say a message for people on standard error."""
    with heard():
        click.echo(visible(text), err=True)
