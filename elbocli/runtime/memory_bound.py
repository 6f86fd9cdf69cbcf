"""A bound on the memory that a block may take more, where a library would take whatever a file asks for."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

MOST_MORE = 512 << 20
"""Bytes: with torch, which takes 350 MB, less than 1 GB."""
DATA_PAGES = 5
"""The place in /proc/self/statm of what a process may write to and shares with none, which RLIMIT_DATA counts."""


_changing = threading.Lock()
_inside: list[int] = []
"""Limits of the blocks that are running, of all threads; the first has the limit that was before."""


@contextlib.contextmanager
def bounded_memory(more: int = MOST_MORE) -> Iterator[None]:
    """Let the block take `more` bytes of memory at most: beyond them allocations fail, and libraries raise what they do then.

    Other threads' fail alike meanwhile, so keep nothing in it but short calls. Where the system doesn't count memory,
    nothing is bound.
    """
    held = _held()
    if not held:
        yield
        return
    with _changing:
        before, hard = resource.getrlimit(resource.RLIMIT_DATA)
        _inside.append(before if not _inside else _inside[0])
        limits = [limit for limit in (held + more, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        with _changing:
            before = _inside.pop()
            if not _inside:  # else another thread's block goes on, and is the last to lift it
                resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def _held() -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[DATA_PAGES]) * os.sysconf("SC_PAGE_SIZE")
    return 0
