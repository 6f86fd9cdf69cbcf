"""The newest whole checkpoint of a run, from which training goes on; or the weights of another, from which it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from elbocli.errors import DataError
from elbocli.files import checkpoint as store
from elbocli.files import snapshots
from elbocli.train.state import TrainState


def restore_newest(state: TrainState, out: Path, warn: Callable[[str], None]) -> dict[str, int]:
    """Go on from it, if there is one, in all processes alike. Returns how long the logs were then, in bytes by name.

    Damaged ones are told to `warn`. Where there is none, take over the weights that the run begins from, if it does.
    Raises FormatError when all are damaged, or it doesn't fit the run, and DataError when those weights are gone.
    """
    found = None
    with state.world.together():
        if state.world.first:
            found = store.latest(out, warn)
    found = state.world.of_first(found)
    if found is not None:
        state.restore(found)
    elif state.resolved.init is not None:
        state.begin(_initial(state))
    if state.world.first:
        snapshots.drop_after(out, state.steps_done)
    return (found and found.meta.log_bytes) or {}


def _initial(state: TrainState) -> dict[str, Tensor]:
    """The weights that the run begins from. Raises DataError, FormatError."""
    resolved = state.resolved
    if resolved.initial is None:
        raise DataError("the run's checkpoints have gone since it was started; start it again")
    return resolved.initial.weights(resolved.network, resolved.data)
