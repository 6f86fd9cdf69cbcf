"""guided-diffusion's UNetModel, stated again: a function of a dict of tensors with its own names.

Source: Dhariwal & Nichol 2021, appendix. What names and shapes don't tell, heads and the order of q, k and v, is given.
"""

import math
from collections.abc import Sequence

import torch
from peers.edm_unet import Tensors, drawing, halved, inside, repeated
from torch import Tensor
from torch.nn import functional as F


def made(
    size: int = 16,
    channels: int = 32,
    levels: Sequence[float] = (1, 2),
    blocks: int = 1,
    attention: Sequence[int] = (8,),
    classes: int = 0,
    image_channels: int = 3,
    outputs: int = 6,
    seed: int = 0,
    weigh: bool = True,
) -> Tensors:
    """Random tensors, none of them zero, of a network of that shape, in the order of its state dict.

    weigh: else they are without memory.
    """
    random, out = drawing(seed, weigh), Tensors()
    width = 4 * channels

    def put(name: str, *shape: int) -> None:
        out[f"{name}.weight"] = random(*shape) * (0.7 / math.sqrt(math.prod(shape[1:])))
        out[f"{name}.bias"] = random(shape[0]) * 0.1

    def put_norm(name: str, count: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = 1 + 0.2 * random(count), 0.2 * random(count)

    def put_block(name: str, before: int, after: int) -> None:
        put_norm(f"{name}.in_layers.0", before)
        put(f"{name}.in_layers.2", after, before, 3, 3)
        put(f"{name}.emb_layers.1", 2 * after, width)
        put_norm(f"{name}.out_layers.0", after)
        put(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            put(f"{name}.skip_connection", after, before, 1, 1)

    def put_attention(name: str, count: int) -> None:
        put_norm(f"{name}.norm", count)
        put(f"{name}.qkv", 3 * count, count, 1)
        put(f"{name}.proj_out", count, count, 1)

    put("time_embed.0", width, channels)
    put("time_embed.2", width, width)
    if classes:
        out["label_emb.weight"] = random(classes, width)
    now = int(channels * levels[0])
    put("input_blocks.0.0", now, image_channels, 3, 3)
    kept, index = [now], 1
    for depth, level in enumerate(levels):
        for _ in range(blocks):
            put_block(f"input_blocks.{index}.0", now, int(channels * level))
            now = int(channels * level)
            if size >> depth in attention:
                put_attention(f"input_blocks.{index}.1", now)
            kept.append(now)
            index += 1
        if depth < len(levels) - 1:
            put_block(f"input_blocks.{index}.0", now, now)
            kept.append(now)
            index += 1
    put_block("middle_block.0", now, now)
    put_attention("middle_block.1", now)
    put_block("middle_block.2", now, now)
    index = 0
    for depth in reversed(range(len(levels))):
        for turn in range(blocks + 1):
            put_block(f"output_blocks.{index}.0", now + kept.pop(), int(channels * levels[depth]))
            now, place = int(channels * levels[depth]), 1
            if size >> depth in attention:
                put_attention(f"output_blocks.{index}.1", now)
                place = 2
            if depth and turn == blocks:
                put_block(f"output_blocks.{index}.{place}", now, now)
            index += 1
    put_norm("out.0", now)
    put("out.2", outputs, now, 3, 3)
    return out


def normed(x: Tensor, part: Tensors) -> Tensor:
    """Group norm of 32 groups, whatever the width."""
    return F.group_norm(x, 32, part["weight"], part["bias"])


def residual(part: Tensors, x: Tensor, told: Tensor, way: str) -> Tensor:
    """One residual block. way: down, up or ''."""
    resized = {"down": halved, "up": repeated, "": lambda image: image}[way]
    h = resized(F.silu(normed(x, inside(part, "in_layers.0"))))
    h = F.conv2d(h, part["in_layers.2.weight"], part["in_layers.2.bias"], padding=1)
    scale, shift = F.linear(told, part["emb_layers.1.weight"], part["emb_layers.1.bias"])[..., None, None].chunk(2, 1)
    h = F.silu(normed(h, inside(part, "out_layers.0")) * (1 + scale) + shift)
    h = F.conv2d(h, part["out_layers.3.weight"], part["out_layers.3.bias"], padding=1)
    x = resized(x)
    if "skip_connection.weight" in part:
        x = F.conv2d(x, part["skip_connection.weight"], part["skip_connection.bias"])
    return x + h


def attended(part: Tensors, x: Tensor, heads: int, new_order: bool) -> Tensor:
    """Attention over pixels. new_order: q, k, v outside the heads; else inside each head."""
    batch, count = x.shape[:2]
    flat = x.flatten(2)
    qkv = part["qkv.weight"][:, :, 0] @ normed(flat, inside(part, "norm")) + part["qkv.bias"][:, None]
    parts = qkv.unflatten(1, (3, heads, -1) if new_order else (heads, 3, -1))
    q, k, v = (parts if new_order else parts.transpose(1, 2)).unbind(1)
    share = (q.transpose(2, 3) @ k / math.sqrt(count // heads)).softmax(-1)
    mixed = (v @ share.transpose(2, 3)).reshape(batch, count, -1)
    return x + (part["proj_out.weight"][:, :, 0] @ mixed + part["proj_out.bias"][:, None]).view_as(x)


def network(tensors: Tensors, x: Tensor, timestep: Tensor, labels: Tensor | None, heads: int | None, new_order: bool) -> Tensor:
    """All outputs at timesteps [B], a number that may be a fraction, labels [B] int64. heads: None is one for 64 channels."""
    half = tensors["time_embed.0.weight"].shape[1] // 2
    angle = timestep[:, None] * torch.exp(-math.log(10_000) * torch.arange(half, dtype=timestep.dtype) / half)
    told = torch.cat([angle.cos(), angle.sin()], 1).to(x.dtype)
    told = F.silu(F.linear(told, tensors["time_embed.0.weight"], tensors["time_embed.0.bias"]))
    told = F.linear(told, tensors["time_embed.2.weight"], tensors["time_embed.2.bias"])
    if labels is not None:
        told = told + tensors["label_emb.weight"][labels]
    told = F.silu(told)
    ups = [name for name in tensors if name.startswith("output_blocks.") and name.endswith("in_layers.0.weight")]
    levels = 1 + sum(not name.endswith(".0.in_layers.0.weight") for name in ups)
    inputs = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("input_blocks."))
    period = inputs // levels  # blocks of a level and what halves it; the first is alone

    def through(name: str, x: Tensor, down: bool = False) -> Tensor:
        whole = inside(tensors, name)
        for place in dict.fromkeys(key.partition(".")[0] for key in whole):
            part = inside(whole, place)
            if "qkv.weight" in part:
                x = attended(part, x, heads or x.shape[1] // 64, new_order)
            elif "in_layers.0.weight" in part:
                up = name.startswith("output") and place != "0"
                x = residual(part, x, told, "down" if down else "up" if up else "")
            else:
                x = F.conv2d(x, part["weight"], part["bias"], padding=1)
        return x

    kept: list[Tensor] = []
    for index in range(inputs):
        x = through(f"input_blocks.{index}", x, down=index > 0 and index % period == 0)
        kept.append(x)
    x = through("middle_block", x)
    for index in range(inputs):
        x = through(f"output_blocks.{index}", torch.cat([x, kept.pop()], 1))
    x = F.silu(normed(x, inside(tensors, "out.0")))
    return F.conv2d(x, tensors["out.2.weight"], tensors["out.2.bias"], padding=1)
