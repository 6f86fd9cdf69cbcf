"""Show a command's messages and progress on stderr."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from elbocli.cli.commands import Command, tell, visible
from elbocli.runtime.progress import log, show_progress_with

LINE_EVERY_S = 10.0
FIRST_S = 2.0  # seconds before the first line of progress, if stderr is not a terminal
LINE = "{n_fmt}/{total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}"


@contextmanager
def shown_on_stderr() -> Iterator[None]:
    """Show messages and progress on stderr inside the block, on rank 0 only."""
    display = Display()
    log.addHandler(display)
    level = logging.WARNING if Command.quiet else logging.DEBUG if Command.verbose else logging.INFO
    before = log.level
    log.setLevel(logging.CRITICAL if Command.silent else level)
    show_progress_with(lambda *report: None if Command.quiet or Command.silent else display.show(*report))
    try:
        yield
    finally:
        display.end()
        log.removeHandler(display)
        log.setLevel(before)


class Display(logging.Handler):
    """Log handler that shows messages and a progress bar."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: Any = None
        self.values: dict[str, Any] = {}
        self.first, self.last, self.begun = 0, -1, 0.0
        self.shown_at = time.monotonic() + FIRST_S - LINE_EVERY_S

    def emit(self, record: logging.LogRecord) -> None:
        self.end()
        tell(f"{Command.path}: {'warning: ' if record.levelno >= logging.WARNING else ''}{record.getMessage()}")

    def show(self, done: int, total: int | None, unit: str, then: str, values: dict[str, Any]) -> None:
        """Show progress on a bar; if stderr is no terminal, on a line every ten seconds.

        then: slow work before the next report, such as validating; '': none. values: name → number to show.
        """
        from tqdm import tqdm

        now, terminal = time.monotonic(), sys.stderr.isatty()
        if done < self.last or self.last < 0:
            self.end()
            self.begun, self.first = now, done
        self.last = done
        self.values |= {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
        if not terminal and now - self.shown_at < LINE_EVERY_S:
            return
        shown = visible(" ".join(f"{key}={value}" for key, value in self.values.items()))
        if not terminal:
            how: Any = {"initial": self.first, "unit": unit, "postfix": shown, "bar_format": LINE}
            tell(f"{Command.path}: {tqdm.format_meter(done, total, now - self.begun, **how)}")
            self.shown_at, self.values = now, {}
            return
        with suppress(OSError):
            if self.bar is None:
                self.bar = tqdm(
                    total=total, initial=done, unit=unit, leave=False, file=sys.stderr, dynamic_ncols=True, smoothing=0.1
                )
            self.bar.set_description(f"{Command.path}, {then}" if then else Command.path, refresh=bool(then))
            self.bar.set_postfix_str(shown, refresh=False)
            self.bar.update(done - self.bar.n)

    def end(self) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.close()
            self.bar = None
