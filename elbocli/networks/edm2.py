"""The magnitude-preserving U-Net of EDM2, without biases.

Source: Karras et al. 2024, arXiv:2312.02696, config G, whose equation numbers are cited below.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.networks import network
from elbocli.networks.unet import (
    AttendedConfig,
    LevelsNetwork,
    attend_pixels,
    heads_of,
    level_number,
    named_labels,
    precise_linear,
    resized,
)

EPS = 1e-4  # avoids division by zero
SILU_SIZE = 0.596  # root mean square of SiLU of a standard normal variable, as rounded in the paper (eq. 81)
# argument `share` of blend() or join()
RESIDUAL = 0.3
ATTENTION = 0.3
CLASS = 0.5
JOINED = 0.5
CLIP = 256.0  # largest absolute activation of a block's output


@dataclass(frozen=True)
class EDM2Config(AttendedConfig):
    """Config of EDM2's U-Net."""

    quiet_classes = False

    code: str = "logsnr:factor=-0.125"  # level code: the number that tells the network its noise level, ln(sigma)/4


def unit(x: Tensor, *dims: int) -> Tensor:
    """Divide x by its root mean square over dims."""
    wide = torch.promote_types(x.dtype, torch.float32)
    count = math.prod([x.shape[dim] for dim in dims])
    length = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=wide)
    return x / (length / math.sqrt(count) + EPS).to(x.dtype)


def unit_rows(weight: Tensor) -> Tensor:
    """Divide weights by their root mean square per output."""
    return unit(weight, *range(1, weight.dim()))


def silu(x: Tensor) -> Tensor:
    """Apply SiLU, rescaled to root mean square 1 for standard normal x (eq. 81)."""
    return F.silu(x) / SILU_SIZE


def blend(x: Tensor, y: Tensor, share: float) -> Tensor:
    """Return (1 − share) x + share y, rescaled to keep the magnitude (eq. 88)."""
    scale = math.hypot(1 - share, share)
    return torch.add(x * ((1 - share) / scale), y, alpha=share / scale)


def join(x: Tensor, y: Tensor, share: float) -> Tensor:
    """Concatenate channels of x and y, rescaled to magnitudes in the ratio 1 − share : share (eq. 103)."""
    one = x.shape[1]
    other = y.shape[1]
    scale = math.sqrt((one + other) / ((1 - share) ** 2 + share**2))
    return torch.cat([x * (scale * (1 - share) / math.sqrt(one)), y * (scale * share / math.sqrt(other))], 1)


class UnitLayer(nn.Module):
    """Linear layer (kernel 0) or convolution; the applied weights have norm 1 per output (eq. 47)."""

    def __init__(self, cin: int, cout: int, kernel: int = 0):
        super().__init__()
        weight = torch.empty(cout, cin, *([kernel, kernel] if kernel else []))
        # normal_() on meta tensors takes 2 s of imports.
        self.weight = nn.Parameter(weight if weight.is_meta else unit_rows(weight.normal_()))

    def effective(self, gain: Tensor | float = 1.0) -> Tensor:
        """Return the weights with norm `gain` per output, in at least float32."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        length = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
        return weight * (gain / (length + EPS * math.sqrt(weight[0].numel())))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = self.effective(gain)
        return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class LevelAndClass(nn.Module):
    """Embedding of noise level and class, [B, width].

    code: SPEC of the number that tells the network its noise level. channels: number of cosines.
    frequencies, phases: [channels]; random, not trained (eq. 75).
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, code: str, channels: int, width: int, num_classes: int):
        super().__init__()
        self.code = code
        frequencies = torch.empty(channels)
        phases = torch.empty(channels)
        if not phases.is_meta:
            frequencies.normal_(std=2 * math.pi)
            phases.uniform_(0, 2 * math.pi)
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("phases", phases)
        self.level = UnitLayer(channels, width)
        self.classes = UnitLayer(num_classes, width) if num_classes else None

    def forward(self, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        angle = level_number(logsnr.double(), self.code)[:, None] * self.frequencies.double() + self.phases.double()
        weight = self.level.effective()
        out = precise_linear(math.sqrt(2) * angle.cos().to(weight.dtype), weight)
        if self.classes is not None:
            # The input is one-hot times √classes, which selects a column of weights of root mean square 1.
            table = self.classes.effective(math.sqrt(self.classes.weight.shape[1])).t()
            labels = named_labels(labels, -1, logsnr)
            known = (labels >= 0).to(out.dtype)[:, None]
            out = blend(out, known * table[labels.clamp(min=0)], CLASS)  # label −1 adds zero, which halves the mean square
        return silu(out)


class Attention(nn.Module):
    """Cosine self-attention over pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = heads_of(channels)
        self.qkv = UnitLayer(channels, 3 * channels, 1)
        self.out = UnitLayer(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed = attend_pixels(self.qkv(x), self.heads, lambda qkv: unit(qkv, 4))
        return blend(x, self.out(mixed), ATTENTION)


class Block(nn.Module):
    """Residual block of two convolutions.

    width: width of the conditioning. down: whether the encoder uses the block.
    resample: 'down' halves the image size first, 'up' doubles the size, '' does neither.
    """

    def __init__(self, width: int, dropout: float, cin: int, cout: int, down: bool, attention: bool, resample: str):
        super().__init__()
        self.down = down
        self.resample = resample
        self.gain = nn.Parameter(torch.zeros(1))
        self.conv1 = UnitLayer(cout if down else cin, cout, 3)
        self.scale = UnitLayer(width, cout)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = UnitLayer(cout, cout, 3)
        self.skip = UnitLayer(cin, cout, 1) if cin != cout else nn.Identity()
        self.attention = Attention(cout) if attention else nn.Identity()

    def forward(self, x: Tensor, code: Tensor, skip: Tensor | None = None) -> Tensor:
        x = x if skip is None else join(x, skip, JOINED)  # here, so that activation checkpointing keeps no copy
        x = resized(x, self.resample)
        if self.down:
            x = unit(self.skip(x), 1)
        h = self.conv1(silu(x))
        h = silu(h * (self.scale(code, self.gain) + 1)[:, :, None, None])
        h = self.conv2(self.dropout(h))
        x = blend(x if self.down else self.skip(x), h, RESIDUAL)
        return self.attention(x).clamp(-CLIP, CLIP)


@network("edm2", config=EDM2Config, source="Karras et al. 2024")
class EDM2(LevelsNetwork):
    """EDM2's U-Net."""

    config: EDM2Config

    def __init__(self, config: EDM2Config):
        super().__init__(config)
        width = max(config.widths)
        first = config.widths[0]
        self.conditioning = LevelAndClass(config.code, first, width, config.num_classes)
        # A constant input channel of ones replaces biases.
        self.first = UnitLayer(config.image_channels + 1, first, 3)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        block = partial(Block, width, config.dropout)
        self.last = UnitLayer(self.add_blocks(block, middle_attention=True), config.image_channels, 3)
        self.gain = nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def constrain(self, weights: Mapping[str, Tensor], left_out: Tensor) -> None:
        """Reset weights except gains to root mean square 1 per output (eq. 66).

        left_out: whether the optimizer skipped the update; if so, weights stay.
        """
        for name, module in self.named_modules():
            if isinstance(module, UnitLayer):
                weight = weights[f"{name}.weight"]
                weight.copy_(torch.where(left_out, weight, unit_rows(weight)))

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        code = self.conditioning(logsnr, labels)
        z = self.config.padded(z)
        x = self.first(torch.cat([z, torch.ones_like(z[:, :1])], 1))
        return self.config.cut(self.last(self.walk(x, code), self.gain))
