"""Show a loop's reports on stderr: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Timer
from typing import Any

from elbocli.cli.commands import Command
from elbocli.cli.messages import on_stderr, tell, visible
from elbocli.runtime.progress import Progress, duration

LINE_EVERY_S = 10.0
FIRST_S = 2.0
"""Longest silence before the first word on what is done."""
COUNT_WIDTH = 67
"""Columns of a bar's name, share, counts, times and rate, when all are long."""


def say(message: str, level: str = "info") -> None:
    """A message for people."""
    if Command.silent:
        return
    if level == "warning":
        tell(f"{Command.path}: warning: {message}")
    elif not Command.quiet and (level != "detail" or Command.verbose):
        tell(f"{Command.path}: {message}")


def _pretty(values: dict[str, Any], width: int | None = None) -> str:
    """Values by name; with a width as many of them as fit into it, but always the first."""
    words = [f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()]
    while width is not None and len(words) > 1 and len(" ".join(words)) > width:
        words.pop()
    return " ".join(words)


def _columns() -> int:
    with suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns
    return 80


class _Lines:
    """Progress without a terminal. Rate and time left are those since the first report of a count; a value is shown once."""

    def __init__(self) -> None:
        self.shown = time.monotonic() + FIRST_S - LINE_EVERY_S
        self.values: dict[str, Any] = {}
        self.begun, self.first, self.last = 0.0, 0, -1

    def update(self, report: Progress) -> None:
        assert report.done is not None
        now = time.monotonic()
        if self.last < 0 or report.done < self.last:
            self.begun, self.first = now, report.done
        self.last = report.done
        self.values = self.values | report.values
        if now - self.shown >= LINE_EVERY_S:
            self.shown = now
            of = "" if report.total is None else f"/{report.total}"
            say(f"{report.done}{of} {report.unit}{self._pace(report, now)} {_pretty(self.values)}".rstrip())
            self.values = {}

    def _pace(self, report: Progress, now: float) -> str:
        assert report.done is not None
        if report.done <= self.first or now <= self.begun:
            return ""
        rate = (report.done - self.first) / (now - self.begun)
        left = "" if report.total is None else f", {duration((report.total - report.done) / rate)} left"
        return f", {rate:.3g} {report.unit}/s{left}"

    def close(self) -> None:
        pass


class _Bar:
    """Progress on a terminal."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.values: dict[str, Any] = {}
        self.then = ""

    def update(self, report: Progress) -> None:
        from tqdm import tqdm

        assert report.done is not None
        if self.bar is not None and report.done < self.bar.n:
            self.close()
        if self.bar is None:
            count: Any = {"total": report.total, "initial": report.done, "unit": report.unit, "desc": Command.path}
            hidden = Command.quiet or Command.silent
            self.bar = tqdm(file=sys.stderr, dynamic_ncols=True, smoothing=0.1, leave=False, disable=hidden, **count)
        if report.values:
            self.values = self.values | report.values  # the loss stays when a validation reports
            self.bar.set_postfix_str(visible(_pretty(self.values, _columns() - COUNT_WIDTH)), refresh=False)
        self.bar.update(report.done - self.bar.n)
        if report.then != self.then:
            self.then = report.then
            self.bar.set_description(f"{Command.path}, {report.then}" if report.then else Command.path)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar, self.then = None, ""


class _FirstWord:
    """Says that work is under way, when nothing else was said for a while at the start, or while something else is done
    between two reports. Nobody is to wonder.
    """

    def __init__(self) -> None:
        self._timer = self._later("getting ready")

    def _later(self, text: str) -> Timer:
        timer = Timer(FIRST_S, say, [text])
        timer.daemon = True
        timer.start()
        return timer

    def heed(self, report: Progress, bar: bool) -> None:
        """Wait no longer for what a report says. bar: whether one shows counts from the first on."""
        if report.done is None:
            return
        self._timer.cancel()
        if report.then and not bar:
            self._timer = self._later(f"{report.unit} {report.done} of {report.total} is done; {report.then}")

    def cancel(self) -> None:
        """Say nothing any more."""
        self._timer.cancel()


def show(loop: Iterator[Progress] | Callable[[Callable[[Progress], None]], Iterator[Progress]]) -> Any:
    """Run a loop to its end and show its reports; return its result.

    loop: yields reports. Or a function that makes such a loop, given one that shows a report at once.
    """
    shown: _Bar | _Lines = _Bar() if sys.stderr.isatty() else _Lines()
    first = _FirstWord()

    def tell(report: Progress) -> None:
        first.heed(report, bar=isinstance(shown, _Bar))
        with on_stderr():
            if report.message:
                shown.close()
                say(report.message, report.level)
            if report.done is not None:
                shown.update(report)

    reports = loop(tell) if callable(loop) else loop
    try:
        while True:
            tell(next(reports))
    except StopIteration as end:
        return end.value
    finally:
        first.cancel()
        with on_stderr():
            shown.close()
        reports.close()  # type: ignore[attr-defined]
