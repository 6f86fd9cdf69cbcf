"""Families of networks: one name for each, its config, its section in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from elbocli.errors import FormatError
from elbocli.nn.blocks import Network
from elbocli.nn.unet import UNet, UNetConfig
from elbocli.nn.uvit import UViT, UViTConfig

NetworkConfig = UNetConfig | UViTConfig
MODULES: dict[type, Any] = {UNetConfig: UNet, UViTConfig: UViT}
CONFIGS: dict[str, Any] = {config.family: config for config in (UNetConfig, UViTConfig)}

KINDS: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) in (int, float),
    "str": lambda value: isinstance(value, str),
    "tuple[int, ...]": lambda value: isinstance(value, tuple) and all(type(each) is int for each in value),
}
"""Whether a value from a file is what a config's field is declared to be."""


def build(config: NetworkConfig) -> Network:
    """A new network; under `torch.device("meta")` without memory."""
    return MODULES[type(config)](config)


def config_of(section: Mapping[str, Any], where: object) -> NetworkConfig:
    """The config that a section `network` describes; without `family` it is a U-Net's. where: for messages.

    Raises FormatError for keys that the family doesn't have, UsageError when they don't fit each other.
    """
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}
    family = values.pop("family", UNetConfig.family)
    if family not in CONFIGS:
        raise FormatError(f"{where}: network family {family!r} is not known; known: {', '.join(CONFIGS)}")
    for field in fields(CONFIGS[family]):
        if field.name in values and not KINDS[str(field.type)](values[field.name]):
            raise FormatError(f"{where}: network {field.name} is {section[field.name]!r}, expected {field.type}")
    try:
        return CONFIGS[family](**values)
    except TypeError as error:
        raise FormatError(f"{where}: section 'network' is not one of family {family!r}: {error}") from error


def section_of(config: NetworkConfig) -> dict[str, Any]:
    """What config_of reads back."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    return {"family": config.family, **values}


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters())


def place(network: Network, device: torch.device) -> Network:
    """Move to a device, in the memory layout of its images (channels last)."""
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
