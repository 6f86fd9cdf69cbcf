"""Work that is done ahead beside the main thread, and reasons to end: signals, the clock, a launcher that is gone."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Generic, TypeVar

from elbocli.errors import ElboError, Interrupted, PeerLost

T = TypeVar("T")


class Ahead(Generic[T]):
    """`get(step)` is `work(step)`, which must depend on nothing but the step, with `depth` more steps done beforehand."""

    def __init__(self, work: Callable[[int], T], depth: int = 2):
        self._work, self._depth = work, depth
        self._executor = ThreadPoolExecutor(1, "elbo-ahead")
        self._begun: dict[int, Future[T]] = {}

    def get(self, step: int) -> T:
        """Return the work of a step. Raises its exception. Any order of steps is right, a rising one is fast."""
        for gone in self._begun.keys() - range(step, step + self._depth + 1):
            self._begun.pop(gone).cancel()
        for later in range(step, step + self._depth + 1):
            if later not in self._begun:
                self._begun[later] = self._executor.submit(self._work, later)
        return self._begun.pop(step).result()


CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
GRACE_S = 1.0
"""Time after the first signal in which a Ctrl-C is an echo of it, which torchrun passes on, and no second one."""
PATIENCE_S = 60
"""Time that processes of torchrun wait for those before them to end: they may be saving."""
TIME, ORPHAN = 1001, 1002


class Signals:
    """Remembers the first SIGINT, SIGTERM, SIGHUP or SIGUSR1. A later SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.received, self._first = 0, 0.0

    def remember(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if not self.received:
            self.received, self._first = signum, now
        elif signum == signal.SIGINT and now - self._first > GRACE_S:
            os._exit(128 + signum)


def interrupted(reason: int, saved: str) -> ElboError:
    """The error that ends a run: with 128 + signal, or because its launcher is gone."""
    if reason == ORPHAN:
        return PeerLost(f"the launcher of this run is gone; {saved}")
    return Interrupted(f"{signal.Signals(reason).name}: {saved}", reason)


@contextmanager
def catching_signals() -> Iterator[Signals]:
    """Signals are noted, not acted on, during the block. SIGHUP stays ignored where it is, as under nohup."""
    signals, before = Signals(), dict[signal.Signals, Any]()
    if current_thread() is main_thread():
        for caught in CAUGHT:
            if caught != signal.SIGHUP or signal.getsignal(caught) is not signal.SIG_IGN:
                before[caught] = signal.signal(caught, signals.remember)
    try:
        yield signals
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


class Ending:
    """The reason to end a run now, as a number, so that processes can agree on it: a signal's, TIME or ORPHAN.

    limit: seconds, 0 is none. launched: there is a launcher.
    """

    def __init__(self, signals: Signals, limit: float, launched: bool):
        self.signals, self.limit = signals, limit
        self.begun = time.monotonic()
        self._parent = os.getppid() if launched else 0

    def reason(self) -> int:
        """0 is none."""
        if self.signals.received:
            return self.signals.received
        if self._parent not in (0, os.getppid()):
            return ORPHAN
        return TIME if self.limit and time.monotonic() - self.begun > self.limit else 0
