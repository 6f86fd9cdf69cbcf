"""The ADM U-Net, and layers that other networks share.

Source: Dhariwal & Nichol 2021; layout and zero initialisation: Karras et al. 2022.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated, Self

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from elbocli.core.schedule import parse_level_code
from elbocli.errors import Parameter, UsageError
from elbocli.files.records import Count
from elbocli.networks import Depth, Network, NetworkConfig, Size, network

Width = Annotated[int, Meta(ge=4, le=2**20, multiple_of=4)]

CODE = "logsnr:factor=0.5"  # λ/2 = −ln σ_edm
HEAD_WIDTH = 64
GROUPS = 32
MIN_GROUP = 4
EPS = 1e-5


# Group norm fused with the scale, shift and SiLU that follow, to save passes over the image.
#
# CUDA's kernel for group norm needs channels first, and runs in float32 under autocast: later layers would then read and
# write four bytes per value, and convert to the layout of convolutions and back. This function keeps the image's precision
# and channels last. Values per channel are float32.


class GroupNorm(nn.GroupNorm):
    """Group norm with optional scale, shift and SiLU: silu(norm(x)·(1 + scale) + shift).

    x: [B, C, H, W]. scale, shift: [B, C].
    fused: whether one function computes norm, scale, shift and SiLU; None: on all devices but a CPU.
    """

    fused: bool | None = None

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, silu: bool = False) -> Tensor:
        if not (x.device.type != "cpu" if self.fused is None else self.fused):
            h = super().forward(x)
            if scale is not None and shift is not None:
                h = torch.addcmul(shift[:, :, None, None], h, scale[:, :, None, None] + 1)
            return F.silu(h) if silu else h
        wide = torch.promote_types(x.dtype, torch.float32)
        gain = self.weight.to(wide)[None]
        bias = self.bias.to(wide)[None]
        if scale is not None and shift is not None:
            scale = scale.to(wide) + 1
            gain = gain * scale
            bias = torch.addcmul(shift.to(wide), bias, scale)
        pixels = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        gain, bias = (each.unflatten(1, (self.num_groups, -1)) for each in (gain, bias))
        out = _Normed.apply(pixels.flatten(1, 2), gain, bias, self.eps, silu)
        return out.view_as(pixels).permute(0, 3, 1, 2)


class _Context(FunctionCtx):
    silu: bool
    saved_tensors: tuple[Tensor, ...]


class _Normed(torch.autograd.Function):
    # silu(norm(x)·gain + bias), SiLU optional. x: [B, pixels, C]. gain, bias: [B or 1, groups, C/groups].
    @staticmethod
    def forward(ctx: _Context, x: Tensor, gain: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
        wide = gain.dtype
        groups = gain.shape[1:]
        if x.dtype == wide:
            variance, mean = torch.var_mean(x, 1, correction=0)
        else:
            # Accumulate in float32 without a copy of x. Cancellation with a large mean loses less than the rounding of x did.
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
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, mean, inverse, factor, offset = ctx.saved_tensors
        wide = gain.dtype
        groups = gain.shape[1:]
        count = x.shape[1] * gain.shape[2]
        out = torch.empty_like(x)
        if ctx.silu:
            grad = torch.ops.aten.silu_backward(grad, _affine(x, factor, offset, out))
        of_bias = grad.sum(1, dtype=wide).unflatten(1, groups)
        of_factor = torch.mul(grad, x, out=out).sum(1, dtype=wide).unflatten(1, groups)
        of_gain = inverse * torch.addcmul(of_factor, mean, of_bias, value=-1)
        # Gradient of x: inverse·(gain·grad − m − x̂·n), with group means m of gain·grad and n of gain·grad·x̂.
        along = inverse.square() * (gain * of_gain).sum(2, keepdim=True) / -count
        beside = inverse * (gain * of_bias).sum(2, keepdim=True) / -count
        beside = torch.addcmul(beside, along, mean, value=-1)
        out = _affine(x, along.expand_as(factor), beside.expand_as(factor), out)
        out = torch.addcmul(out, grad, factor.flatten(1)[:, None], out=out)
        return out, of_gain.sum_to_size(gain.shape), of_bias.sum_to_size(gain.shape), None, None


def _affine(x: Tensor, factor: Tensor, offset: Tensor, out: Tensor) -> Tensor:
    # x, out: [B, pixels, C]. factor, offset: [B, groups, C/groups].
    return torch.addcmul(offset.flatten(1)[:, None], x, factor.flatten(1)[:, None], out=out)


# Parts that networks share.


def norm(channels: int, groups: int = 0, eps: float = EPS) -> GroupNorm:
    """Return a group norm. groups: number; 0: up to 32 groups of at least 4 channels."""
    groups = groups or math.gcd(min(GROUPS, max(channels // MIN_GROUP, 1)), channels)
    check_divisor(channels, groups, "groups")
    return GroupNorm(groups, channels, eps)


def heads_of(channels: int, head_width: int = HEAD_WIDTH) -> int:
    """Return the largest divisor of `channels` up to channels / head_width, at least 1."""
    most = max(1, channels // head_width)
    return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


def check_divisor(width: int, number: int, what: str) -> None:
    """Raise UsageError unless `number` divides `width`. what: the number's name."""
    if width % number:
        raise UsageError(f"network: {what} ({number}) must divide the width {width}; change one of them")


