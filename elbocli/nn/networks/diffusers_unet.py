"""UNet2DModel of diffusers, of any layout, run and trained by diffusers itself: an extra.

Its config.json is held as text without what a network's config says anyway: size, channels, classes, dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elbocli.core.schedule import parse_level_code
from elbocli.errors import UsageError
from elbocli.files.reading import one_line, quiet, reading
from elbocli.files.records import parse_json
from elbocli.nn.networks import Network, NetworkConfig, explained, network
from elbocli.nn.networks.blocks import named_labels

CLASS = "UNet2DModel"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
"""Files in a folder of one of diffusers' models."""
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
"""Settings that `elbo import` keeps."""


def diffusers_class(name: str, where: object) -> Any:
    """A class of diffusers. where: the file or folder that needs it. Raises UsageError without diffusers."""
    with quiet():
        try:
            import diffusers

            return getattr(diffusers, name)
        except (ImportError, RuntimeError) as error:
            raise UsageError(
                f"{where}: {name} needs the extra 'latents': pip install 'elbocli[latents]' ({one_line(error)})"
            ) from error


@dataclass(frozen=True, kw_only=True)
class DiffusersUNetConfig(NetworkConfig):
    """Config of a UNet2DModel. Raises UsageError for a code that is none, FormatError for no JSON."""

    model: str = explained(f"JSON of the settings of diffusers' {CLASS}, without size, channels and classes.")
    code: str = explained("Number that the network is told instead of logsnr, a level code.", default="t-linear")
    null_class: bool = explained("Whether 'no class' has a learned code, the last, and not none.", default=False)
    variance: bool = explained("Whether there are as many outputs again, for the variance.", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings()

    def settings(self) -> dict[str, Any]:
        """Settings for diffusers. Raises FormatError."""
        return parse_json(self.model, "network: model")


class _Classes(nn.Module):
    """labels [B] → [B, width]; class −1 has the last row of the table, or adds nothing."""

    def __init__(self, classes: int, width: int, null_class: bool):
        super().__init__()
        weight = torch.empty(classes + null_class, width)
        self.weight = nn.Parameter(weight if weight.is_meta else weight.normal_())
        self.null = classes if null_class else -1

    def forward(self, labels: Tensor) -> Tensor:
        labels = named_labels(labels, self.null, labels)
        named = (labels >= 0).to(self.weight.dtype)[:, None]
        return named * nn.functional.embedding(labels.clamp(min=0), self.weight)


@network("diffusers-unet", config=DiffusersUNetConfig, source="diffusers: UNet2DModel")
class DiffusersUNet(Network):
    """The network of a DiffusersUNetConfig. Raises UsageError without diffusers, FormatError where it makes no such network."""

    def __init__(self, config: DiffusersUNetConfig):
        super().__init__(config)
        make, settings = diffusers_class(CLASS, "network"), config.settings()
        with quiet(), reading(f"network: diffusers can't make a {CLASS} of its settings"):
            self.model: Any = make(
                **settings,
                sample_size=config.image_size,
                in_channels=config.image_channels,
                out_channels=config.image_channels * (1 + config.variance),
                dropout=config.dropout,
            )
        if config.num_classes:
            width = self.model.time_embedding.linear_2.out_features
            self.model.class_embedding = _Classes(config.num_classes, width, config.null_class)
        multiple = 1 << len(self.model.config.block_out_channels) - 1
        if config.image_size % multiple:
            raise UsageError(
                f"network: this {CLASS} takes images whose side is a multiple of {multiple}, and not {config.image_size} "
                "pixels; pack with another --size"
            )
        self.code = parse_level_code(config.code)

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """See Network."""
        labels = None if self.model.class_embedding is None else named_labels(labels, -1, logsnr)
        return self.model(z, self.code(logsnr), labels, return_dict=False)[0]
