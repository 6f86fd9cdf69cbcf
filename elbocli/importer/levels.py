"""Range of levels that a network was trained on, as far as its level code says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elbocli.core.schedule import parse_level_code
from elbocli.core.schedule_curves import SCHEDULES

if TYPE_CHECKING:
    from elbocli.importer.formats import ImportOptions


def range_of(code: str) -> tuple[float, float] | None:
    """λ of the noisiest and the cleanest timestep that a code counts; None where it knows every λ. Raises UsageError."""
    said = parse_level_code(code)
    counted = SCHEDULES[said.name].bind(said.params)() if said.name in SCHEDULES else None
    return None if counted is None else counted.support


def timestep_settings(code: str) -> dict[str, Any]:
    """Settings of a network that was trained by the mean squared error of eps over the timesteps that a code counts.

    Schedule, weighting and range; none where the code counts no timesteps. Raises UsageError.
    """
    spec, ends = parse_level_code(code).spec, range_of(code)
    if ends is None:
        return {}
    return {"schedule": spec, "weighting": f"eps-mse@{spec}", "logsnr_min": ends[0], "logsnr_max": ends[1]}


def range_settings(code: str, options: ImportOptions) -> tuple[dict[str, Any], list[str]]:
    """(logsnr_min and logsnr_max, where the code counts timesteps; what the user should know). Raises UsageError."""
    ends = range_of(code)
    if ends is not None:
        return {"logsnr_min": ends[0], "logsnr_max": ends[1]}, []
    if None in (options.logsnr_min, options.logsnr_max):
        return {}, [
            "nothing says which levels it was trained on: taken to be -15 to 15, unless --logsnr-min and --logsnr-max say it"
        ]
    return {}, []
