"""The ADM U-Net, and its parts, which other networks share: config, conditioning, residual blocks with scale-shift, attention.

Source: Dhariwal & Nichol 2021, in the layout of Karras et al. 2022, whose ImageNet-64 network has 295,899,267
parameters at 1000 classes; initialisation at zero as there.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated, Any, Self

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from elbocli.core.schedule import parse_level_code
from elbocli.errors import UsageError
from elbocli.files.records import Count
from elbocli.nn.networks import Depth, Network, NetworkConfig, Size, explained, network

Width = Annotated[int, Meta(ge=4, le=2**20, multiple_of=4)]

CODE = "logsnr:factor=0.5"
"""The level code of the U-Net where none is named: λ/2 = −ln σ_edm."""
HEAD_WIDTH = 64
GROUPS = 32
MIN_GROUP = 4
EPS = 1e-5


# Group norm with what follows it, scale and shift and SiLU, in few passes over the image.
#
# CUDA's own kernel takes and gives images with channels first, and autocast has it work in float32: what follows is then
# read and written in four bytes, and copied into the layout of convolutions and back. This one keeps the image's
# precision, and channels last. Values per channel are float32.


class GroupNorm(nn.GroupNorm):
    """x [B, C, H, W], scale and shift [B, C] → silu(norm(x)·(1 + scale) + shift); scale and shift, or SiLU, may be left out.

    fused: whether by the function below, else by torch's; None is torch's on a CPU alone.
    """

    fused: bool | None = None

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, silu: bool = False
    ) -> Tensor:
        if not (x.device.type != "cpu" if self.fused is None else self.fused):
            h = super().forward(x)
            if scale is not None and shift is not None:
                h = torch.addcmul(shift[:, :, None, None], h, scale[:, :, None, None] + 1)
            return F.silu(h) if silu else h
        wide = torch.promote_types(x.dtype, torch.float32)
        gain, bias = self.weight.to(wide)[None], self.bias.to(wide)[None]
        if scale is not None and shift is not None:
            scale = scale.to(wide) + 1
            gain, bias = gain * scale, torch.addcmul(shift.to(wide), bias, scale)
        pixels = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        gain, bias = (each.unflatten(1, (self.num_groups, -1)) for each in (gain, bias))
        out = _Normed.apply(pixels.flatten(1, 2), gain, bias, self.eps, silu)
        return out.view_as(pixels).permute(0, 3, 1, 2)


class _Normed(torch.autograd.Function):
    """x [B, pixels, C], gain and bias [B or 1, groups, C/groups] → silu(x̂·gain + bias), x̂ normed in each group.

    The backward pass keeps x and a few numbers per channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
        wide, groups = gain.dtype, gain.shape[1:]
        if x.dtype == wide:
            variance, mean = torch.var_mean(x, 1, correction=0)
        else:
            # In float32 without a copy of x. Where a large mean cancels here, rounding x has lost more.
            mean = x.mean(1, dtype=wide)
            variance = torch.linalg.vector_norm(x, dim=1, dtype=wide).square() / x.shape[1] - mean.square()
        spread, mean = torch.var_mean(mean.unflatten(1, groups), 2, correction=0, keepdim=True)
        variance = variance.unflatten(1, groups).mean(2, keepdim=True) + spread
        inverse = (variance.clamp(min=0) + eps).rsqrt()
        factor = gain * inverse
        offset = torch.addcmul(bias, factor, mean, value=-1)
        ctx.save_for_backward(x, gain, mean, inverse, factor, offset)
        ctx.silu = silu
        out = _affine(x, factor, offset, torch.empty_like(x))
        return F.silu(out, inplace=True) if silu else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, mean, inverse, factor, offset = ctx.saved_tensors
        wide, groups, count = gain.dtype, gain.shape[1:], x.shape[1] * gain.shape[2]
        out = torch.empty_like(x)
        if ctx.silu:
            grad = torch.ops.aten.silu_backward(grad, _affine(x, factor, offset, out))
        of_bias = grad.sum(1, dtype=wide).unflatten(1, groups)
        of_factor = torch.mul(grad, x, out=out).sum(1, dtype=wide).unflatten(1, groups)
        of_gain = inverse * torch.addcmul(of_factor, mean, of_bias, value=-1)
        # Of x: inverse·(gain·grad − m − x̂·n), m the mean in the group of gain·grad, and n of gain·grad·x̂.
        along = inverse.square() * (gain * of_gain).sum(2, keepdim=True) / -count
        beside = inverse * (gain * of_bias).sum(2, keepdim=True) / -count
        beside = torch.addcmul(beside, along, mean, value=-1)
        out = _affine(x, along.expand_as(factor), beside.expand_as(factor), out)
        out = torch.addcmul(out, grad, factor.flatten(1)[:, None], out=out)
        return out, of_gain.sum_to_size(gain.shape), of_bias.sum_to_size(gain.shape), None, None


