"""Time two ways of doing the same job, turn and turn about, so that a busy machine slows both alike."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Job = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """ours, peer: median seconds. ratio: median over rounds of ours/peer. bound: the largest ratio allowed, or None."""

    name: str
    ours: float
    peer: float
    ratio: float
    bound: float | None

    @property
    def verdict(self) -> str:
        """ok, over, or nothing where there is no bound."""
        if self.bound is None:
            return ""
        return "ok" if self.ratio <= self.bound else "over"


def compare(
    name: str,
    ours: Job,
    peer: Job,
    bound: float | None,
    *,
    rounds: int,
    warm_up: int = 3,
    per: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Time both in turns, the first to go alternating. rounds: 1 is only to see that it runs. per: units of work in a call."""
    for _ in range(warm_up if rounds > 1 else 0):
        ours()
        peer()
    pairs = []
    for turn in range(rounds):
        first, second = (ours, peer) if turn % 2 == 0 else (peer, ours)
        a = seconds(first, clock)
        b = seconds(second, clock)
        pairs.append((a, b) if turn % 2 == 0 else (b, a))
    mine, theirs = (median(side) / per for side in zip(*pairs))
    return Row(name, mine, theirs, median(a / b for a, b in pairs), bound)


def seconds(job: Job, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that a call takes."""
    start = clock()
    job()
    return clock() - start


def processor_time() -> float:
    """Return the seconds of the processor that ended child processes took, which other work changes little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # os.times counts in units of 10 ms
    return used.ru_utime + used.ru_stime
