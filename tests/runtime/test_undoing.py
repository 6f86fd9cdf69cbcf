"""Work that is undone: of blocks that are open, the last first, whatever one of them meets."""

from __future__ import annotations

import contextlib

from elbocli.runtime.undoing import undo_all, undoing


def test_open_blocks_are_undone_in_reverse_and_closed_ones_never() -> None:
    undone: list[str] = []

    def fails() -> None:
        undone.append("fails")
        raise FileNotFoundError

    with contextlib.suppress(ValueError), undoing(lambda: undone.append("closed")):
        raise ValueError
    with undoing(lambda: undone.append("outer")), undoing(fails):
        undo_all()
    undo_all()
    assert undone == ["fails", "outer"]
