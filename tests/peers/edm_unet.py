"""EDM's DhariwalUNet and its preconditioning, stated again: functions of a dict of tensors with EDM's own names.

Source: Karras et al. 2022, appendix F.2 and table 1. A network is all in its names: sizes, levels, blocks, attention.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = dict[str, Tensor]


def drawing(seed: int, weigh: bool) -> Callable[..., Tensor]:
    """Return what draws normal numbers of a shape; or, unless they are to weigh anything, makes a tensor without memory."""
    draw = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=draw) if weigh else torch.empty(shape, device="meta")


def made(
    size: int = 16,
    channels: int = 32,
    levels: Sequence[int] = (1, 2),
    blocks: int = 1,
    attention: Sequence[int] = (8,),
    classes: int = 0,
    image_channels: int = 3,
    embedding: int = 4,
    augment: int = 0,
    head: int = 64,
    seed: int = 0,
    weigh: bool = True,
) -> Tensors:
    """Random tensors, none of them zero, of a network of that shape, in the order of EDM's state dict.

    Levels narrower than a head have no attention, nor has the middle. weigh: else they are without memory.
    """
    random, out = drawing(seed, weigh), Tensors()
    width = embedding * channels

    def put(name: str, *shape: int, bias: bool = True) -> None:
        out[f"{name}.weight"] = random(*shape) * (0.7 / math.sqrt(math.prod(shape[1:])))
        if bias:
            out[f"{name}.bias"] = random(shape[0]) * 0.1

    def put_norm(name: str, count: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = 1 + 0.2 * random(count), 0.2 * random(count)

    def put_block(name: str, before: int, after: int, attends: bool = False, resized: bool = False) -> None:
        put_norm(f"{name}.norm0", before)
        put(f"{name}.conv0", after, before, 3, 3)
        if resized:
            out[f"{name}.conv0.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
        put(f"{name}.affine", 2 * after, width)
        put_norm(f"{name}.norm1", after)
        put(f"{name}.conv1", after, after, 3, 3)
        if resized:
            out[f"{name}.skip.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
        elif before != after:
            put(f"{name}.skip", after, before, 1, 1)
        if attends and after >= head:
            put_norm(f"{name}.norm2", after)
            put(f"{name}.qkv", 3 * after, after, 1, 1)
            put(f"{name}.proj", after, after, 1, 1)

    if augment:
        put("map_augment", channels, augment, bias=False)
    put("map_layer0", width, channels)
    put("map_layer1", width, width)
    if classes:
        put("map_label", width, classes, bias=False)
    now, kept = image_channels, []
    for depth, level in enumerate(levels):
        side, goal = size >> depth, channels * level
        if depth == 0:
            put(f"enc.{side}x{side}_conv", goal, now, 3, 3)
            now = goal
        else:
            put_block(f"enc.{side}x{side}_down", now, now, resized=True)
        kept.append(now)
        for index in range(blocks):
            put_block(f"enc.{side}x{side}_block{index}", now, goal, side in attention)
            now = goal
            kept.append(now)
    for depth in reversed(range(len(levels))):
        side, goal = size >> depth, channels * levels[depth]
        if depth == len(levels) - 1:
            put_block(f"dec.{side}x{side}_in0", now, now, True)
            put_block(f"dec.{side}x{side}_in1", now, now)
        else:
            put_block(f"dec.{side}x{side}_up", now, now, resized=True)
        for index in range(blocks + 1):
            put_block(f"dec.{side}x{side}_block{index}", now + kept.pop(), goal, side in attention)
            now = goal
    put_norm("out_norm", now)
    put("out_conv", image_channels, now, 3, 3)
    return out


def inside(tensors: Tensors, name: str) -> Tensors:
    """The tensors of one part, by their names in it."""
    return {key.removeprefix(f"{name}."): each for key, each in tensors.items() if key.startswith(f"{name}.")}


def normed(x: Tensor, part: Tensors) -> Tensor:
    """Group norm of 32 groups, or of groups of four."""
    return F.group_norm(x, min(32, x.shape[1] // 4), part["weight"], part["bias"])


def halved(x: Tensor) -> Tensor:
    """Means of two by two pixels."""
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def repeated(x: Tensor) -> Tensor:
    """Each pixel twice in both directions."""
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def block(part: Tensors, x: Tensor, told: Tensor, way: str, head: int = 64) -> Tensor:
    """One residual block. way: down, up or anything else."""
    resized = {"down": halved, "up": repeated}.get(way, lambda image: image)
    h = F.conv2d(resized(F.silu(normed(x, inside(part, "norm0")))), part["conv0.weight"], part["conv0.bias"], padding=1)
    scale, shift = (told @ part["affine.weight"].T + part["affine.bias"])[:, :, None, None].tensor_split(2, 1)
    h = F.silu(normed(h, inside(part, "norm1")) * (1 + scale) + shift)
    h = F.conv2d(h, part["conv1.weight"], part["conv1.bias"], padding=1)
    x = resized(x)
    h = h + (F.conv2d(x, part["skip.weight"], part["skip.bias"]) if "skip.weight" in part else x)
    if "qkv.weight" not in part:
        return h
    batch, count, *side = h.shape
    heads = count // head
    qkv = F.conv2d(normed(h, inside(part, "norm2")), part["qkv.weight"], part["qkv.bias"])
    q, k, v = qkv.reshape(batch, heads, count // heads, 3, -1).movedim(3, 0)  # a channel's q, k, v are neighbours
    share = torch.einsum("bhcq,bhck->bhqk", q, k).div(math.sqrt(count // heads)).softmax(-1)
    mixed = torch.einsum("bhqk,bhck->bhcq", share, v).reshape(batch, count, *side)
    return h + F.conv2d(mixed, part["proj.weight"], part["proj.bias"])


def network(tensors: Tensors, x: Tensor, noise: Tensor, labels: Tensor | None, head: int = 64) -> Tensor:
    """F(x, noise, labels): noise [B] what the network is told of σ, labels [B, classes] one-hot, or zero for none."""
    half = tensors["map_layer0.weight"].shape[1] // 2
    angle = noise[:, None] * 10_000 ** -(torch.arange(half, dtype=noise.dtype) / half)
    told = torch.cat([angle.cos(), angle.sin()], 1).to(x.dtype)
    told = F.silu(told @ tensors["map_layer0.weight"].T + tensors["map_layer0.bias"])
    told = told @ tensors["map_layer1.weight"].T + tensors["map_layer1.bias"]
    if labels is not None and "map_label.weight" in tensors:
        told = told + labels.to(x.dtype) @ tensors["map_label.weight"].T
    told = F.silu(told)
    kept: list[Tensor] = []
    for name in dict.fromkeys(".".join(name.split(".")[:2]) for name in tensors if name.startswith(("enc.", "dec."))):
        part, way = inside(tensors, name), PurePosixPath(name).name.partition("_")[2]
        if way == "conv":
            x = F.conv2d(x, part["weight"], part["bias"], padding=1)
        else:
            if x.shape[1] != len(part["norm0.weight"]):
                x = torch.cat([x, kept.pop()], 1)
            x = block(part, x, told, way, head)
        if name.startswith("enc."):
            kept.append(x)
    x = F.silu(normed(x, inside(tensors, "out_norm")))
    return F.conv2d(x, tensors["out_conv.weight"], tensors["out_conv.bias"], padding=1)


def denoised(tensors: Tensors, y: Tensor, sigma: Tensor, labels: Tensor | None, sigma_data: float = 0.5) -> Tensor:
    """D(y; σ), y = x + σ ε: EDM's preconditioning of F, which is told ln(σ)/4. σ [B] in float64."""
    total = (sigma**2 + sigma_data**2).sqrt()[:, None, None, None]
    wide = sigma[:, None, None, None]
    inner = network(tensors, (y / total).to(y.dtype), sigma.log() / 4, labels)
    return ((sigma_data / total) ** 2 * y + wide * sigma_data / total * inner).to(y.dtype)
