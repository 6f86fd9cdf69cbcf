"""scheduler_config.json of diffusers: what its training timesteps are, and what its network predicts.

Only facts of training are read: how a sampler spaces or rescales its steps doesn't change the objective.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from elbocli.core.schedule_curves import BETAS, MOST_TIMESTEPS, FmOt, Moved, ScheduleCurve, Steps, logsnr_of_betas
from elbocli.errors import FormatError
from elbocli.files.reading import reading
from elbocli.files.records import read_json

TARGETS = {"epsilon": "eps", "sample": "x", "v_prediction": "v", "flow_prediction": "u"}


def load(path: Path) -> dict[str, Any]:
    """The JSON object in a scheduler's configuration. Raises FormatError."""
    config = read_json(path)
    if not {"num_train_timesteps", "trained_betas"} & config.keys() and not _is_flow(config):
        raise FormatError(f"{path}: not a scheduler_config.json of diffusers: it has no 'num_train_timesteps'")
    return config


def read_config(path: Path) -> tuple[str, ScheduleCurve]:
    """(prediction, curve) of a scheduler's configuration. Raises FormatError, which says what to change."""
    config = load(path)
    kind = str(config.get("prediction_type", "flow_prediction" if _is_flow(config) else "epsilon"))
    if kind not in TARGETS:
        raise FormatError(f"{path}: prediction_type is {kind!r}; known are {', '.join(TARGETS)}")
    if _is_flow(config):
        return TARGETS[kind], _flow(path, config)
    beta = _betas(path, config)
    scale = _number(path, config.get("snr_shift_scale", 1.0), "snr_shift_scale", above=0)
    logsnr = logsnr_of_betas(beta, snr_scale=scale, zero_terminal=config.get("rescale_betas_zero_snr") is True)
    with reading(path):
        return TARGETS[kind], Steps(logsnr)


def _is_flow(config: dict[str, Any]) -> bool:
    return str(config.get("_class_name", "")).startswith("FlowMatch") or config.get("use_flow_sigmas") is True


def _flow(path: Path, config: dict[str, Any]) -> ScheduleCurve:
    """t′ = s·t/(1 + (s−1)t) on the straight path: (1−t′)/t′ = (1−t)/(s·t), so λ′ = λ − 2 log s."""
    if config.get("use_dynamic_shifting") is True:
        raise FormatError(
            f"{path}: with use_dynamic_shifting the shift depends on the images; "
            "write it yourself: u-mse@fm-ot:shift=S with S = -2 log(shift)"
        )
    key = "flow_shift" if "flow_shift" in config else "shift"
    shift = _number(path, config.get(key, 1.0), key, above=0)
    return Moved(FmOt(), -2 * math.log(shift))


def _betas(path: Path, config: dict[str, Any]) -> Any:
    import torch

    given = config.get("trained_betas")
    if given is not None:
        if not isinstance(given, list) or not 2 <= len(given) <= MOST_TIMESTEPS:
            raise FormatError(f"{path}: trained_betas must be a list of 2 to {MOST_TIMESTEPS} numbers")
        beta = torch.tensor([_number(path, value, "a beta of trained_betas") for value in given], dtype=torch.float64)
    else:
        count = config.get("num_train_timesteps")
        if type(count) is not int or not 2 <= count <= MOST_TIMESTEPS:
            wanted = f"a whole number from 2 to {MOST_TIMESTEPS}"
            raise FormatError(f"{path}: num_train_timesteps is {count!r}, not {wanted}")
        with reading(f"{path}: beta_schedule"):
            declared = BETAS.find(str(config.get("beta_schedule")))
        ends = [_number(path, config.get(key), key, above=0) for key in ("beta_start", "beta_end")]
        beta = declared.make(*ends, count)
    wrong = [value for value in beta.tolist() if not 0 < value < 1]
    if wrong:
        raise FormatError(f"{path}: a beta is {wrong[0]:g}; each must lie between 0 and 1")
    return beta


def _number(path: Path, value: Any, what: str, above: float = -math.inf) -> float:
    if type(value) in (int, float) and above < value and abs(value) <= sys.float_info.max:
        return float(value)
    least = f" above {above:g}" if above > -math.inf else ""
    raise FormatError(f"{path}: {what} is {str(value)[:40]}, not a number{least}")
