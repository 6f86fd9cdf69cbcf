"""The ADM U-Net, built from a config.

Source: Dhariwal & Nichol 2021, in the layout of Karras et al. 2022, whose ImageNet-64 network has 295,899,267
parameters at 1000 classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from elbocli.nn.networks import Network, explained, network
from elbocli.nn.networks.blocks import Block, Conditioning, Fourier, LevelsConfig, norm, zeroed


@dataclass(frozen=True)
class UNetConfig(LevelsConfig):
    """attention: sizes in pixels that have it. Raises UsageError when the levels don't fit the image."""

    attention: tuple[int, ...] = explained("Sizes in pixels, of levels, whose blocks have self-attention.")

    def for_size(self, image_size: int) -> Self:
        """The same network for another size, its attention as many halvings down as it was."""
        new = replace(self, image_size=image_size)
        return replace(new, attention=tuple(side * new.side // self.side for side in self.attention))


@network("unet", config=UNetConfig, source="Dhariwal & Nichol 2021")
class UNet(Network):
    """The network of a UNetConfig; its units are its residual blocks."""

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        width = 4 * config.channels
        self.conditioning = Conditioning(Fourier(config.channels), width, config.num_classes)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

        def block(cin: int, cout: int, size: int, resample: str = "") -> Block:
            return Block(
                cin, cout, width, config.dropout, attention=size in config.attention and not resample, resample=resample
            )

        now = config.channels * config.levels[0]
        self.first = nn.Conv2d(config.image_channels, now, 3, padding=1)
        skips = [now]
        size = config.side
        for depth, multiple in enumerate(config.levels):
            if depth:
                size //= 2
                self.down.append(block(now, now, size, "down"))
                skips.append(now)
            for _ in range(config.blocks):
                self.down.append(block(now, config.channels * multiple, size))
                now = config.channels * multiple
                skips.append(now)
        self.middle = nn.ModuleList(
            [Block(now, now, width, config.dropout, attention=True), Block(now, now, width, config.dropout)]
        )
        for depth, multiple in reversed(list(enumerate(config.levels))):
            if depth < len(config.levels) - 1:
                size *= 2
                self.up.append(block(now, now, size, "up"))
            for _ in range(config.blocks + 1):
                self.up.append(block(now + skips.pop(), config.channels * multiple, size))
                now = config.channels * multiple
        self.norm = norm(now)
        self.last = zeroed(nn.Conv2d(now, config.image_channels, 3, padding=1))

    def units(self) -> list[nn.Module]:
        """Residual blocks, from the first to the last."""
        return [*self.down, *self.middle, *self.up]

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
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
