"""Reports of library code to the user: `log` for messages, `progress` for counts. Commands display both on stderr.

`log` is Python's logger "elbo": info, debug (displayed with -v) or warning (displayed with -q too).
"""

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger("elbo")
_show: Callable[..., None] | None = None


def progress(done: int, total: int | None = None, unit: str = "", then: str = "", **values: Any) -> None:
    """Report that `done` of `total` `unit`s are done. Nothing is displayed unless a command has called `show_progress_with`.

    total: None if unknown. then: work before the next report, if it may take long, such as 'drawing a preview'; '' for none.
    values: numbers for the end of the line, such as loss=.1.
    """
    if _show:
        _show(done, total, unit, then, values)


def show_progress_with(show: Callable[..., None]) -> None:
    """Pass every report to `show(done, total, unit, then, values)`, which replaces an earlier function."""
    global _show
    _show = show
