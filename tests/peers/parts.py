"""Parts that the peers' networks share: random weights, resizing of images, a code of a number, attention."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = dict[str, Tensor]


def draw(kind: Callable[..., nn.Module], seed: int = 0, **shape: Any) -> Any:
    """Build a network of that shape with random weights, none of them zero. Rows of a weight have lengths of all sizes."""
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        network = kind(**shape)
        for name, weight in network.named_parameters():
            if not weight.requires_grad:
                continue
            noise = torch.randn(weight.shape)
            if weight.dim() > 1:
                lengths = 0.5 + torch.randn(len(weight), *[1] * (weight.dim() - 1)).abs()
                weight.copy_(noise * lengths * 0.5 / math.sqrt(weight[0].numel()))
            else:
                weight.copy_(0.1 * noise if name.endswith("bias") else 1 + 0.2 * noise)
    return network


def halved(x: Tensor) -> Tensor:
    """Means of two by two pixels."""
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def repeated(x: Tensor) -> Tensor:
    """Each pixel twice in both directions."""
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


RESIZE: dict[str, Callable[[Tensor], Tensor]] = {"down": halved, "up": repeated, "": lambda x: x}
"""Function that resizes images, by the way of a block."""


def unet_blocks(size: int, wide: Sequence[int], blocks: int, attention: Sequence[int]) -> list[tuple[str, int, int, bool]]:
    """Name with `enc.` or `dec.`, widths before and after, and whether it attends, of all blocks of EDM's and EDM2's U-Nets.

    wide: width of each level. The first block is a convolution, whose width before is that of images: 0 here.
    """
    found = [(f"enc.{size}x{size}_conv", 0, wide[0], False)]
    now = wide[0]
    levels = [(f"{size >> depth}x{size >> depth}", goal, size >> depth in attention) for depth, goal in enumerate(wide)]
    skips = [now]
    for name, goal, attends in levels:
        rows = [(f"enc.{name}_block{index}", now if index == 0 else goal, goal, attends) for index in range(blocks)]
        if name != levels[0][0]:
            rows.insert(0, (f"enc.{name}_down", now, now, False))
        found += rows
        skips += [after for _, _, after, _ in rows]
        now = goal
    for name, goal, attends in reversed(levels):
        if name == levels[-1][0]:
            found += [(f"dec.{name}_in0", now, now, True), (f"dec.{name}_in1", now, now, False)]
        else:
            found.append((f"dec.{name}_up", now, now, False))
        for index in range(blocks + 1):
            found.append((f"dec.{name}_block{index}", now + skips.pop(), goal, attends))
            now = goal
    return found


def code(number: Tensor, count: int) -> Tensor:
    """Cosines, then sines, of numbers [B] at speeds that fall from 1 to 1/10,000: [B, count] float64."""
    half = count // 2
    angle = number.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half).double() / half)
    return torch.cat([angle.cos(), angle.sin()], 1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over the last dimension of q, k, v [B, heads, width of a head, places]: [B, channels, places]."""
    return F.scaled_dot_product_attention(*(part.transpose(2, 3) for part in (q, k, v))).transpose(2, 3).flatten(1, 2)
