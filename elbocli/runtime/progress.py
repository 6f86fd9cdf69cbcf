"""Messages (`log`) and counts (`progress`) for the user, which commands display on stderr."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("elbo")
_show: Callable[..., None] | None = None


def progress(done: int, total: int | None, unit: str, then: str = "", **values: Any) -> None:
    """Report that `done` of `total` `unit`s are done. Displayed only after a call of `show_progress_with`.

    total: None: unknown. then: slow work before the next report, such as 'drawing a preview'; '': none.
    values: numbers to display, such as loss=.1.
    """
    if _show:
        _show(done, total, unit, then, values)


def show_progress_with(show: Callable[..., None]) -> None:
    """Pass every later report to `show(done, total, unit, then, values)`."""
    global _show
    _show = show


@contextmanager
def without_progress() -> Iterator[None]:
    """Display no progress inside the block."""
    global _show
    before, _show = _show, None
    try:
        yield
    finally:
        _show = before