def _affine(x: Tensor, factor: Tensor, offset: Tensor, out: Tensor) -> Tensor:
    """Write x·factor + offset, rounded only then. factor, offset: for each channel of each image."""
    return torch.addcmul(offset.flatten(1)[:, None], x, factor.flatten(1)[:, None], out=out)


# Parts that networks share.


def norm(channels: int, groups: int = 0, eps: float = EPS) -> GroupNorm:
    """Group norm of that many groups; 0: of at most 32, of at least 4 channels each."""
    usual = math.gcd(min(GROUPS, max(channels // MIN_GROUP, 1)), channels)
    return GroupNorm(groups or usual, channels, eps)


def heads_of(channels: int, head_width: int = HEAD_WIDTH) -> int:
    """The heads that are `head_width` wide; wider ones where that does not divide, one narrower where it is too much."""
    most = max(1, channels // head_width)
    return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


def check_heads(width: int, heads: int) -> None:
    """Raise UsageError where heads don't divide the width of a transformer."""
    if width % heads:
        raise UsageError(f"network: heads {heads} must divide the width {width}")


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
        widths = [config.width(depth) for depth in range(len(config.levels))]
        attends = [config.side >> depth in config.attention for depth in range(len(widths))]
        now = widths[0]
        skips = [now]
        for depth, width in enumerate(widths):
            if depth:
                self.down.append(block(now, now, True, False, "down"))
                skips.append(now)
            for _ in range(config.blocks):
                self.down.append(block(now, width, True, attends[depth], ""))
                now = width
                skips.append(now)
        middle = [block(now, now, False, middle_attention, ""), block(now, now, False, False, "")]
        self.middle = nn.ModuleList(middle)
        while widths:
            width, attention = widths.pop(), attends.pop()
            for _ in range(config.blocks + 1):
                self.up.append(block(now + skips.pop(), width, False, attention, ""))
                now = width
            if widths:
                self.up.append(block(now, now, False, False, "up"))
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


class ClassTable(nn.Embedding):
    """labels [B] → [B, width]; class −1 has the last row of the table, or adds nothing. It begins as torch's own."""

    def __init__(self, classes: int, width: int, null_class: bool):
        weight = torch.empty(classes + null_class, width)  # drawing meta tensors would import for 2 s
        super().__init__(classes + null_class, width, _weight=weight if weight.is_meta else weight.normal_())
        self.null = classes if null_class else -1

    def forward(self, labels: Tensor) -> Tensor:
        labels = named_labels(labels, self.null, labels)
        return (labels >= 0).to(self.weight.dtype)[:, None] * super().forward(labels.clamp(min=0))


class Conditioning(nn.Module):
    """(λ, class) → [B, width], λ by way of `code`. Class −1 is no class: see ClassTable."""

    def __init__(self, code: Fourier | LinearCode, width: int, num_classes: int, null_class: bool = False):
        super().__init__()
        self.code = code
        self.first = nn.Linear(code.channels, width)
        self.second = nn.Linear(width, width)
        self.classes = ClassTable(num_classes, width, null_class) if num_classes else None

    def forward(self, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        code = precise_linear(self.code(logsnr), self.first.weight, self.first.bias)
        code = self.second(F.silu(code))
        if self.classes is not None and (labels is not None or self.classes.null >= 0):
            code = code + self.classes(named_labels(labels, -1, logsnr)).to(code.dtype)
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


def resized(x: Tensor, resample: str) -> Tensor:
    """Images at half the size for 'down', at twice the size for 'up', each pixel four times."""
    if resample == "up":
        with as_it_comes(x):  # on CUDA autocast would make it float32, and with it all that is joined to it
            return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if resample else x


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
    """Self-attention over pixels. heads: 0 is as many as `heads_of` says. normed: channels → its norm."""

    def __init__(self, channels: int, heads: int = 0, normed: Callable[[int], GroupNorm] = norm):
        super().__init__()
        self.heads = heads or heads_of(channels)
        self.norm = normed(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(attend_pixels(self.qkv(self.norm(x)), self.heads))


class Block(nn.Module):
    """Residual block: conv, scale and shift by the conditioning, conv; may halve or double the size on the way.

    Takes a skip's channels after its own; they are joined here, so that a unit's inputs are the tensors kept anyway.
    attention: whether it has some after it. heads, normed: as Attention has them.
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
        normed: Callable[[int], GroupNorm] = norm,
    ):
        super().__init__()
        self.resample = resample
        self.norm1 = normed(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.scale_shift = nn.Linear(width, 2 * cout)
        self.norm2 = normed(cout)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(cout, cout, 3, padding=1))
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        self.attention = Attention(cout, heads, normed) if attention else nn.Identity()

    def forward(self, x: Tensor, code: Tensor, skip: Tensor | None = None) -> Tensor:
        x = x if skip is None else torch.cat([x, skip], 1)
        h = self.conv1(resized(self.norm1(x, silu=True), self.resample))
        scale, shift = self.scale_shift(code).chunk(2, 1)
        h = self.conv2(self.dropout(self.norm2(h, scale, shift, silu=True)))
        return self.attention(self.skip(resized(x, self.resample)) + h)


@dataclass(frozen=True)
class UNetConfig(AttendedConfig):
    """Levels may be fractions, of which `channels` makes whole numbers.

    Raises UsageError when the levels don't fit the image, or heads and groups the levels.
    """

    middle_attention: bool = explained("Whether the middle, at the smallest size, has it too.", default=True)
    heads: Count = explained("Heads of all attention; 0: as many as head_width makes.", default=0)
    head_width: Size = explained(
        "Channels of a head; wider where that does not divide a level's, one head where it is more.", default=HEAD_WIDTH
    )
    groups: Count = explained("Groups of every norm; 0: 32, or fewer, of 4 channels each.", default=0)
    norm_eps: Annotated[float, Meta(gt=0, lt=1)] = explained("What norms add to the variance.", default=EPS)
    embedding: Count = explained("Width of the code of the noise level and the class; 0: 4 times channels.", default=0)
    code: str = explained(
        "The number that the network is told of the noise level, by its cosines and sines: logsnr:factor=0.5 is "
        "-ln sigma, t:linear a timestep of 1000.",
        default=CODE,
    )
    variance: bool = explained(
        "Whether the last layer gives twice the channels, for a learned variance, which only imported weights have.",
        default=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for depth, level in enumerate(self.levels):
            width, exact = self.width(depth), self.channels * level
            last = self.middle_attention and depth == len(self.levels) - 1
            heads = self.heads if last or self.side >> depth in self.attention else 0
            if not math.isclose(exact, width) or width < 1 or any(n and width % n for n in (self.groups, heads)):
                raise UsageError(
                    f"network: a level {level:g} of {self.channels} channels has {exact:g}, which must be a whole number that "
                    f"groups {self.groups} and heads {heads} divide"
                )


@network("unet", config=UNetConfig, source="Dhariwal & Nichol 2021")
class UNet(LevelsNetwork):
    """The network of a UNetConfig; its units are its residual blocks."""

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        width = config.embedding or 4 * config.channels
        self.conditioning = Conditioning(Fourier(config.channels, config.code), width, config.num_classes)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

        normed = partial(norm, groups=config.groups, eps=config.norm_eps)

        def block(cin: int, cout: int, down: bool, attention: bool, resample: str) -> Block:
            heads = config.heads or heads_of(cout, config.head_width)
            return Block(cin, cout, width, config.dropout, attention, resample, heads, normed)

        self.first = nn.Conv2d(config.image_channels, config.width(0), 3, padding=1)
        now = self.add_blocks(block, config.middle_attention)
        self.norm = normed(now)
        self.last = zeroed(nn.Conv2d(now, config.image_channels * (1 + config.variance), 3, padding=1))

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """All that the last layer gives, [B, 2C, H, W] with the learned variance's half behind, else what forward does."""
        code = self.conditioning(logsnr, labels)
        x = self.walk(self.first(self.config.padded(z)), code)
        return self.config.cut(self.last(self.norm(x, silu=True)))
