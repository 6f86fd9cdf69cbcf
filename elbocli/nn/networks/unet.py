"""The ADM U-Net, built from a config.

Source: Dhariwal & Nichol 2021, in the layout of Karras et al. 2022, whose ImageNet-64 network has 295,899,267
parameters at 1000 classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta
from torch import Tensor, nn

from elbocli.errors import UsageError
from elbocli.files.records import Count
from elbocli.nn.networks import Size, explained, network
from elbocli.nn.networks.blocks import (
    CODE,
    EPS,
    HEAD_WIDTH,
    AttendedConfig,
    Block,
    Conditioning,
    Fourier,
    LevelsNetwork,
    heads_of,
    norm,
    zeroed,
)


@dataclass(frozen=True)
class UNetConfig(AttendedConfig):
    """Levels may be fractions, of which `channels` makes whole numbers.

    Raises UsageError when the levels don't fit the image, or heads and groups the levels.
    """

    middle_attention: bool = explained("Whether the middle, at the smallest size, has it too.", default=True)
    heads: Count = explained("Heads of all attention; 0: as many as head_width makes.", default=0)
    head_width: Size = explained(
        "Channels of a head; wider where that does not divide a level's, one head where it is more.", default=HEAD_WIDTH
    )
    groups: Count = explained("Groups of every norm; 0: 32, or fewer, of 4 channels each.", default=0)
    norm_eps: Annotated[float, Meta(gt=0, lt=1)] = explained("What norms add to the variance.", default=EPS)
    embedding: Count = explained("Width of the code of the noise level and the class; 0: 4 times channels.", default=0)
    code: str = explained(
        "The number that the network is told of the noise level, by its cosines and sines: logsnr:factor=0.5 is "
        "-ln sigma, t:linear a timestep of 1000.",
        default=CODE,
    )
    variance: bool = explained(
        "Whether the last layer gives twice the channels, for a learned variance, which only imported weights have.",
        default=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads and self.head_width != HEAD_WIDTH:
            raise UsageError(
                f"network: heads {self.heads} and head_width {self.head_width} both say how many heads there are; "
                "leave one out"
            )
        for depth, level in enumerate(self.levels):
            width, exact = self.width(depth), self.channels * level
            last = self.middle_attention and depth == len(self.levels) - 1
            heads = self.heads if last or self.side >> depth in self.attention else 0
            if not math.isclose(exact, width) or width < 1 or width % (self.groups or 1) or width % (heads or 1):
                raise UsageError(
                    f"network: a level {level:g} of {self.channels} channels has {exact:g}, which must be a whole number that "
                    f"groups {self.groups} and heads {heads} divide"
                )


@network("unet", config=UNetConfig, source="Dhariwal & Nichol 2021")
class UNet(LevelsNetwork):
    """The network of a UNetConfig; its units are its residual blocks."""

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        width = config.embedding or 4 * config.channels
        self.conditioning = Conditioning(Fourier(config.channels, config.code), width, config.num_classes)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

        def block(cin: int, cout: int, down: bool, attention: bool, resample: str) -> Block:
            heads = config.heads or heads_of(cout, config.head_width)
            return Block(cin, cout, width, config.dropout, attention, resample, heads, config.groups, config.norm_eps)

        self.first = nn.Conv2d(config.image_channels, config.width(0), 3, padding=1)
        now = self.add_blocks(block, config.middle_attention)
        self.norm = norm(now, config.groups, config.norm_eps)
        self.last = zeroed(nn.Conv2d(now, config.image_channels * (1 + config.variance), 3, padding=1))

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """All that the last layer gives, [B, 2C, H, W] with the learned variance's half behind, else what forward does."""
        code = self.conditioning(logsnr, labels)
        x = self.walk(self.first(self.config.padded(z)), code)
        return self.config.cut(self.last(self.norm(x, silu=True)))
