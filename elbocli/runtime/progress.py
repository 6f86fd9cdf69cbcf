"""Messages (`log`) and counts (`progress`) for the user, which commands display on stderr."""

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger("elbo")
PAUSED = "paused_s"  # value of `progress`: seconds since the last report that were no progress, which the time left leaves out
_show: Callable[..., None] | None = None


def progress(done: int, total: int | None, unit: str, **values: Any) -> None:
    """Report that `done` of `total` `unit`s are done. Displayed only after a call of `show_progress_with`.

    total: None: unknown. values: numbers to display, such as loss=.1.
    """
    if _show:
        _show(done, total, unit, values)


def show_progress_with(show: Callable[..., None] | None) -> None:
    """Let `progress` display its reports by calling `show(done, total, unit, values)`; None: not at all."""
    global _show
    _show = show
