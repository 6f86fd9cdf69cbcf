"""The network of a run on a dataset: a preset's, or that of other weights, for its images and classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from elbocli.files.dataset import Dataset
from elbocli.nn.networks import NetworkConfig, build, config_of, count_parameters
from elbocli.nn.presets import Preset
from elbocli.run.preset_data import PresetData

Data = Dataset | PresetData
FLOAT = 4


def of_preset(preset: Preset, given: Mapping[str, Any], dataset: Data) -> NetworkConfig:
    """The preset's network for this dataset."""
    classes = dataset.num_classes if given.get("conditional", dataset.num_classes > 1) else 0
    section = {**preset.network, **({"dropout": given["dropout"]} if "dropout" in given else {})}
    made_for = preset.data.image_size if preset.data else dataset.image_size
    fits = {"image_size": made_for, "image_channels": dataset.channels, "num_classes": classes}
    return config_of({**section, **fits}, f"preset {preset.name}").for_size(dataset.image_size)


def of_basis(network: NetworkConfig, given: Mapping[str, Any], dataset: Data) -> NetworkConfig:
    """The same network for this dataset: it sees classes if it did, and only its size, channels and classes change."""
    classes = dataset.num_classes if given.get("conditional", network.num_classes > 0) else 0
    kept = replace(network, image_channels=dataset.channels, dropout=given.get("dropout", network.dropout))
    return kept.for_classes(classes).for_size(dataset.image_size)


def of_initial(network: NetworkConfig, given: Mapping[str, Any], dataset: Data) -> NetworkConfig:
    """The network of other weights for this dataset: it sees classes if it did and there are several, or when asked to."""
    conditional = given.get("conditional", network.num_classes > 0 and dataset.num_classes > 1)
    return of_basis(network, {**given, "conditional": conditional}, dataset)


def fits_card(preset: Preset, dataset: Data, room: int | None) -> bool:
    """Tell whether a card of so many bytes, None for any, holds a preset's weights, gradients, moments and average, with
    as much again for what a step computes.
    """
    if room is None:
        return True
    with torch.device("meta"):
        weights = count_parameters(build(of_preset(preset, {}, dataset)))
    return 2 * 5 * FLOAT * weights <= room
