"""Reports of library code to people: `log` for messages, `progress` for counts. A command shows both on stderr.

`log` is Python's logger "elbo": info, debug (shown with -v) or warning (shown with -q too).
"""

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger("elbo")
_show: Callable[..., None] | None = None


def progress(done: int, total: int | None = None, unit: str = "", then: str = "", **values: Any) -> None:
    """Report that `done` of `total` `unit`s are done. Nothing happens unless a command shows it.

    values: numbers for the end of the line, such as loss=.1. then: work that comes before the next report and may take long,
    in words such as 'drawing a preview'.
    """
    if _show:
        _show(done, total, unit, then, values)


def show_progress_with(show: Callable[..., None]) -> None:
    """Have each report given to `show(done, total, unit, then, values)`, instead of any function named before."""
    global _show
    _show = show
