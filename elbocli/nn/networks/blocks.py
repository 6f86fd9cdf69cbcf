"""Parts of networks that work at several sizes: their config, conditioning, residual blocks with scale-shift, attention.

Source: Dhariwal & Nichol 2021; initialisation at zero as in Karras et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, Self

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.core.schedule import parse_level_code
from elbocli.errors import UsageError
from elbocli.nn.group_norm import GroupNorm
from elbocli.nn.networks import Depth, Network, NetworkConfig, explained

Width = Annotated[int, Meta(ge=4, le=2**20, multiple_of=4)]

CODE = "logsnr:factor=0.5"
"""The level code of the U-Net where none is named: λ/2 = −ln σ_edm."""
HEAD_WIDTH = 64
GROUPS = 32
MIN_GROUP = 4
EPS = 1e-5


def norm(channels: int, groups: int = 0, eps: float = EPS) -> GroupNorm:
    """Group norm of that many groups; 0: of at most 32, of at least 4 channels each."""
    usual = math.gcd(min(GROUPS, max(channels // MIN_GROUP, 1)), channels)
    return GroupNorm(groups or usual, channels, eps)


def heads_of(channels: int, head_width: int = HEAD_WIDTH) -> int:
    """The heads that are `head_width` wide; wider ones where that does not divide, one narrower where it is too much."""
    most = max(1, channels // head_width)
    return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


def zeroed(module: nn.Module) -> nn.Module:
    """A layer that starts as nothing, so that a new block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


LEVELS = "Those multiples, one for each level; each is half the size of the one before."


