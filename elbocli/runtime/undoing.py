"""Work that is undone when a signal ends the process at once: a file that is half written, a child that works for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

_undone: list[Callable[[], object]] = []


@contextlib.contextmanager
def undoing(undo: Callable[[], object]) -> Iterator[None]:
    """Have `undo` called when a signal ends the process within the block. The block cleans up itself in any other case."""
    _undone.append(undo)
    try:
        yield
    finally:
        _undone.remove(undo)


def undo_all() -> None:
    """Undo the work of every such block, the last first."""
    for undo in reversed(_undone):
        with contextlib.suppress(OSError):
            undo()
