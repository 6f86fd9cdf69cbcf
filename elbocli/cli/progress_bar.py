"""Show a loop's reports on stderr: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from elbocli.cli.grouped_help import Command
from elbocli.cli.stderr import heard, tell
from elbocli.runtime.progress import Progress

LINE_EVERY_S = 10.0


def say(message: str, level: str = "info") -> None:
    """A message for people."""
    if Command.silent:
        return
    if level == "warning":
        tell(f"{Command.path}: warning: {message}")
    elif not Command.quiet and (level != "detail" or Command.verbose):
        tell(f"{Command.path}: {message}")


def _pretty(values: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


def _duration(seconds: float) -> str:
    """46 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class _Lines:
    """Progress without a terminal. Rate and time left are those since the first report of a count."""

    def __init__(self) -> None:
        self.shown = time.monotonic()
        self.values: dict[str, Any] = {}
        self.begun, self.first, self.last = 0.0, 0, -1

    def update(self, report: Progress) -> None:
        assert report.done is not None
        now = time.monotonic()
        if self.last < 0 or report.done < self.last:
            self.begun, self.first = now, report.done
        self.last = report.done
        self.values = report.values or self.values
        if now - self.shown >= LINE_EVERY_S:
            self.shown = now
            of = "" if report.total is None else f"/{report.total}"
            say(f"{report.done}{of} {report.unit}{self._pace(report, now)} {_pretty(self.values)}".rstrip())

    def _pace(self, report: Progress, now: float) -> str:
        assert report.done is not None
        if report.done <= self.first or now <= self.begun:
            return ""
        rate = (report.done - self.first) / (now - self.begun)
        left = "" if report.total is None else f", {_duration((report.total - report.done) / rate)} left"
        return f", {rate:.3g} {report.unit}/s{left}"

    def close(self) -> None:
        pass


class _Bar:
    """Progress on a terminal."""

    def __init__(self) -> None:
        self.bar: Any = None

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
            self.bar.set_postfix_str(_pretty(report.values), refresh=False)
        self.bar.update(report.done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def show(reports: Iterator[Progress]) -> Any:
    """Run a loop to its end, showing what it reports; what it returns."""
    shown: _Bar | _Lines = _Bar() if sys.stderr.isatty() else _Lines()
    try:
        while True:
            report = next(reports)
            with heard():
                if report.message:
                    shown.close()
                    say(report.message, report.level)
                if report.done is not None:
                    shown.update(report)
    except StopIteration as end:
        return end.value
    finally:
        with heard():
            shown.close()
        reports.close()  # type: ignore[attr-defined]
