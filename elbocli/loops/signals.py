"""Signals that end a run after its work is saved. Needs no torch."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from elbocli.errors import Interrupted

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Remembers the first SIGINT or SIGTERM; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        for caught in CAUGHT:
            signal.signal(caught, signal.default_int_handler if caught == signal.SIGINT else signal.SIG_DFL)

    def interrupted(self, saved: str) -> Interrupted:
        """The error that ends the run with 128 + signal."""
        assert self.received is not None
        return Interrupted(f"{signal.Signals(self.received).name}: {saved}", self.received)


@contextlib.contextmanager
def catching_signals() -> Iterator[Signals]:
    """Signals are noted, not acted on, during the block."""
    signals = Signals()
    try:
        before = {caught: signal.signal(caught, signals._remember) for caught in CAUGHT}
    except ValueError:  # not the main thread: somebody else's business
        before = {}
    try:
        yield signals
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
