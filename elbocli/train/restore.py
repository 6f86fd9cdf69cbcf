"""Training begins from a checkpoint of the run, or from the weights of another run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from elbocli.errors import DataError
from elbocli.files import checkpoint as store
from elbocli.train.state import TrainState


def restore(state: TrainState, out: Path, saved: store.Checkpoint | None) -> None:
    """Continue from a checkpoint; without one, take over the weights that the run begins from, if there are any.

    Later snapshots are deleted. Raises FormatError when the checkpoint doesn't fit the run, and DataError when those
    weights are gone.
    """
    if saved is not None:
        state.restore(saved)
    elif state.resolved.init is not None:
        state.begin(_initial(state))
    if state.world.first:
        store.drop_snapshots_after(out, state.steps_done)


def _initial(state: TrainState) -> dict[str, Tensor]:
    """The weights that the run begins from. Raises DataError, FormatError."""
    resolved = state.resolved
    if resolved.initial is None:
        raise DataError("the run's checkpoints have gone since it was started; start it again")
    return resolved.initial.weights(resolved.network, resolved.data)
