"""UNet2DModel of diffusers, of any layout, run and trained by diffusers itself: an extra.

Its config.json is held as text without what a network's config says anyway: size, channels, classes, dropout.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elbocli.core.registry import nearest
from elbocli.core.schedule import parse_level_code
from elbocli.errors import FormatError, UsageError
from elbocli.files.reading import quiet, reading
from elbocli.files.records import parse_json
from elbocli.nn.diffusers_extra import diffusers_class
from elbocli.nn.networks import Network, NetworkConfig, explained, network

CLASS = "UNet2DModel"
SETTINGS = (
    "center_input_sample",
    "time_embedding_type",
    "time_embedding_dim",
    "freq_shift",
    "flip_sin_to_cos",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "downsample_padding",
    "downsample_type",
    "upsample_type",
    "act_fn",
    "attention_head_dim",
    "norm_num_groups",
    "attn_norm_num_groups",
    "norm_eps",
    "resnet_time_scale_shift",
    "add_attention",
)
"""Settings that diffusers is told as they are."""
MOST_BLOCKS, MOST_LAYERS, MOST_CHANNELS = 16, 64, 1 << 15
TIMES = ("positional", "fourier")
WORD = re.compile(r"\w{1,60}")


def checked_settings(text: str, where: object) -> dict[str, Any]:
    """Settings of a UNet2DModel in JSON: plain words and numbers of sane size, nothing else. Raises FormatError."""

    def refuse(key: str, value: Any, expected: str) -> None:
        raise FormatError(f"{where}: {key} is {str(value)[:60]!r}, expected {expected}")

    settings = parse_json(text, where)
    for key, value in settings.items():
        if key not in SETTINGS:
            raise FormatError(f"{where}: a {CLASS} has no {key[:60]!r}; {nearest(key, SETTINGS)}")
        for each in value if isinstance(value, list) else [value]:
            number = type(each) in (int, float) and math.isfinite(each) and abs(each) <= MOST_CHANNELS
            word = isinstance(each, str) and WORD.fullmatch(each)
            if not (number or word or each is None or isinstance(each, bool)):
                refuse(key, each, "a number of sane size, a word, true, false or null")
    for key, most in (("layers_per_block", MOST_LAYERS), ("block_out_channels", MOST_CHANNELS)):
        value = settings.get(key, 1)
        several = value if isinstance(value, list) else [value]
        if any(type(each) is not int or not 1 <= each <= most for each in several) or len(several) > MOST_BLOCKS:
            refuse(key, value, f"whole numbers from 1 to {most}, {MOST_BLOCKS} at most")
    for key in ("down_block_types", "up_block_types"):
        value = settings.get(key, [])
        if not isinstance(value, list) or len(value) > MOST_BLOCKS:
            refuse(key, value, f"a list of at most {MOST_BLOCKS} kinds of blocks")
    if settings.get("time_embedding_type", TIMES[0]) not in TIMES:
        refuse("time_embedding_type", settings["time_embedding_type"], " or ".join(TIMES))
    return settings


@dataclass(frozen=True)
class DiffusersUNetConfig(NetworkConfig):
    """Config of a UNet2DModel. Raises UsageError for a code that is none, FormatError for settings that can't be."""

    model: str = explained(f"JSON of the settings of diffusers' {CLASS}, without size, channels and classes.")
    code: str = explained(
        "Number that the network is told instead of logsnr, a level code.", default="t-linear", kw_only=True
    )
    null_class: bool = explained(
        "Whether 'no class' has a learned code, the last, and not none.", default=False, kw_only=True
    )
    variance: bool = explained(
        "Whether there are as many outputs again, for the variance.", default=False, kw_only=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_level_code(self.code)
        checked_settings(self.model, "network: model")


class _Classes(nn.Module):
    """labels [B] → [B, width]; class −1 has the last row of the table, or adds nothing."""

    def __init__(self, classes: int, width: int, null_class: bool):
        super().__init__()
        weight = torch.empty(classes + null_class, width)
        self.weight = nn.Parameter(weight if weight.is_meta else weight.normal_())
        self.null = classes if null_class else None

    def forward(self, labels: Tensor) -> Tensor:
        if self.null is not None:
            return nn.functional.embedding(labels.where(labels >= 0, self.null), self.weight)
        named = (labels >= 0).to(self.weight.dtype)[:, None]
        return named * nn.functional.embedding(labels.clamp(min=0), self.weight)


@network("diffusers-unet", config=DiffusersUNetConfig, source="diffusers: UNet2DModel")
class DiffusersUNet(Network):
    """The network of a DiffusersUNetConfig. Raises UsageError without diffusers, FormatError where it makes no such network."""

    def __init__(self, config: DiffusersUNetConfig):
        super().__init__(config)
        where = f"network: {CLASS}"
        make, settings = diffusers_class(CLASS, where, "it"), checked_settings(config.model, where)
        channels = config.image_channels
        with quiet(), reading(f"{where}: diffusers can't make it"):
            self.model: Any = make(
                **settings,
                sample_size=config.image_size,
                in_channels=channels,
                out_channels=2 * channels if config.variance else channels,
                dropout=config.dropout,
            )
        if config.num_classes:
            width = self.model.time_embedding.linear_2.out_features
            self.model.class_embedding = _Classes(config.num_classes, width, config.null_class)
        halvings = len(settings.get("block_out_channels", [0] * 4)) - 1
        if config.image_size % (1 << halvings):
            raise UsageError(
                f"network: this {CLASS} halves the image {halvings} times, and {config.image_size} pixels can't be; pack with "
                f"a --size that is a multiple of {1 << halvings}"
            )
        self.code = parse_level_code(config.code)

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """See Network."""
        if self.model.class_embedding is None:
            labels = None
        elif labels is None:
            labels = torch.full((len(z),), -1, device=z.device)
        return self.model(z, self.code(logsnr), labels, return_dict=False)[0]
