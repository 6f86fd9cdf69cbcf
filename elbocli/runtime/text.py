"""Print text of any origin, with control characters escaped."""

import sys
from contextlib import suppress

from elbocli.runtime.table import printable


def visible(text: str) -> str:
    """Escape control characters and line breaks, except line breaks before two spaces of indentation."""
    return "\n  ".join(map(printable, text.split("\n  ")))


def visible_lines(text: str) -> str:
    """Escape control characters, except line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def tell(text: str) -> None:
    """Print a message on standard error; ignore write errors."""
    with suppress(OSError, AttributeError):  # AttributeError: stderr is closed, and sys.stderr None
        sys.stderr.write(visible(text) + "\n")
        sys.stderr.flush()
