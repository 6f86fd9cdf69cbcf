"""Reasons to end a run before its last step: signals, the clock, a launcher that is gone. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from elbocli.errors import ElboError, Interrupted, PeerLost
from elbocli.runtime.background import Background

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
GRACE_S = 1.0
"""Time after the first signal in which a Ctrl-C is an echo of it, and no second one."""
PATIENCE_S = 60
"""Time that processes of torchrun wait for those before them to end: they may be saving."""
TIME, ORPHAN = 1001, 1002
LOOK_S = 0.5


class Signals:
    """Remembers the first SIGINT, SIGTERM, SIGHUP or SIGUSR1. A later SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum

    def _watch(self, woken: int) -> None:
        """End the process at a second SIGINT, even while the main thread is in one long call and runs no handler.

        woken: gives the number of each signal as it comes, and nothing more at the end. torchrun passes on a Ctrl-C that
        a terminal has sent to everyone already: that is no second one.
        """
        first: float | None = None
        while numbers := os.read(woken, 64):
            now = time.monotonic()
            if first is not None and now - first > GRACE_S and signal.SIGINT in numbers:
                os._exit(128 + signal.SIGINT)
            first = now if first is None else first

    def interrupted(self, saved: str) -> ElboError:
        """The error that ends the run."""
        assert self.received is not None
        return interrupted(self.received, saved)


def interrupted(reason: int, saved: str) -> ElboError:
    """The error that ends a run: with 128 + signal, or because its launcher is gone."""
    if reason == ORPHAN:
        return PeerLost(f"the launcher of this run is gone; {saved}")
    return Interrupted(f"{signal.Signals(reason).name}: {saved}", reason)


@contextlib.contextmanager
def catching_signals() -> Iterator[Signals]:
    """Signals are noted, not acted on, during the block. SIGHUP stays ignored where it is, as under nohup."""
    signals = Signals()
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    try:
        before = {caught: signal.signal(caught, signals._remember) for caught in CAUGHT if caught not in ignored}
    except ValueError:  # not the main thread: somebody else's business
        yield signals
        return
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    woke_before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    # Whoever drops the run that holds this block may leave it to the garbage collector, which must not wait for the thread:
    # only the end of this block, which comes later, lets the thread end.
    watch = Background("signals", abandon=True)
    watching = watch.start(lambda: signals._watch(woken))
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(woke_before)
        for caught, handler in before.items():
            signal.signal(caught, handler)
        os.close(waker)
        watching.exception()
        watch.close()
        os.close(woken)


class Ending:
    """The reason to end a run now, as a number, so that processes can agree on it: a signal's, or one of those above.

    limit: seconds, 0 is none. launched: there is a launcher.
    """

    def __init__(self, signals: Signals, limit: float, launched: bool):
        self.signals, self.limit = signals, limit
        self.begun = self._looked = time.monotonic()
        self._parent = os.getppid() if launched else None

    def reason(self) -> int:
        """0 is none."""
        if self.signals.received is not None:
            return self.signals.received
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return 0
        self._looked = now
        if self._parent is not None and os.getppid() != self._parent:
            return ORPHAN
        return TIME if self.limit and now - self.begun > self.limit else 0
