"""Rounds: in order, ahead of what is being written, and left when there is a reason."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elbocli.errors import DataError, Interrupted, PeerLost
from elbocli.runtime.background import ORPHAN, Ending, Signals
from elbocli.runtime.processes import ALONE
from elbocli.sample.distributed import Rounds

SHAPE = (1, 1, 1)


class Kept:
    """A sink that keeps, and takes its time."""

    def __init__(self, partial: Path | None = None, pause: float = 0.0):
        self.rows, self.partial, self._pause = [], partial, pause

    @property
    def done(self) -> int:
        return len(self.rows)

    def put(self, batch: np.ndarray) -> None:
        time.sleep(self._pause)
        self.rows += batch.ravel().tolist()

    def finish(self) -> Any:
        return iter(())


def never() -> Ending:
    return Ending(Signals(), 0, False)


def images(indices: range) -> torch.Tensor:
    return torch.tensor(indices, dtype=torch.uint8).view(-1, *SHAPE)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(("start", "n", "batch"), [(0, 20, 5), (5, 22, 5), (0, 3, 5), (20, 20, 5), (0, 7, 1)])
def test_all_images_come_once_and_in_order(start: int, n: int, batch: int, depth: int) -> None:
    sink, asked = Kept(), []

    def draw(indices: range) -> torch.Tensor:
        asked.extend(indices)
        return images(indices)

    done = list(Rounds(ALONE, never(), sink, SHAPE, n, batch, depth).run(start, draw))
    assert sink.rows == asked == list(range(start, n))
    assert done == [min(stop, n) for stop in range(start + batch, n + batch, batch)]


def test_a_round_is_drawn_while_the_one_before_is_written_and_no_more_are_held() -> None:
    sink, begun = Kept(pause=0.05), []

    def draw(indices: range) -> torch.Tensor:
        begun.append((indices.start, sink.done))
        return images(indices)

    list(Rounds(ALONE, never(), sink, SHAPE, 50, 10, 0).run(0, draw))
    assert all(start - written in (0, 10, 20) for start, written in begun)
    assert any(start - written >= 10 for start, written in begun), "it waited for each"


@pytest.mark.parametrize("partial", [None, Path("x.h5.partial")])
@pytest.mark.parametrize("reason", [signal.SIGTERM, ORPHAN])
def test_a_reason_to_end_leaves_a_batch_half_drawn(partial: Path | None, reason: int) -> None:
    signals, sink = Signals(), Kept(partial, 0.05)
    rounds = Rounds(ALONE, Ending(signals, 0, False), sink, SHAPE, 50, 10, 0)

    def draw(indices: range) -> torch.Tensor:
        if indices.start == 20:
            signals.received = reason
            rounds.look()
        return images(indices)

    expected = PeerLost if reason == ORPHAN else Interrupted
    kept = r"20 of 50 images are safe in x\.h5\.partial; the same command" if partial else "of 50 images were written"
    with pytest.raises(expected, match=kept):
        list(rounds.run(0, draw))
    if partial:
        assert sink.rows == list(range(20))


def test_what_fails_aside_is_raised_here() -> None:
    class Full(Kept):
        def put(self, batch: np.ndarray) -> None:
            raise DataError("no room")

    with pytest.raises(DataError, match="no room"):
        list(Rounds(ALONE, never(), Full(), SHAPE, 50, 10, 0).run(0, images))
    with pytest.raises(DataError, match="no room"):
        list(Rounds(ALONE, never(), Full(), SHAPE, 5, 10, 0).run(0, images))


def test_a_write_that_never_ends_can_be_left() -> None:
    """As into a pipe that nobody reads: a signal ends the run all the same."""
    signals, gate = Signals(), threading.Event()

    class Stuck(Kept):
        def put(self, batch: np.ndarray) -> None:
            signals.received = signal.SIGTERM
            gate.wait()

    with pytest.raises(Interrupted):
        list(Rounds(ALONE, Ending(signals, 0, False), Stuck(), SHAPE, 50, 10, 0).run(0, images))
    gate.set()