@dataclass(frozen=True)
class LevelsConfig(NetworkConfig):
    """levels: width multipliers of `channels`, one per size, each half the one before, with `blocks` blocks each.

    Raises UsageError when the levels don't fit the image.
    """

    channels: Width = explained("Width; each level's is a multiple of it. A multiple of 4.")
    levels: Annotated[tuple[Annotated[float, Meta(gt=0, le=1e6)], ...], Meta(min_length=1)] = explained(LEVELS)
    blocks: Depth = explained("Residual blocks in each level.")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = tuple(int(level) if level == int(level) else level for level in self.levels)
        object.__setattr__(self, "levels", whole)
        if self.image_size < 1 << self.halvings:
            raise UsageError(
                f"network: it halves the image {self.halvings} times, too often for {self.image_size} pixels; choose "
                "another preset, or pack with another --size"
            )

    @property
    def halvings(self) -> int:
        """Number of times that the image is halved on the way down."""
        return len(self.levels) - 1

    @property
    def side(self) -> int:
        """Side in pixels at which the network works: the image's, rounded up to one that can be halved so often."""
        return -(-self.image_size >> self.halvings) << self.halvings

    def cut(self, out: Tensor) -> Tensor:
        """Return [B, C, side, side] without what was padded, and no view of it: FSDP hooks itself to what comes out."""
        if self.side == self.image_size:
            return out
        return out[..., : self.image_size, : self.image_size].contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class AttendedConfig(LevelsConfig):
    """Config of a U-Net with attention at some of its sizes. Levels are multiples of `channels` that make whole numbers."""

    attention: tuple[int, ...] = explained("Sizes in pixels, of levels, whose blocks have self-attention.")

    def width(self, depth: int) -> int:
        """Channels of a level."""
        return round(self.channels * self.levels[depth])

    def for_size(self, image_size: int) -> Self:
        """The same network for another size, its attention as many halvings down as it was."""
        new = replace(self, image_size=image_size)
        return replace(new, attention=tuple(side * new.side // self.side for side in self.attention))


class LevelsNetwork(Network):
    """Residual blocks on the way down, in the middle and on the way up; its units. A subclass makes `down`, `middle`, `up`."""

    down: nn.ModuleList
    middle: nn.ModuleList
    up: nn.ModuleList

    def add_blocks(self, block: Callable[[int, int, bool, bool, str], nn.Module], middle_attention: bool) -> int:
        """Fill `down` and `up`, make `middle`, and return the channels that come out.

        block: (channels in, channels out, whether on the way down, whether with attention, '', 'down' or 'up') → a block.
        """
        config = self.config
        depths = range(len(config.levels))
        now = config.width(0)
        skips = [now]

        def attends(depth: int) -> bool:
            return config.side >> depth in config.attention

        for depth in depths:
            if depth:
                self.down.append(block(now, now, True, False, "down"))
                skips.append(now)
            for _ in range(config.blocks):
                self.down.append(block(now, config.width(depth), True, attends(depth), ""))
                now = config.width(depth)
                skips.append(now)
        middle = [block(now, now, False, middle_attention, ""), block(now, now, False, False, "")]
        self.middle = nn.ModuleList(middle)
        for depth in reversed(depths):
            if depth < depths[-1]:
                self.up.append(block(now, now, False, False, "up"))
            for _ in range(config.blocks + 1):
                self.up.append(block(now + skips.pop(), config.width(depth), False, attends(depth), ""))
                now = config.width(depth)
        return now

    def units(self) -> list[nn.Module]:
        """Residual blocks, from the first to the last."""
        return [*self.down, *self.middle, *self.up]

    def walk(self, x: Tensor, code: Tensor) -> Tensor:
        """Take the first layer's output through all blocks; those on the way up get what those on the way down gave."""
        skips = [x]
        for block in self.down:
            x = self.through(block, x, code)
            skips.append(x)
        for block in self.middle:
            x = self.through(block, x, code)
        for block in self.up:
            x = self.through(block, x, code, None if block.resample else skips.pop())
        return x


@torch.library.custom_op("elbo::level_number", mutates_args=())
def level_number(logsnr: Tensor, code: str) -> Tensor:
    """λ [B] → the number [B] that a level code, written as its spec, makes of it, in the precision of λ.

    One operation for compilers: a timestep is read off a curve that is made once, on the CPU, with SciPy.
    """
    return _level_code(code)(logsnr).clone()


@level_number.register_fake
def _(logsnr: Tensor, code: str) -> Tensor:
    return torch.empty_like(logsnr)


_level_code = lru_cache(parse_level_code)


class Fourier(nn.Module):
    """λ → [B, channels]: cosines and sines of a level code at frequencies from 1 down, the lowest above 1e-4.

    code: a spec of LEVEL_CODES.
    """

    def __init__(self, channels: int, code: str = CODE):
        super().__init__()
        self.channels, self.code = channels, code

    def forward(self, logsnr: Tensor) -> Tensor:
        half = self.channels // 2
        if self.code == CODE:
            number, wide = 0.5 * logsnr.float(), torch.float32
        else:  # a timestep of 1000 has no digits left in float32 for its angle
            number, wide = level_number(logsnr.double(), self.code), torch.float64
        power = torch.arange(half, device=logsnr.device, dtype=wide) / half
        angle = number[:, None] * 1e-4**power
        return torch.cat([angle.cos(), angle.sin()], 1).float()


class LinearCode(nn.Module):
    """λ → [B, 1]: λ/4, so that the kinks of the layer above it fall into the range of λ.

    Source: Hoogeboom et al. 2023, where λ enters linearly.
    """

    channels = 1

    def forward(self, logsnr: Tensor) -> Tensor:
        return 0.25 * logsnr.float()[:, None]


def _embedding(count: int, width: int) -> nn.Embedding:
    """An embedding that begins as torch's own, which has meta tensors drawn by Python code that takes 2 s to import."""
    weight = torch.empty(count, width)
    return nn.Embedding.from_pretrained(weight if weight.is_meta else weight.normal_(), freeze=False)


class Conditioning(nn.Module):
    """(λ, class) → [B, width], λ by way of `code`. Class −1 is no class: it adds nothing, or has the last row of the table."""

    def __init__(self, code: Fourier | LinearCode, width: int, num_classes: int, null_class: bool = False):
        super().__init__()
        self.code, self.null = code, num_classes if null_class else -1
        self.first = nn.Linear(code.channels, width)
        self.second = nn.Linear(width, width)
        self.classes = _embedding(num_classes + null_class, width) if num_classes else None

    def forward(self, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        code = precise_linear(self.code(logsnr), self.first.weight, self.first.bias)
        code = self.second(F.silu(code))
        if self.classes is not None and (labels is not None or self.null >= 0):
            labels = named_labels(labels, self.null, logsnr)
            named = (labels >= 0).to(code.dtype)[:, None]
            code = code + named * self.classes(labels.clamp(min=0)).to(code.dtype)
        return F.silu(code)


def named_labels(labels: Tensor | None, null: int, logsnr: Tensor) -> Tensor:
    """Labels [B], `null` in the place of −1; all of them where there are none."""
    if labels is None:
        return torch.full(logsnr.shape, null, dtype=torch.long, device=logsnr.device)
    return labels.where(labels >= 0, null)


def precise_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer of what is made of λ, at least in float32.

    bf16 can't hold the digits of λ that tell neighbouring levels apart, and neither can TF32, in which CUDA may multiply
    float32, but never float64. Weights that are sharded come in the lower precision.
    """
    kept = torch.promote_types(weight.dtype, torch.float32)
    wide = torch.float64 if x.is_cuda else kept
    with as_it_comes(x):
        return F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide)).to(kept)


def as_it_comes(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast, for what works on a tensor in its own precision; meta tensors know none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def doubled(x: Tensor) -> Tensor:
    """Each pixel four times. On CUDA autocast would make it float32, and with it all that is joined to it."""
    with as_it_comes(x):
        return F.interpolate(x, scale_factor=2, mode="nearest")


def resized(x: Tensor, resample: str) -> Tensor:
    """Images at half the size for 'down', at twice the size for 'up'."""
    if resample == "down":
        return F.avg_pool2d(x, 2)
    return doubled(x) if resample else x


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention over tokens: queries, keys and values [B, N, 3C] → [B, N, C]."""
    batch, tokens, width = qkv.shape
    q, k, v = qkv.view(batch, tokens, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width // 3)


def attend_pixels(qkv: Tensor, heads: int, normed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Self-attention over pixels: queries, keys and values [B, 3C, H, W] → [B, C, H, W]. normed: of [B, 3, heads, HW, C/heads]."""
    batch, channels, height, width = qkv.shape
    # Flash attention wants a pixel's channels together, which they are but where weights are sharded.
    qkv = qkv.contiguous(memory_format=torch.channels_last)
    qkv = qkv.reshape(batch, 3, heads, channels // 3 // heads, height * width).transpose(3, 4)
    q, k, v = (qkv if normed is None else normed(qkv)).unbind(1)
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(batch, channels // 3, height, width)


class Attention(nn.Module):
    """Self-attention over pixels. heads: 0 is as many as `heads_of` says. groups, eps: of its norm."""

    def __init__(self, channels: int, heads: int = 0, groups: int = 0, eps: float = EPS):
        super().__init__()
        self.heads = heads or heads_of(channels)
        self.norm = norm(channels, groups, eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(attend_pixels(self.qkv(self.norm(x)), self.heads))


class Block(nn.Module):
    """Residual block: conv, scale and shift by the conditioning, conv; may halve or double the size on the way.

    Takes a skip's channels after its own; they are joined here, so that a unit's inputs are the tensors kept anyway.
    attention: whether it has some after it. heads, groups, eps: of Attention and `norm`.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        width: int,
        dropout: float,
        attention: bool = False,
        resample: str = "",
        heads: int = 0,
        groups: int = 0,
        eps: float = EPS,
    ):
        super().__init__()
        self.resample = resample
        self.norm1 = norm(cin, groups, eps)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.scale_shift = nn.Linear(width, 2 * cout)
        self.norm2 = norm(cout, groups, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(cout, cout, 3, padding=1))
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        self.attention = Attention(cout, heads, groups, eps) if attention else nn.Identity()

    def forward(self, x: Tensor, code: Tensor, skip: Tensor | None = None) -> Tensor:
        x = x if skip is None else torch.cat([x, skip], 1)
        h = self.conv1(resized(self.norm1(x, silu=True), self.resample))
        scale, shift = self.scale_shift(code).chunk(2, 1)
        h = self.conv2(self.dropout(self.norm2(h, scale, shift, silu=True)))
        return self.attention(self.skip(resized(x, self.resample)) + h)
