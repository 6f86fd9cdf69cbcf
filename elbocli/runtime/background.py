"""Background computation, and reasons to end a run."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Generic, TypeVar

from elbocli.errors import ElboError, Interrupted, PeerLost

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Background threads that compute work(step) for the next `depth` steps."""

    def __init__(self, work: Callable[[int], T], depth: int = 2, threads: int = 1):
        self._work = work
        self._depth = depth
        self._executor = ThreadPoolExecutor(threads, "elbo-ahead")
        self._begun: dict[int, Future[T]] = {}

    def get(self, step: int) -> T:
        """Return work(step), or raise its exception."""
        for later in range(step, step + self._depth + 1):
            if later not in self._begun:
                self._begun[later] = self._executor.submit(self._work, later)
        return self._begun.pop(step).result()


CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
GRACE_S = 1.0  # seconds after the first signal in which SIGINT is ignored, because torchrun passes the first Ctrl-C on again
PATIENCE_S = 60  # seconds that a process restarted by torchrun waits for its predecessor, which may still be saving, to end
# reasons to end a run besides signals: time limit, dead launcher
TIME = 1001
ORPHAN = 1002


class Signals:
    """Records the first signal in `received` (0: none); a later SIGINT ends the process."""

    def __init__(self) -> None:
        self.received = 0
        self._first = 0.0

    def remember(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received = signum
            self._first = now
        elif signum == signal.SIGINT and now - self._first > GRACE_S:
            os._exit(128 + signum)


def interrupted(reason: int, saved: str) -> ElboError:
    """Return the error that ends a run.

    reason: number of the signal, or ORPHAN (the launcher has ended). saved: what was saved, for the message.
    """
    if reason == ORPHAN:
        return PeerLost(f"the launcher of this run (torchrun) has ended; {saved}")
    return Interrupted(f"{signal.Signals(reason).name}: {saved}", reason)


@contextmanager
def catching_signals() -> Iterator[Signals]:
    """Record signals inside the block, instead of acting on them."""
    signals = Signals()
    with ExitStack() as stack:
        if current_thread() is main_thread():
            for caught in CAUGHT:
                if caught != signal.SIGHUP or signal.getsignal(caught) is not signal.SIG_IGN:
                    stack.callback(signal.signal, caught, signal.signal(caught, signals.remember))
        yield signals


class Ending:
    """Watcher for reasons to end a run.

    limit: time limit in seconds; 0: none.
    launched: whether a launcher, such as torchrun, started the process.
    """

    def __init__(self, signals: Signals, limit: float, launched: bool):
        self.signals = signals
        self.limit = limit
        self.begun = time.monotonic()
        self._parent = os.getppid() if launched else 0

    def reason(self) -> int:
        """Return why to end: a signal's number, TIME (limit reached) or ORPHAN (launcher ended); 0: no reason to end."""
        if self.signals.received:
            return self.signals.received
        if self._parent not in (0, os.getppid()):
            return ORPHAN
        return TIME if self.limit and time.monotonic() - self.begun > self.limit else 0
