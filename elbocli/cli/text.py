"""Print text of any origin, with control characters escaped."""

from contextlib import suppress

import click


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def visible(text: str) -> str:
    """Escape control characters and line breaks, except line breaks before two spaces of indentation."""
    return "\n  ".join(map(_escaped, text.split("\n  ")))


def visible_lines(text: str) -> str:
    """Escape control characters, except line breaks."""
    return "\n".join(map(_escaped, text.split("\n")))


def tell(text: str) -> None:
    """Print a message on standard error; ignore write errors."""
    with suppress(OSError):
        click.echo(visible(text), err=True)
