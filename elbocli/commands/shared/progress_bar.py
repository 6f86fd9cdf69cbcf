"""Show a command's messages and progress on stderr."""

import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any

from elbocli.runtime.progress import PAUSED, log, show_progress_with
from elbocli.runtime.text import tell, visible

LINE_EVERY_S = 10.0
FIRST_S = 2.0  # seconds before the first line of progress, if stderr is not a terminal
BAR_COLUMNS = 20  # least width of the bar on a terminal; values that leave it less room aren't shown
PLAIN_COLUMNS = 10  # width of tqdm's bar if it knows no width of the terminal
BAR = "{percentage:.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}, {rate_fmt}{postfix}"
LINE = "{n_fmt}/{total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}"


@contextmanager
def shown_on_stderr(command: str, level: int = logging.INFO) -> Iterator[None]:
    """Show messages inside the block, and progress unless `level` is above INFO.

    command: its full name, which begins each line. level: least level of the messages.
    """
    display = Display(command)
    before = log.level
    log.addHandler(display)
    log.setLevel(level)
    show_progress_with(lambda *report: display.show(*report) if level <= logging.INFO else None)
    try:
        yield
    finally:
        display.end()
        log.removeHandler(display)
        log.setLevel(before)


class Display(logging.Handler):
    """Log handler that shows messages and a progress bar; if stderr is no terminal, a line of progress every ten seconds."""

    def __init__(self, command: str) -> None:
        super().__init__()
        self.command = command
        self.bar: Any = None
        self.values: dict[str, Any] = {}
        self.terminal = sys.stderr.isatty()
        self.shown_at = time.monotonic() + FIRST_S - LINE_EVERY_S

    def emit(self, record: logging.LogRecord) -> None:
        if self.bar is not None and self.terminal:
            with suppress(OSError):
                self.bar.clear()
        tell(f"{self.command}: {'warning: ' if record.levelno >= logging.WARNING else ''}{record.getMessage()}")

    def show(self, done: int, total: int | None, unit: str, values: dict[str, Any]) -> None:
        """Show progress. values: name → number to show; PAUSED → seconds that the time left leaves out."""
        from tqdm import tqdm

        if self.bar is None or done < self.bar.n or (total, unit) != (self.bar.total, self.bar.unit):
            self.end()
            tqdm.set_lock(RLock())  # tqdm's own is a lock between processes, for which Python 3.14 starts a process
            how: Any = {"bar_format": BAR} if total else {"desc": self.command}
            if not self.terminal:
                how = {"bar_format": LINE, "delay": math.inf}  # tqdm displays no bar
            self.bar = tqdm(total=total, initial=done, unit=unit, leave=False, dynamic_ncols=True, **how)
            self.values = {}
        paused = values.pop(PAUSED, 0.0)
        self.bar.last_print_t += paused  # tqdm's speed on a terminal is from the times between its prints
        if not self.terminal:
            self.bar.start_t += paused
        self.values |= {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
        with suppress(OSError):
            self.bar.set_postfix_str(self._postfix(), refresh=False)
            self.bar.update(done - self.bar.n)
        now = time.monotonic()
        # Speed and time left are unknown until the second report.
        if not self.terminal and done > self.bar.initial and now - self.shown_at >= LINE_EVERY_S:
            tell(f"{self.command}: {self.bar}")
            self.shown_at = now
            self.values = {}
        if done == total:  # a result may follow on this terminal
            self.end()

    def _postfix(self) -> str:
        """Return as many of the values as leave room for the bar."""
        words = [visible(f"{key}={value}") for key, value in self.values.items()]
        while words and self.terminal and self.bar.total:
            facts = self.bar.format_dict
            line = self.bar.format_meter(**{**facts, "ncols": None, "postfix": " ".join(words)})
            if len(line) - PLAIN_COLUMNS + BAR_COLUMNS <= (facts["ncols"] or math.inf):
                break
            words.pop()
        return " ".join(words)

    def end(self) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.close()
            self.bar = None
