"""Messages and counts of library code, as a command would show them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from elbocli.runtime.progress import log, show_progress_with


@contextmanager
def heard(counted: Any = lambda *report: None) -> Iterator[list[str]]:
    """Messages that are logged in the block. counted: is called with each count, as show_progress_with takes it."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    show_progress_with(counted)
    try:
        yield lines
    finally:
        show_progress_with(lambda *report: None)
        log.removeHandler(handler)
        log.setLevel(level)
