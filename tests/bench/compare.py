"""Time two ways of doing the same job, turn and turn about, so that a busy machine slows both alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Job = Callable[[], object]


class Skipped(Exception):
    """A benchmark can't run here; the message says why."""


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
    name: str, ours: Job, peer: Job, bound: float | None, *, rounds: int, calls: int = 1, warm_up: int = 3, per: int = 1
) -> Row:
    """Rounds of `calls` calls of each, the first to go alternating. per: units of work in a call, to divide by."""
    for _ in range(warm_up):
        ours()
        peer()
    pairs = []
    for turn in range(rounds):
        first, second = (ours, peer) if turn % 2 == 0 else (peer, ours)
        a, b = _seconds(first, calls), _seconds(second, calls)
        pairs.append((a, b) if turn % 2 == 0 else (b, a))
    mine, theirs = (median(side) / (calls * per) for side in zip(*pairs))
    return Row(name, mine, theirs, median(a / b for a, b in pairs), bound)


def _seconds(job: Job, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        job()
    return time.perf_counter() - start