def zeroed(module: nn.Module) -> nn.Module:
    """Set a layer's parameters to zero, and return the layer."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@dataclass(frozen=True)
class LevelsConfig(NetworkConfig):
    """Config of a U-Net. Raises UsageError if the levels are too many for the image, or the width of a level isn't whole."""

    channels: Width  # base width in channels, a multiple of 4
    # width of each level as a multiple of channels; each level has half the image size of the level before
    levels: Annotated[tuple[Annotated[float, Meta(gt=0, le=1e6)], ...], Meta(min_length=1)]
    blocks: Depth  # residual blocks in each level

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "levels", tuple(int(level) if level == int(level) else level for level in self.levels))
        if self.image_size < 1 << self.halvings:
            raise UsageError(
                f"network: the levels halve the image {self.halvings} times, too often for {self.image_size} "
                "pixels; choose another preset, or pack with another ",
                Parameter("size"),
            )
        for level in self.levels:
            width = self.channels * level
            if not math.isclose(width, max(1, round(width))):
                raise UsageError(f"network: level {level:g} × channels {self.channels} is {width:g}; choose a whole product")

    @property
    def widths(self) -> list[int]:
        """Number of channels at each level, from the full image size down."""
        return [round(self.channels * level) for level in self.levels]

    @property
    def halvings(self) -> int:
        return len(self.levels) - 1

    @property
    def side(self) -> int:
        """Side of the padded image: image_size, rounded up to a multiple of 2^halvings."""
        return -(-self.image_size >> self.halvings) << self.halvings


