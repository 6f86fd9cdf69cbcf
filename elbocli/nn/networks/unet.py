"""The ADM U-Net, built from a config.

Source: Dhariwal & Nichol 2021, in the layout of Karras et al. 2022, whose ImageNet-64 network has 295,899,267
parameters at 1000 classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from elbocli.core.schedule import parse_level_code
from elbocli.errors import UsageError
from elbocli.nn.networks import Network, explained, network
from elbocli.nn.networks.blocks import (
    CODE,
    EPS,
    HEAD_WIDTH,
    Block,
    Conditioning,
    Fourier,
    LevelsConfig,
    heads_of,
    norm,
    zeroed,
)


@dataclass(frozen=True)
class UNetConfig(LevelsConfig):
    """attention: sizes in pixels that have it. Levels may be fractions, of which `channels` makes whole numbers.

    Raises UsageError when the levels don't fit the image, or heads and groups the levels.
    """

    attention: tuple[int, ...] = explained("Sizes in pixels, of levels, whose blocks have self-attention.")
    middle_attention: bool = explained("Whether the middle, at the smallest size, has it too.", default=True)
    heads: int = explained("Heads of all attention; 0: as many as head_width makes.", default=0)
    head_width: int = explained(
        "Channels of a head; wider where that does not divide a level's, one head where it is more.", default=HEAD_WIDTH
    )
    groups: int = explained("Groups of every norm; 0: 32, or fewer, of 4 channels each.", default=0)
    norm_eps: float = explained("What norms add to the variance.", default=EPS)
    embedding: int = explained("Width of the code of the noise level and the class; 0: 4 times channels.", default=0)
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
        try:
            object.__setattr__(self, "code", parse_level_code(self.code).spec)
        except UsageError as error:
            raise UsageError(f"network: code {self.code!r}: {error}") from error
        if min(self.heads, self.groups, self.embedding) < 0 or self.head_width < 1:
            raise UsageError(
                f"network: heads {self.heads}, groups {self.groups} and embedding {self.embedding} can't be negative, "
                f"and head_width {self.head_width} must be positive"
            )
        if not 0 < self.norm_eps < 1:
            raise UsageError(f"network: norm_eps is {self.norm_eps:g}; it must be above 0 and below 1")
        if self.heads and self.head_width != HEAD_WIDTH:
            raise UsageError(
                f"network: heads {self.heads} and head_width {self.head_width} both say how many heads there are; "
                "leave one out"
            )
        for depth, level in enumerate(self.levels):
            exact = self.channels * level
            if not math.isclose(exact, self.width(depth)) or self.width(depth) < 1:
                raise UsageError(
                    f"network: a level {level:g} of {self.channels} channels has {exact:g}, no whole number"
                )
            if self.groups and self.width(depth) % self.groups:
                raise UsageError(
                    f"network: {self.groups} groups do not divide the {self.width(depth)} channels of a level"
                )
            if self.heads and self.attends(depth) and self.width(depth) % self.heads:
                raise UsageError(
                    f"network: {self.heads} heads do not divide the {self.width(depth)} channels of a level"
                )

    def width(self, depth: int) -> int:
        """Channels of a level."""
        return round(self.channels * self.levels[depth])

    def attends(self, depth: int) -> bool:
        """Tell whether anything at a level's size has attention."""
        last = depth == len(self.levels) - 1
        return self.side >> depth in self.attention or (last and self.middle_attention)

    def for_size(self, image_size: int) -> Self:
        """The same network for another size, its attention as many halvings down as it was."""
        new = replace(self, image_size=image_size)
        return replace(new, attention=tuple(side * new.side // self.side for side in self.attention))


@network("unet", config=UNetConfig, source="Dhariwal & Nichol 2021")
class UNet(Network):
    """The network of a UNetConfig; its units are its residual blocks."""

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        width = config.embedding or 4 * config.channels
        self.conditioning = Conditioning(Fourier(config.channels, config.code), width, config.num_classes)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

        def block(cin: int, cout: int, attention: bool = False, resample: str = "") -> Block:
            heads = config.heads or heads_of(cout, config.head_width)
            return Block(cin, cout, width, config.dropout, attention, resample, heads, config.groups, config.norm_eps)

        now = config.width(0)
        self.first = nn.Conv2d(config.image_channels, now, 3, padding=1)
        skips = [now]
        for depth in range(len(config.levels)):
            if depth:
                self.down.append(block(now, now, resample="down"))
                skips.append(now)
            for _ in range(config.blocks):
                self.down.append(block(now, config.width(depth), config.side >> depth in config.attention))
                now = config.width(depth)
                skips.append(now)
        self.middle = nn.ModuleList([block(now, now, config.middle_attention), block(now, now)])
        for depth in reversed(range(len(config.levels))):
            if depth < len(config.levels) - 1:
                self.up.append(block(now, now, resample="up"))
            for _ in range(config.blocks + 1):
                self.up.append(block(now + skips.pop(), config.width(depth), config.side >> depth in config.attention))
                now = config.width(depth)
        self.norm = norm(now, config.groups, config.norm_eps)
        self.last = zeroed(nn.Conv2d(now, config.image_channels * (1 + config.variance), 3, padding=1))

    def units(self) -> list[nn.Module]:
        """Residual blocks, from the first to the last."""
        return [*self.down, *self.middle, *self.up]

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """All that the last layer gives, [B, 2C, H, W] with the learned variance's half behind, else what forward does."""
        code = self.conditioning(logsnr, labels)
        x = self.first(self.config.padded(z))
        skips = [x]
        for block in self.down:
            x = self.through(block, x, code)
            skips.append(x)
        for block in self.middle:
            x = self.through(block, x, code)
        for block in self.up:
            x = self.through(block, x, code, None if block.resample else skips.pop())
        return self.config.cut(self.last(self.norm(x, silu=True)))
