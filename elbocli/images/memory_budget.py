"""Memory that threads share: one that needs much of it waits until there is room."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator

M_MMAP_THRESHOLD, LARGE_BLOCK = -3, 8 << 20


def return_freed() -> None:
    """Let memory that a large image leaves go back to the system, not to the thread that had it, from now on.

    glibc would keep a part for each thread: a quarter of a gigabyte after the largest image. Elsewhere nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


@contextlib.contextmanager
def keeping_all() -> Iterator[None]:
    """Look for no circles of objects that nobody holds in the block: it makes millions that stay, in two thirds of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


class Room:
    """A number of bytes for all threads together. A claim larger than that gets in alone."""

    def __init__(self, size: int):
        self.size = size
        self._taken = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def claim(self, size: int) -> Iterator[None]:
        """Hold `size` bytes for the block. Inside it a thread must claim no more from the same room."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self.size)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()
