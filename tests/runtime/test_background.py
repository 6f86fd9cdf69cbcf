"""Threads that work while others do: in order, with their errors, and gone when they should be."""

import gc
import threading
import time
from collections.abc import Callable

import pytest

from elbocli.runtime.background import Ahead


def threads_since(before: list[threading.Thread]) -> int:
    """Count elbo's threads that have begun since; those of earlier tests end whenever they are collected."""
    return sum(thread.name.startswith("elbo-") for thread in set(threading.enumerate()).difference(before))


def until(true: Callable[[], bool]) -> None:
    """Wait for it, not forever."""
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_any_order_of_steps_gives_each_its_own() -> None:
    ahead = Ahead(lambda step: step * step, depth=3)
    for step in [0, 1, 2, 3, 9, 10, 4, 4, 5, 7, 6, 0, *range(50)]:
        assert ahead.get(step) == step * step


def test_the_following_steps_are_done_beforehand_and_no_more() -> None:
    done: list[int] = []
    ahead = Ahead(done.append, depth=3)
    ahead.get(5)
    until(lambda: len(done) == 4)
    time.sleep(0.02)
    assert done == [5, 6, 7, 8]
    ahead.get(6)
    until(lambda: len(done) == 5)
    assert done == [5, 6, 7, 8, 9]


def test_an_exception_comes_with_its_own_step_and_work_goes_on() -> None:
    def work(step: int) -> int:
        if step == 2:
            raise ValueError("step two")
        return step

    ahead = Ahead(work)
    assert [ahead.get(0), ahead.get(1)] == [0, 1]
    with pytest.raises(ValueError, match="step two"):
        ahead.get(2)
    assert ahead.get(3) == 3


def test_the_thread_ends_when_it_is_forgotten() -> None:
    before = threading.enumerate()

    class Holder:
        def __init__(self) -> None:
            self.ahead = Ahead(self.work)

        def work(self, step: int) -> int:
            return step

    Holder().ahead.get(0)
    until(lambda: gc.collect() >= 0 and threads_since(before) == 0)  # a thread at work holds what it works for
