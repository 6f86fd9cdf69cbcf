"""A trained run, opened: what sampling and scoring start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elbocli.core.prediction import Prediction
from elbocli.errors import DataError, FormatError
from elbocli.files.checkpoint import Checkpoint, latest, read_config
from elbocli.loops.settings import Settings, run_settings
from elbocli.nn.blocks import Network
from elbocli.nn.networks import build, config_of, place

WEIGHTS = ("ema", "model")


@dataclass(frozen=True)
class TrainedRun:
    """A network with the weights of a checkpoint, in eval mode on its device."""

    path: Path
    network: Network
    prediction: Prediction
    settings: Settings
    data: dict[str, Any]
    checkpoint: Checkpoint


def open_run(path: Path, device: torch.device, warn: Callable[[str], None], weights: str = "ema") -> TrainedRun:
    """The newest whole checkpoint of a run. Raises FormatError when it is no run, DataError when it has none yet."""
    config = read_config(path)
    checkpoint = latest(path, warn)
    if checkpoint is None:
        raise DataError(f"{path}: no checkpoint yet; let 'elbo train -o {path}' reach its first one")
    settings = run_settings(config["settings"], path / "config.yaml")
    with torch.device("meta"):
        network = build(config_of(config["network"], path / "config.yaml"))
    try:
        network.load_state_dict(checkpoint.weights(weights), assign=True)
    except RuntimeError as error:
        raise FormatError(
            f"{checkpoint.path}: its weights don't fit config.yaml: {' '.join(str(error).split())[:200]}"
        ) from error
    network = place(network, device).eval().requires_grad_(False)
    return TrainedRun(path, network, settings.prediction_object(), settings, config["data"], checkpoint)
