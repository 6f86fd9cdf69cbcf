"""Report messages (`log`) and counts (`progress`) to the user. Commands display both on stderr.

`log` is Python's logger "elbo". Option -v also displays debug messages; option -q displays only warnings.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("elbo")
_show: Callable[..., None] | None = None


def progress(done: int, total: int | None = None, unit: str = "", then: str = "", **values: Any) -> None:
    """Report that `done` of `total` `unit`s are done. Without a previous call of `show_progress_with`, nothing is displayed.

    total: None if unknown.
    then: slow work before the next report, such as 'drawing a preview'; '' for none.
    values: numbers for the end of the line, such as loss=.1.
    """
    if _show:
        _show(done, total, unit, then, values)


def show_progress_with(show: Callable[..., None]) -> None:
    """Pass every later report to the function `show(done, total, unit, then, values)`."""
    global _show
    _show = show


@contextmanager
def without_progress() -> Iterator[None]:
    """Display no progress inside the block: work within a longer task must not replace the task's own progress."""
    global _show
    before, _show = _show, None
    try:
        yield
    finally:
        _show = before
