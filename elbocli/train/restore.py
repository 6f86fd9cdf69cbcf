"""The newest whole checkpoint of a run, from which training goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from elbocli.files import checkpoint as store
from elbocli.files import snapshots
from elbocli.train.state import TrainState


def restore_newest(state: TrainState, out: Path, warn: Callable[[str], None]) -> dict[str, int]:
    """Go on from it, if there is one, in all processes alike. Returns how long the logs were then, in bytes by name.

    Damaged ones are told to `warn`. Raises FormatError when all are damaged, or it doesn't fit the run.
    """
    found = None
    with state.world.together():
        if state.world.first:
            found = store.latest(out, warn)
    found = state.world.of_first(found)
    if found is not None:
        state.restore(found)
    if state.world.first:
        snapshots.drop_after(out, state.steps_done)
    return {} if found is None else found.meta["log_bytes"]