@dataclass(frozen=True)
class AttendedConfig(LevelsConfig):
    """Config of a U-Net with self-attention."""

    attention: tuple[int, ...]  # image sizes in pixels at which the blocks have self-attention

    def for_size(self, image_size: int) -> Self:
        new = replace(self, image_size=image_size)
        return replace(new, attention=tuple(side * new.side // self.side for side in self.attention))


class LevelsNetwork(Network):
    """Base class of U-Nets. down, middle, up: residual blocks of encoder, lowest level and decoder."""

    config: AttendedConfig
    down: nn.ModuleList
    middle: nn.ModuleList
    up: nn.ModuleList

    def add_blocks(self, block: Callable[[int, int, bool, bool, str], nn.Module], middle_attention: bool) -> int:
        """Make the residual blocks; return the number of output channels.

        block: function (channels in, channels out, whether in the encoder, whether with attention, resample) → block.
        middle_attention: whether the first middle block has attention.
        """
        config = self.config
        widths = config.widths
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
        self.middle = nn.ModuleList([block(now, now, False, middle_attention, ""), block(now, now, False, False, "")])
        while widths:
            width = widths.pop()
            attention = attends.pop()
            for _ in range(config.blocks + 1):
                self.up.append(block(now + skips.pop(), width, False, attention, ""))
                now = width
            if widths:
                self.up.append(block(now, now, False, False, "up"))
        return now

    def units(self) -> list[nn.Module]:
        return [*self.down, *self.middle, *self.up]

    def walk(self, x: Tensor, code: Tensor) -> Tensor:
        """Run all residual blocks with skip connections.

        x: output of the first layer. code: conditioning, [B, width].
        """
        skips = [x]
        for block in self.down:
            x = self.run_unit(block, x, code)
            skips.append(x)
        for block in self.middle:
            x = self.run_unit(block, x, code)
        for block in self.up:
            x = self.run_unit(block, x, code, None if block.resample else skips.pop())
        return x


# A custom operator, because torch.compile can't trace the function from λ to timesteps, which SciPy computes once on the CPU.
@torch.library.custom_op("elbo::level_number", mutates_args=())
def level_number(logsnr: Tensor, code: str) -> Tensor:
    """Evaluate a function of λ, [B] → [B]. code: the function as text, such as `sigma` or `t:linear`."""
    return _level_code(code)(logsnr).clone()


@level_number.register_fake
def _(logsnr: Tensor, code: str) -> Tensor:
    return torch.empty_like(logsnr)


_level_code = lru_cache(parse_level_code)


class Fourier(nn.Module):
    """Embedding of λ by cosines and sines, [B] → [B, channels].

    code: level code (function of λ) as text, such as `logsnr:factor=0.5`, `sigma` or `t:linear`.
    """

    def __init__(self, channels: int, code: str = CODE):
        super().__init__()
        self.channels = channels
        self.code = code

    def forward(self, logsnr: Tensor) -> Tensor:
        half = self.channels // 2
        if self.code == CODE:
            number = 0.5 * logsnr.float()
            wide = torch.float32
        else:  # float32 is too coarse for the angle of a timestep up to 1000
            number = level_number(logsnr.double(), self.code)
            wide = torch.float64
        power = torch.arange(half, device=logsnr.device, dtype=wide) / half
        angle = number[:, None] * 1e-4**power
        return torch.cat([angle.cos(), angle.sin()], 1).float()


class LinearCode(nn.Module):
    """Embedding λ/4, [B] → [B, 1]. Source: Hoogeboom et al. 2023."""

    channels = 1

    def forward(self, logsnr: Tensor) -> Tensor:
        return 0.25 * logsnr.float()[:, None]  # 1/4 brings the bends of the next layer's SiLU into the range of λ


class ClassTable(nn.Embedding):
    """Class embedding, labels [B] → [B, width].

    null_class: whether label −1 has a learned embedding; False: zeros.
    """

    def __init__(self, classes: int, width: int, null_class: bool):
        weight = torch.empty(classes + null_class, width)  # normal_() on meta tensors takes 2 s of imports
        super().__init__(classes + null_class, width, _weight=weight if weight.is_meta else weight.normal_())
        self.null = classes if null_class else -1

    def forward(self, labels: Tensor) -> Tensor:
        labels = named_labels(labels, self.null, labels)
        return (labels >= 0).to(self.weight.dtype)[:, None] * super().forward(labels.clamp(min=0))


class Conditioning(nn.Module):
    """Embedding of λ and class, [B, width]. null_class: as in ClassTable."""

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
    """Return labels [B] with `null` in place of −1; without labels, return `null` B times.

    logsnr: [B], read only if `labels` is None, for B and the device.
    """
    if labels is None:
        return torch.full(logsnr.shape, null, dtype=torch.long, device=logsnr.device)
    return labels.where(labels >= 0, null)


def precise_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer to an embedding of λ, in at least float32."""
    # Neither bf16 nor TF32 has enough digits to separate neighbouring λ. CUDA may use TF32 for float32, but not for float64.
    # FSDP may hand over sharded weights in a lower precision.
    kept = torch.promote_types(weight.dtype, torch.float32)
    wide = torch.float64 if x.is_cuda else kept
    with without_autocast(x):
        return F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide)).to(kept)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the device of x."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def resized(x: Tensor, resample: str) -> Tensor:
    """Resize images: 'down' halves both sides, 'up' doubles both sides, '' changes nothing."""
    if resample == "up":
        with without_autocast(x):  # on CUDA, autocast would make the result float32, and all that is concatenated with it
            return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if resample else x


def attend(qkv: Tensor, heads: int, prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """Compute self-attention over tokens: qkv [B, N, 3C] → [B, N, C].

    prepare: function that changes queries and keys, [B, heads, N, C/heads] each; None: no change.
    """
    batch, tokens, width = qkv.shape
    q, k, v = qkv.view(batch, tokens, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0)
    if prepare is not None:
        q, k = prepare(q, k)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def attend_pixels(qkv: Tensor, heads: int, normed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Compute self-attention over pixels: qkv [B, 3C, H, W] → [B, C, H, W].

    normed: function to apply first to queries, keys and values, [B, 3, heads, H·W, C/heads]; None: no change.
    """
    batch, channels, height, width = qkv.shape
    # Flash attention needs a pixel's channels contiguous; with sharded weights they are not.
    qkv = qkv.contiguous(memory_format=torch.channels_last)
    qkv = qkv.reshape(batch, 3, heads, channels // 3 // heads, height * width).transpose(3, 4)
    q, k, v = (qkv if normed is None else normed(qkv)).unbind(1)
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(batch, channels // 3, height, width)


class Attention(nn.Module):
    """Self-attention over pixels.

    heads: number of heads; 0: chosen by heads_of. normed: function (channels) → norm layer.
    """

    def __init__(self, channels: int, heads: int = 0, normed: Callable[[int], GroupNorm] = norm):
        super().__init__()
        self.heads = heads or heads_of(channels)
        check_divisor(channels, self.heads, "heads")
        self.norm = normed(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(attend_pixels(self.qkv(self.norm(x)), self.heads))


class Block(nn.Module):
    """Residual block of two convolutions; the conditioning scales and shifts features between them.

    cin, cout: channels in and out. width: width of the conditioning. attention: whether self-attention follows.
    resample: 'down' or 'up' to halve or double the image size first; '' for neither.
    heads: number of attention heads; 0: chosen by heads_of. normed: function (channels) → norm layer.
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
        x = x if skip is None else torch.cat([x, skip], 1)  # in the block, so that activation checkpointing keeps no copy
        h = self.conv1(resized(self.norm1(x, silu=True), self.resample))
        scale, shift = self.scale_shift(code).chunk(2, 1)
        h = self.conv2(self.dropout(self.norm2(h, scale, shift, silu=True)))
        return self.attention(self.skip(resized(x, self.resample)) + h)


@dataclass(frozen=True)
class UNetConfig(AttendedConfig):
    """Config of the ADM U-Net."""

    middle_attention: bool = True  # whether the first middle block has self-attention, too
    heads: Count = 0  # heads of every attention layer; 0: as many as head_width gives
    # least channels of a head, rounded up to a divisor of a level's channels; narrower levels: one head
    head_width: Size = HEAD_WIDTH
    groups: Count = 0  # groups of every group norm; 0: up to 32 groups of at least 4 channels
    norm_eps: Annotated[float, Meta(gt=0, lt=1)] = EPS  # number that norms add to the variance
    embedding: Count = 0  # width of the embedding of noise level and class; 0: 4 times channels
    # level code: the number that tells the network its noise level, through cosines and sines. logsnr:factor=0.5 is -ln sigma; t:linear is a timestep of 1000
    code: str = CODE
    # whether the network also outputs a learned variance, in twice the channels; only imported weights have one
    variance: bool = False


@network("unet", config=UNetConfig, source="Dhariwal & Nichol 2021")
class UNet(LevelsNetwork):
    config: UNetConfig

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        width = config.embedding or 4 * config.channels
        self.conditioning = Conditioning(Fourier(config.channels, config.code), width, config.num_classes)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()

        normed = partial(norm, groups=config.groups, eps=config.norm_eps)

        def block(cin: int, cout: int, down: bool, attention: bool, resample: str) -> Block:
            heads = config.heads or heads_of(cout, config.head_width)
            return Block(cin, cout, width, config.dropout, attention, resample, heads, normed)

        self.first = nn.Conv2d(config.image_channels, config.widths[0], 3, padding=1)
        now = self.add_blocks(block, config.middle_attention)
        self.norm = normed(now)
        self.last = zeroed(nn.Conv2d(now, config.image_channels * (1 + config.variance), 3, padding=1))

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        code = self.conditioning(logsnr, labels)
        x = self.walk(self.first(self.config.padded(z)), code)
        return self.config.cut(self.last(self.norm(x, silu=True)))
