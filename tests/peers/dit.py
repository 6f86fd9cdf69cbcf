"""DiT's network, and SiT's and REPA's, stated again as modules with their own names.

Source: Peebles & Xie 2023, section 3. `.double()` makes a network compute in float64.
"""

import math

import torch
from peers.parts import code
from torch import Tensor, nn
from torch.nn import functional as F

CODE = 256


def places(side: int, width: int) -> Tensor:
    """Code of each place, [side², width] float64: a sine and a cosine of its column, then of its row, at falling speeds."""
    out = torch.empty(side, side, width, dtype=torch.float64)
    for at in range(width // 4):
        speed = 10_000.0 ** (-4 * at / width)
        for number in range(side):
            for start, where in ((0, (slice(None), number)), (width // 2, (number, slice(None)))):
                out[(*where, start + at)] = math.sin(number * speed)
                out[(*where, start + width // 4 + at)] = math.cos(number * speed)
    return out.flatten(0, 1)


def normed(x: Tensor) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x, x.shape[2:], eps=1e-6)


class Block(nn.Module):
    """One block of the transformer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        six = self.adaLN_modulation(told)[:, None].chunk(6, 2)
        qkv = self.attn["qkv"](normed(x) * (1 + six[1]) + six[0])
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + six[2] * self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        wide = self.mlp["fc1"](normed(x) * (1 + six[4]) + six[3])
        return x + six[5] * self.mlp["fc2"](F.gelu(wide, approximate="tanh"))


class DiT(nn.Module):
    """The network. side: patches of an image's side. projectors: REPA's, which only training needs."""

    def __init__(
        self,
        side: int = 4,
        patch: int = 2,
        width: int = 128,
        depth: int = 2,
        channels: int = 4,
        outputs: int = 8,
        rows: int = 11,
        projectors: int = 0,
        heads: int = 2,
    ):
        super().__init__()
        self.side = side
        self.patch = patch
        self.pos_embed = nn.Parameter(places(side, width).float()[None], requires_grad=False)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        two = nn.Sequential(nn.Linear(CODE, width), nn.SiLU(), nn.Linear(width, width))
        self.t_embedder = nn.ModuleDict({"mlp": two})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(rows, width)} if rows else {})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        wide = 2 * width
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Linear(width, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU(), nn.Linear(wide, 48))
            for _ in range(projectors)
        )
        modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, wide))
        self.final_layer = nn.ModuleDict({"linear": nn.Linear(width, patch**2 * outputs), "adaLN_modulation": modulation})

    def forward(self, x: Tensor, time: Tensor, rows: Tensor | None) -> Tensor:
        """All outputs for x [B, C, H, W] at the number [B] that it is told, and rows [B] int64 of its table."""
        h = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + places(self.side, self.pos_embed.shape[2])
        told = self.t_embedder["mlp"](code(time, CODE))
        if rows is not None:
            told = told + self.y_embedder["embedding_table"](rows)
        for block in self.blocks:
            h = block(h, told)
        shift, scale = self.final_layer["adaLN_modulation"](told)[:, None].chunk(2, 2)
        numbers = self.final_layer["linear"](normed(h) * (1 + scale) + shift)
        by_channel = numbers.unflatten(2, (self.patch**2, -1)).transpose(2, 3).flatten(2).transpose(1, 2)
        return F.fold(by_channel, x.shape[2:], self.patch, stride=self.patch)
