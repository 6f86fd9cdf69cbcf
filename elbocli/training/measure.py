"""Measure the speed of training with the real network and batch: `elbo train --dry-run`."""

import os
import time
from typing import Any

from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.runs.settings import Resolved
from elbocli.runtime.device import Precision, card_bytes, choose_device
from elbocli.runtime.processes import World
from elbocli.training.state import TrainState
from elbocli.training.step import check, update

# steps to measure after the first; seconds after which fewer are enough
STEPS = 5
ENOUGH_S = 10.0
MOST_CPU_TFLOP = 1.0  # of a step on a CPU, where more would take minutes
NOT_MEASURED = "not measured: {}"


def measured_time(resolved: Resolved, dataset: Dataset, plan: dict[str, Any]) -> dict[str, float] | str:
    """Return seconds per step and minutes of the run from a few updates on this device, or why nothing was measured.

    plan: from `plan.plan`. The minutes leave out previews, validation, scores and compilation.
    """
    if plan["devices"] > 1:
        return NOT_MEASURED.format("the run has several processes")
    settings = resolved.settings
    try:
        device = choose_device(settings.device)
    except UsageError as error:
        return NOT_MEASURED.format(error)
    room = card_bytes(str(device)) or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if plan["memory_MB"]["total"] * 1e6 > room:
        return NOT_MEASURED.format(f"the run doesn't fit into the {room / 1e9:.3g} GB of {device}")
    if device.type == "cpu" and plan["compute"]["step_TFLOP"] > MOST_CPU_TFLOP:
        return NOT_MEASURED.format("a step takes too long on this CPU")
    with Precision(settings.precision, device).applied(benchmark=True):
        state = TrainState(resolved, dataset, World(device=device))
        update(state)  # the first update also allocates memory and chooses algorithms
        check(state)
        begun = time.monotonic()
        done = 0
        while done < STEPS and time.monotonic() - begun < ENOUGH_S:
            update(state)
            done += 1
        check(state)  # waits for the device
        seconds = (time.monotonic() - begun) / done
    return {"step_s": float(f"{seconds:.3g}"), "run_minutes": float(f"{seconds * settings.steps / 60:.3g}")}
