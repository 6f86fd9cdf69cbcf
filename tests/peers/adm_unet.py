"""guided-diffusion's UNetModel, stated again as modules with its own names.

Source: Dhariwal & Nichol 2021, appendix. `.double()` makes a network compute in float64.
"""

from collections.abc import Sequence

import torch
from peers.parts import RESIZE, attention, code
from torch import Tensor, nn


class ResBlock(nn.Module):
    """One residual block. way: down, up or ''."""

    def __init__(self, before: int, after: int, width: int, way: str = ""):
        super().__init__()
        self.way = way
        self.in_layers = nn.Sequential(nn.GroupNorm(32, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * after))
        last = nn.Conv2d(after, after, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, after), nn.SiLU(), nn.Dropout(0.0), last)
        if before != after:
            self.skip_connection = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        h = self.in_layers[2](RESIZE[self.way](self.in_layers[:2](x)))
        scale, shift = self.emb_layers(told)[..., None, None].chunk(2, 1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        x = RESIZE[self.way](x)
        return h + (self.skip_connection(x) if hasattr(self, "skip_connection") else x)


class AttentionBlock(nn.Module):
    """Attention over pixels. heads: None is one for 64 channels. new_order: q, k, v outside the heads; else inside each head."""

    def __init__(self, count: int, heads: int | None, new_order: bool):
        super().__init__()
        self.heads = heads or count // 64
        self.new_order = new_order
        self.norm = nn.GroupNorm(32, count)
        self.qkv = nn.Conv1d(count, 3 * count, 1)
        self.proj_out = nn.Conv1d(count, count, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        else:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        return (flat + self.proj_out(attention(q, k, v))).view_as(x)


class UNetModel(nn.Module):
    """The network."""

    def __init__(
        self,
        size: int = 16,
        channels: int = 32,
        levels: Sequence[float] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (8,),
        classes: int = 0,
        image_channels: int = 3,
        outputs: int = 6,
        heads: int | None = None,
        new_order: bool = False,
    ):
        super().__init__()
        width = 4 * channels

        def parts(before: int, after: int, depth: int, *more: nn.Module) -> nn.ModuleList:
            attends = [AttentionBlock(after, heads, new_order)] if size >> depth in attention else []
            return nn.ModuleList([ResBlock(before, after, width), *attends, *more])

        self.time_embed = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        self.label_emb = nn.Embedding(classes, width) if classes else None
        now = int(channels * levels[0])
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(image_channels, now, 3, padding=1)])])
        skips = [now]
        for depth, level in enumerate(levels):
            goal = int(channels * level)
            for _ in range(blocks):
                self.input_blocks.append(parts(now, goal, depth))
                now = goal
                skips.append(now)
            if depth < len(levels) - 1:
                self.input_blocks.append(nn.ModuleList([ResBlock(now, now, width, "down")]))
                skips.append(now)
        middle = AttentionBlock(now, heads, new_order)
        self.middle_block = nn.ModuleList([ResBlock(now, now, width), middle, ResBlock(now, now, width)])
        self.output_blocks = nn.ModuleList()
        for depth, level in reversed(list(enumerate(levels))):
            goal = int(channels * level)
            for turn in range(blocks + 1):
                up = [ResBlock(goal, goal, width, "up")] if depth and turn == blocks else []
                self.output_blocks.append(parts(now + skips.pop(), goal, depth, *up))
                now = goal
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, outputs, 3, padding=1))

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor | None) -> Tensor:
        """All outputs at timesteps [B], a number that may be a fraction, labels [B] int64."""
        told = self.time_embed(code(timestep, self.time_embed[0].in_features))
        if labels is not None and self.label_emb is not None:
            told = told + self.label_emb(labels)

        def through(parts: nn.Module, x: Tensor) -> Tensor:
            for part in parts.children():
                x = part(x) if isinstance(part, nn.Conv2d) else part(x, told)
            return x

        skips = []
        for parts in self.input_blocks:
            x = through(parts, x)
            skips.append(x)
        x = through(self.middle_block, x)
        for parts in self.output_blocks:
            x = through(parts, torch.cat([x, skips.pop()], 1))
        return self.out(x)
