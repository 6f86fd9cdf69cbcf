"""Names, numbers and settings that EDM's and EDM2's checkpoints share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from elbocli.core.prediction import logsnr_of
from elbocli.core.registry import plain
from elbocli.files.pickles import attributes

LICENCE = "CC BY-NC-SA 4.0, for the weights that NVIDIA published"
LEAST_SIGMA, MOST_SIGMA = 0.002, 80.0
"""The levels that both sample at."""
SIGMA_DATA = 0.5
BLOCK = re.compile(r"(enc|dec)\.(\d+)x\2_(conv|down|up|in[01]|block\d+)\.")
"""The beginning of a name in a block: its way, its side, its place there."""


def counted(blocks: int) -> list[str]:
    """The names of a level's blocks."""
    return [f"block{index}" for index in range(blocks)]


def known(found: Any) -> Mapping[str, Any]:
    """Attributes of a pickled object, or of one that a training state keeps as their dict."""
    return found if isinstance(found, dict) else attributes(found)


def number(found: Any, name: str, usual: float) -> float:
    """A number among these attributes; `usual` where there is none."""
    value = known(found).get(name, usual)
    return float(value) if type(value) in (int, float) else usual


def objective(module: Any, loss: Any, usual: tuple[float, float]) -> dict[str, Any]:
    """Settings of the objective, as the network and its loss function say; usual: else mean and spread of ln σ."""
    mean, std = (plain(number(loss, name, value)) for name, value in zip(("P_mean", "P_std"), usual))
    sigma_data = plain(number(module, "sigma_data", SIGMA_DATA))
    return {
        "prediction": f"edm:sigma_data={sigma_data}",
        "weighting": f"edm:mean={mean},std={std},sigma_data={sigma_data}",
        "schedule": f"edm:mean={mean},std={std}",
        "logsnr_min": logsnr_of(MOST_SIGMA),
        "logsnr_max": logsnr_of(LEAST_SIGMA),
        "label_dropout": 0.0,
    }
