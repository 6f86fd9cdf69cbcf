"""Noise that is drawn ahead is the same noise, and no more of it than a walk takes."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from elbocli.core.streams import Stream
from elbocli.sample.noise import Noise

INDICES, SHAPE, CPU = range(5, 9), (4, 6, 3), torch.device("cpu")


@pytest.fixture
def purposes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool]]]:
    """What is drawn, and whether by the thread that asks."""
    found: list[tuple[str, bool]] = []
    plain, me = Stream.__init__, threading.current_thread()

    def told(self: Stream, seed: int, purpose: str) -> None:
        found.append((purpose, threading.current_thread() is me))
        plain(self, seed, purpose)

    monkeypatch.setattr(Stream, "__init__", told)
    yield found


def test_the_kth_call_depends_on_seed_k_and_index_alone() -> None:
    with Noise(3, INDICES, SHAPE, 3, CPU) as noise:
        found = [noise() for _ in range(4)]
    for k, eps in enumerate(found, 1):
        assert torch.equal(eps, Stream(3, f"sample-{k}").normal(INDICES, SHAPE).permute(0, 3, 1, 2)) and eps.shape == (
            4,
            3,
            4,
            6,
        )
    assert noise.draws == 4


def test_the_next_is_drawn_ahead_from_the_second_on(purposes: list[tuple[str, bool]]) -> None:
    with Noise(0, INDICES, SHAPE, 3, CPU) as noise:
        noise()
        time.sleep(0.05)
        assert [purpose for purpose, _ in purposes] == ["sample-1"], "most samplers ask once"
        noise()
        until = time.monotonic() + 10
        while len(purposes) < 3 and time.monotonic() < until:
            time.sleep(0.001)
        assert len(purposes) == 3
        noise()
        time.sleep(0.05)
    assert purposes == [("sample-1", False), ("sample-2", False), ("sample-3", False)], "and none beyond the last step"


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    with Noise(0, INDICES, SHAPE, 3, CPU) as noise:
        noise(), noise()
    assert threading.active_count() == before
