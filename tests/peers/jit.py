"""JiT's network, stated again as modules with its own names, and its trainer's file.

Source: Li & He 2025, arXiv:2511.13720. `.double()` makes a network compute in float64.
"""

import argparse
import math
from typing import Any

import torch
from peers.dit import CODE, places
from peers.parts import code, draw
from torch import Tensor, nn
from torch.nn import functional as F

FASTEST = 10_000.0  # ratio of the highest to the lowest frequency of rotation


class RMSNorm(nn.Module):
    """Division by the root of the mean square, times weights."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight


def rotated(x: Tensor, side: int) -> Tensor:
    """Rotate neighbouring channels (2j, 2j + 1) of x [B, heads, tokens, width], except in the class tokens, which come first.

    The first half of the pairs turns by the token's row times a frequency, the second by its column.
    """
    width = x.shape[3]
    before = x.shape[2] - side**2
    out = x.clone()
    for token in range(side**2):
        for pair in range(width // 2):
            at = token // side if pair < width // 4 else token % side
            angle = at * FASTEST ** (-(pair % (width // 4)) / (width // 4))
            one = x[:, :, before + token, 2 * pair]
            other = x[:, :, before + token, 2 * pair + 1]
            out[:, :, before + token, 2 * pair] = one * math.cos(angle) - other * math.sin(angle)
            out[:, :, before + token, 2 * pair + 1] = other * math.cos(angle) + one * math.sin(angle)
    return out


class Attention(nn.Module):
    """Attention with normalised, rotated queries and keys."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, side: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = rotated(self.q_norm(q), side)
        k = rotated(self.k_norm(k), side)
        chance = (q @ k.mT / math.sqrt(q.shape[3])).softmax(3)
        return self.proj((chance @ v).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A gated layer of two thirds of four times the width."""

    def __init__(self, width: int):
        super().__init__()
        hidden = int(4 * width * 2 / 3)
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, 2)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """One block of the transformer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.norm2 = RMSNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = SwiGLU(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, told: Tensor, side: int) -> Tensor:
        six = self.adaLN_modulation(told)[:, None].chunk(6, 2)
        x = x + six[2] * self.attn(self.norm1(x) * (1 + six[1]) + six[0], side)
        return x + six[5] * self.mlp(self.norm2(x) * (1 + six[4]) + six[3])


class JiT(nn.Module):
    """The network. side: patches of an image's side. start: number of blocks before the class tokens."""

    def __init__(
        self,
        side: int = 4,
        patch: int = 2,
        width: int = 32,
        depth: int = 3,
        heads: int = 2,
        bottleneck: int = 6,
        rows: int = 11,
        tokens: int = 3,
        channels: int = 3,
    ):
        super().__init__()
        self.side = side
        self.patch = patch
        self.start = depth // 3
        self.pos_embed = nn.Parameter(places(side, width).float()[None], requires_grad=False)
        proj1 = nn.Conv2d(channels, bottleneck, patch, patch, bias=False)
        self.x_embedder = nn.ModuleDict({"proj1": proj1, "proj2": nn.Conv2d(bottleneck, width, 1)})
        two = nn.Sequential(nn.Linear(CODE, width), nn.SiLU(), nn.Linear(width, width))
        self.t_embedder = nn.ModuleDict({"mlp": two})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(rows, width)})
        self.in_context_posemb = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        last = nn.Linear(width, patch**2 * channels)
        self.final_layer = nn.ModuleDict({"norm_final": RMSNorm(width), "linear": last, "adaLN_modulation": modulation})

    def forward(self, x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """Images for x [B, C, H, W] at time [B], where 1 is data, and rows [B] int64 of its table; the last is 'no class'."""
        h = self.x_embedder["proj2"](self.x_embedder["proj1"](x)).flatten(2).transpose(1, 2)
        h = h + places(self.side, self.pos_embed.shape[2]).to(h.dtype)
        of_class = self.y_embedder["embedding_table"](rows)
        told = self.t_embedder["mlp"](code(time, CODE).to(h.dtype)) + of_class
        for index, block in enumerate(self.blocks):
            if index == self.start:
                h = torch.cat([of_class[:, None] + self.in_context_posemb, h], 1)
            h = block(h, told, self.side)
        shift, scale = self.final_layer["adaLN_modulation"](told)[:, None].chunk(2, 2)
        h = self.final_layer["norm_final"](h[:, -(self.side**2) :]) * (1 + scale) + shift
        numbers = self.final_layer["linear"](h)
        by_channel = numbers.unflatten(2, (self.patch**2, -1)).transpose(2, 3).flatten(2).transpose(1, 2)
        return F.fold(by_channel, x.shape[2:], self.patch, stride=self.patch)


def training_file(script: dict[str, Any] | None = None, **shape: Any) -> dict[str, Any]:
    """Return a checkpoint as JiT's trainer saves it: last weights, two averages, optimizer, epoch and arguments.

    script: the trainer's arguments; None: the checkpoint has none.
    """
    three = {
        key: {f"net.{name}": tensor for name, tensor in draw(JiT, seed=seed, **shape).state_dict().items()}
        for seed, key in enumerate(("model", "model_ema1", "model_ema2"))
    }
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}
    saved = {**three, "optimizer": {"state": moments, "param_groups": [{"lr": 2e-4}]}, "epoch": 7}
    return saved if script is None else {**saved, "args": argparse.Namespace(**script)}
