"""The line that says what a run is, at its start."""

from __future__ import annotations

from pathlib import Path

from elbocli.nn.networks import count_parameters
from elbocli.runtime.device import Precision
from elbocli.train.state import TrainState


def introduction(state: TrainState, out: Path) -> str:
    """Return a sentence on a run in the folder `out`: where it stands, its network, device and objective."""
    settings, start, size = state.settings, state.steps_done, state.world.size
    kind = "learned" if state.weighting.learned else "monotone"
    if state.weighting.rising(settings.logsnr_min, settings.logsnr_max):
        kind = "learned, not monotone" if state.weighting.learned else "not monotone"
    parts, most = len(state.batches.parts), max(map(len, state.batches.parts))
    shared = f", {size} processes ({settings.parallel})" if size > 1 else ""
    shared += f", each {settings.batch // size} images a step in {parts} parts of {most}" if parts > 1 else ""
    init = state.resolved.init
    age = "" if init is None or init.step is None else f" of step {init.step}"
    new = f"new run from {init.run}, weights {init.weights}{age}" if init else "new run"
    return (
        f"{out}: {f'going on after step {start}' if start else new}; "
        f"{count_parameters(state.network):,} parameters, {state.device}{shared}, "
        f"{Precision(settings.precision, state.device)}{state.compiled and f', {state.compiled}'}; "
        f"weighting {settings.weighting} ({kind}), schedule {settings.schedule}, "
        f"logsnr {settings.logsnr_min:g} to {settings.logsnr_max:g}"
    )
