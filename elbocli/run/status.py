"""status.json: how a run stands, for people, scripts and schedulers."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Annotated

from msgspec import Meta, structs

from elbocli.errors import DataError, FormatError
from elbocli.files.atomic import lock, write_json
from elbocli.files.records import Count, Record, read_json, stored
from elbocli.runtime.background import Background

STATUS = "status.json"
LOCK = ".lock"
RUNNING, DONE, DEAD = "running", "done", "dead"
EVERY_S = 3.0
"""Time from one note of the step to the next."""


@stored("status.json of a run")
class RunStatus(Record, frozen=True):
    """A run's state, what it has reached, and what is safe of that.

    state: running, done, stopped, interrupted or failed; read back, also dead: it says running, and no process holds the
    run's lock. step: of `steps`, with `images` seen. saved: the step of the newest
    checkpoint. time: of writing, in seconds since 1970.
    """

    state: str
    step: Count
    steps: Count
    images: Count
    time: Annotated[float, Meta(ge=0, le=253402300799)]
    message: str = ""
    saved: Count | None = None

    @property
    def when(self) -> str:
        """The time in words, UTC."""
        return datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%d %H:%M UTC")


def read_status(run: Path) -> RunStatus:
    """Return how a run stands now. Raises FormatError when that isn't known."""
    path = run / STATUS
    found = RunStatus.of(read_json(path), f"{path}: the run's state is unknown")
    if found.state != RUNNING or _held(run):
        return found
    gone = "its process is gone without a word; the same command goes on from what is saved"
    return structs.replace(found, state=DEAD, message=gone)


def _held(run: Path) -> bool:
    """Tell whether a process holds a run's lock."""
    try:
        with open(run / LOCK, "rb") as file:
            lock(file.fileno())
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


class Status:
    """Writes status.json, as well as can be: what prevents it is told by whoever writes what matters.

    step, images: reached. saved: the step of the newest checkpoint. They and `state` are those of an earlier start at first.
    """

    def __init__(self, run: Path, steps: int):
        self.run, self.state, self.steps, self.step, self.images = run, "", steps, 0, 0
        self.saved: int | None = None
        self._lock, self._background = Lock(), Background("status")
        self._noted = time.monotonic()
        with suppress(FormatError):
            before = read_status(run)
            self.state, self.step, self.images, self.saved = before.state, before.step, before.images, before.saved

    def reached(self, step: int, images: int) -> None:
        """Take note of a step, and write it now and then, by another thread."""
        self.step, self.images = step, images
        if time.monotonic() - self._noted >= EVERY_S:
            self._noted = time.monotonic()
            self._background.start(lambda: self._write(RUNNING, ""))

    def write(self, state: str, message: str = "") -> None:
        """Write a state. After any but `running` nothing else is written."""
        if state != RUNNING:
            self._background.close()
        self._write(state, message)

    def _write(self, state: str, message: str) -> None:
        now = round(time.time(), 3)
        content = RunStatus(state, self.step, self.steps, self.images, now, message, self.saved)
        with self._lock, suppress(DataError):
            write_json(self.run / STATUS, content.json())
