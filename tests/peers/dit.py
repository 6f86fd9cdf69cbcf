"""DiT's network, and SiT's and REPA's, stated again: a function of a dict of tensors with their own names.

Source: Peebles & Xie 2023, section 3. What names and shapes don't tell, the number of heads, is given.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = dict[str, Tensor]
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


def made(
    side: int = 4,
    patch: int = 2,
    width: int = 128,
    depth: int = 2,
    channels: int = 4,
    outputs: int = 8,
    rows: int = 11,
    projectors: int = 0,
    seed: int = 0,
) -> Tensors:
    """Random tensors, none of them zero, of a network of that shape, in the order of its state dict."""
    draw, out = torch.Generator().manual_seed(seed), Tensors()

    def put(name: str, *shape: int) -> None:
        out[f"{name}.weight"] = torch.randn(shape, generator=draw) * 0.7 / math.prod(shape[1:]) ** 0.5
        out[f"{name}.bias"] = torch.randn(shape[0], generator=draw) * 0.1

    out["pos_embed"] = places(side, width).float()[None]
    put("x_embedder.proj", width, channels, patch, patch)
    put("t_embedder.mlp.0", width, CODE)
    put("t_embedder.mlp.2", width, width)
    if rows:
        out["y_embedder.embedding_table.weight"] = torch.randn(rows, width, generator=draw)
    for index in range(depth):
        put(f"blocks.{index}.attn.qkv", 3 * width, width)
        put(f"blocks.{index}.attn.proj", width, width)
        put(f"blocks.{index}.mlp.fc1", 4 * width, width)
        put(f"blocks.{index}.mlp.fc2", width, 4 * width)
        put(f"blocks.{index}.adaLN_modulation.1", 6 * width, width)
    for index in range(projectors):
        put(f"projectors.{index}.0", 2 * width, width)
        put(f"projectors.{index}.2", 2 * width, 2 * width)
        put(f"projectors.{index}.4", 48, 2 * width)
    put("final_layer.linear", patch**2 * outputs, width)
    put("final_layer.adaLN_modulation.1", 2 * width, width)
    return out


def network(tensors: Tensors, x: Tensor, time: Tensor, rows: Tensor | None, heads: int) -> Tensor:
    """All outputs for x [B, C, H, W] at the number [B] that it is told, and rows [B] int64 of its table. In float64."""
    t = {name: tensor.double() for name, tensor in tensors.items()}

    def linear(name: str, given: Tensor) -> Tensor:
        return F.linear(given, t[f"{name}.weight"], t[f"{name}.bias"])

    def plain(given: Tensor) -> Tensor:
        return F.layer_norm(given, given.shape[2:], eps=1e-6)

    batch, _, height, _ = x.shape
    kernel = t["x_embedder.proj.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    side = height // patch
    cells = F.unfold(x.double(), patch, stride=patch).transpose(1, 2)  # [B, places, channels · rows · columns]
    h = cells @ kernel.flatten(1).T + t["x_embedder.proj.bias"] + places(side, width)

    angle = time.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(CODE // 2).double() / (CODE // 2))
    told = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], 1))))
    if rows is not None:
        told = told + t["y_embedder.embedding_table.weight"][rows]
    told = F.silu(told)

    for index in range(1 + max(int(name.split(".")[1]) for name in t if name.startswith("blocks."))):
        name = f"blocks.{index}"
        six = linear(f"{name}.adaLN_modulation.1", told).view(batch, 6, 1, width)
        given = plain(h) * (1 + six[:, 1]) + six[:, 0]
        q, k, v = linear(f"{name}.attn.qkv", given).view(batch, side**2, 3, heads, width // heads).unbind(2)
        share = torch.einsum("bqhd,bkhd->bhqk", q, k).div(math.sqrt(width / heads)).softmax(3)
        mixed = torch.einsum("bhqk,bkhd->bqhd", share, v).flatten(2)
        h = h + six[:, 2] * linear(f"{name}.attn.proj", mixed)
        wide = linear(f"{name}.mlp.fc1", plain(h) * (1 + six[:, 4]) + six[:, 3])
        h = h + six[:, 5] * linear(f"{name}.mlp.fc2", F.gelu(wide, approximate="tanh"))

    shift, scale = linear("final_layer.adaLN_modulation.1", told).view(batch, 2, 1, width).unbind(1)
    numbers = linear("final_layer.linear", plain(h) * (1 + scale) + shift)
    channels = numbers.shape[2] // patch**2
    by_channel = numbers.unflatten(2, (patch**2, channels)).transpose(2, 3).flatten(2).transpose(1, 2)
    return F.fold(by_channel, height, patch, stride=patch)
