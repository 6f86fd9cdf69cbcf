"""EDM's DhariwalUNet and its preconditioning, stated again as modules with EDM's own names.

Source: Karras et al. 2022, appendix F.2 and table 1. `.double()` makes a network compute in float64.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peers.edm_files import Persistent
from peers.parts import RESIZE, attention, code, unet_blocks
from torch import Tensor, nn
from torch.nn import functional as F

HEAD = 64
"""Least number of channels of a head of attention."""


class Linear(Persistent, nn.Linear):
    """A matrix."""


class GroupNorm(Persistent, nn.GroupNorm):
    """Group norm of 32 groups, or of groups of four."""

    def __init__(self, count: int):
        super().__init__(min(32, count // 4), count)


class Conv2d(Persistent, nn.Conv2d):
    """A convolution after an image is resized. kernel: 0 only resizes."""

    def __init__(self, before: int, after: int, kernel: int, way: str = ""):
        super().__init__(before, after, kernel or 1, padding=kernel // 2)
        self.way = way
        if not kernel:
            self.weight = self.bias = None  # type: ignore[assignment]
        if way:
            self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        x = RESIZE[self.way](x)
        return x if self.weight is None else super().forward(x)


class UNetBlock(Persistent, nn.Module):
    """One residual block. way: down, up, or anything else."""

    def __init__(self, before: int, after: int, width: int, attends: bool, way: str):
        super().__init__()
        way = way if way in RESIZE else ""
        self.dropout = 0.1
        self.norm0 = GroupNorm(before)
        self.conv0 = Conv2d(before, after, 3, way)
        self.affine = Linear(width, 2 * after)
        self.norm1 = GroupNorm(after)
        self.conv1 = Conv2d(after, after, 3)
        self.skip = Conv2d(before, after, 0 if way else 1, way) if way or before != after else None
        self.num_heads = after // HEAD if attends else 0
        if self.num_heads:
            self.norm2 = GroupNorm(after)
            self.qkv = Conv2d(after, 3 * after, 1)
            self.proj = Conv2d(after, after, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.affine(told)[:, :, None, None].chunk(2, 1)
        h = self.norm1(self.conv0(F.silu(self.norm0(x)))) * (1 + scale) + shift
        x = self.conv1(F.silu(h)) + (x if self.skip is None else self.skip(x))
        if not self.num_heads:
            return x
        qkv = self.qkv(self.norm2(x)).flatten(2)
        q, k, v = qkv.unflatten(1, (self.num_heads, -1, 3)).unbind(3)  # a channel's q, k, v are neighbours
        return x + self.proj(attention(q, k, v).view_as(x))


class DhariwalUNet(Persistent, nn.Module):
    """The network. Levels narrower than a head have no attention, nor has the middle."""

    def __init__(
        self,
        size: int = 16,
        channels: int = 32,
        levels: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (8,),
        classes: int = 0,
        image_channels: int = 3,
        embedding: int = 4,
        augment: int = 0,
    ):
        super().__init__()
        width = embedding * channels
        self.map_augment = Linear(augment, channels, bias=False) if augment else None
        self.map_layer0 = Linear(channels, width)
        self.map_layer1 = Linear(width, width)
        self.map_label = Linear(classes, width, bias=False) if classes else None
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        for name, before, after, attends in unet_blocks(size, [channels * level for level in levels], blocks, attention):
            side, _, short = name.partition(".")
            way = name.rpartition("_")[2]
            block = UNetBlock(before, after, width, attends, way) if before else Conv2d(image_channels, after, 3)
            getattr(self, side)[short] = block
        self.out_norm = GroupNorm(after)
        self.out_conv = Conv2d(after, image_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        """F(x, noise, labels): noise [B] what the network is told of σ, labels [B, classes] one-hot, or zero for none."""
        told = self.map_layer1(F.silu(self.map_layer0(code(noise, self.map_layer0.in_features))))
        if labels is not None and self.map_label is not None:
            told = told + self.map_label(labels.to(told))
        told = F.silu(told)
        skips = []
        for block in self.enc.values():
            x = block(x) if isinstance(block, Conv2d) else block(x, told)
            skips.append(x)
        for block in self.dec.values():
            if x.shape[1] != block.norm0.num_channels:
                x = torch.cat([x, skips.pop()], 1)
            x = block(x, told)
        return self.out_conv(F.silu(self.out_norm(x)))


class EDMPrecond(Persistent, nn.Module):
    """D(y; σ), y = x + σ ε: EDM's preconditioning of F, which is told ln(σ)/4. shape: that of the network."""

    def __init__(self, sigma_data: float = 0.5, **shape: Any):
        super().__init__()
        self.sigma_data = sigma_data
        self.sigma_min = 0
        self.sigma_max = float("inf")
        self.use_fp16 = True
        self.model = DhariwalUNet(**shape)

    def forward(self, y: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Denoise y [B, C, H, W] of noise σ [B]."""
        s = sigma[:, None, None, None]
        total = (s**2 + self.sigma_data**2).sqrt()
        inner = self.model(y / total, sigma.log() / 4, labels)
        return (self.sigma_data / total) ** 2 * y + s * self.sigma_data / total * inner
