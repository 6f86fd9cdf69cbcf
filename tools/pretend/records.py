"""Notes of what a device was asked to do, with the line of elbocli that asked for it."""

from __future__ import annotations

import linecache
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import elbocli

PACKAGE = str(Path(elbocli.__file__).parent) + "/"


class Record(NamedTuple):
    """Something that happened. where: file and line within elbocli; inside: its functions that were running then."""

    what: str
    where: str
    inside: frozenset[str]

    def __repr__(self) -> str:
        return f"{self.what} at {self.where}"


class Records(list[Record]):
    """Records in the order in which things happened."""

    def note(self, what: str) -> None:
        """Take note of it, as asked for by the line that is running."""
        frames = _frames()
        where = "no line of elbocli"
        if frames:
            path = frames[0].f_code.co_filename
            line = frames[0].f_lineno
            where = f"{path.removeprefix(PACKAGE)}:{line}: {linecache.getline(path, line).strip()}"
        self.append(Record(what, where, frozenset(frame.f_code.co_qualname for frame in frames)))

    def within(self, *functions: str) -> list[Record]:
        """Return what happened while one of these functions of elbocli ran, by their qualified names."""
        return [record for record in self if record.inside & {*functions}]

    def outside(self, *functions: str) -> list[Record]:
        """Return what happened while none of them ran."""
        return [record for record in self if not record.inside & {*functions}]


def _frames() -> list[FrameType]:
    """Frames of elbocli's functions, the innermost first. A backward pass's thread works for whoever asked for it."""
    mine = isinstance(threading.current_thread(), threading._DummyThread)
    frame = sys._current_frames()[threading.main_thread().ident] if mine else sys._getframe()
    found: list[FrameType] = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            found.append(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return found
