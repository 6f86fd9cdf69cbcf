"""Networks with transformers: DiT and JiT over patches, and the U-ViT of simple diffusion.

Source of DiT: Peebles & Xie 2023.
Source of JiT: Li & He 2025, arXiv:2511.13720.
Source of U-ViT: Hoogeboom et al. 2023.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.errors import UsageError
from elbocli.files.records import Count
from elbocli.networks import Depth, Network, NetworkConfig, Size, network
from elbocli.networks.unet import (
    Block,
    Conditioning,
    Fourier,
    LevelsConfig,
    LinearCode,
    Width,
    attend,
    check_divisor,
    named_labels,
    norm,
    resized,
    zeroed,
)

MLP = 4
EPS = 1e-6
POSITION_STD = 0.02
LOWEST = 1e-4  # lower bound of the frequencies of position embeddings; the highest is 1
ROTARY = 10_000.0  # ratio of the highest to the lowest frequency of rotary positions


@dataclass(frozen=True)
class DiTConfig(NetworkConfig):
    """Config of a DiT."""

    width: Width  # channels of the transformer, a multiple of 4 and of the number of heads
    depth: Depth  # number of transformer blocks
    heads: Size  # number of attention heads
    patch: Size  # side of a patch in pixels; each patch is one token
    code: str = "logsnr:factor=25"  # level code: the number that tells the network its noise level
    null_class: bool = True  # whether 'no class' has a learned embedding, and not zero
    variance: bool = False  # whether the output has C further channels, for a learned variance

    @property
    def side(self) -> int:
        """Side of the image in pixels, padded to whole patches."""
        return -(-self.image_size // self.patch) * self.patch


def positions(side: int, width: int, device: torch.device) -> Tensor:
    """Return position embeddings of side × side tokens, row by row, [side², width].

    Axis 1: sine and cosine of the token's column, then of the token's row.
    """
    quarter = width // 4
    power = torch.arange(quarter, device=device, dtype=torch.float64) / quarter
    angle = torch.arange(side, device=device, dtype=torch.float64)[:, None] * LOWEST**power
    along = torch.cat([angle.sin(), angle.cos()], 1).float()
    return torch.cat([along.repeat(side, 1), along.repeat_interleave(side, 0)], 1)


class DiTBlock(nn.Module):
    """DiT block: attention, then an MLP, both with adaLN-Zero.

    x: tokens [B, N, C]. code: conditioning [B, C].
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        check_divisor(width, heads, "heads")
        self.heads = heads
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.widen = nn.Linear(width, MLP * width)
        self.narrow = nn.Linear(MLP * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(code)[:, None].chunk(6, 2)
        h = torch.addcmul(shift1, self.norm(x), scale1 + 1)
        x = x + gate1 * self.dropout(self.mix(attend(self.qkv(h), self.heads)))
        h = torch.addcmul(shift2, self.norm(x), scale2 + 1)
        return x + gate2 * self.narrow(self.dropout(F.gelu(self.widen(h), approximate="tanh")))


@network("dit", config=DiTConfig, source="Peebles & Xie 2023")
class DiT(Network):
    """Diffusion transformer over image patches."""

    config: DiTConfig

    def __init__(self, config: DiTConfig):
        super().__init__(config)
        width = config.width
        code = Fourier(256, config.code)
        self.conditioning = Conditioning(code, width, config.num_classes, config.null_class)
        self.first = self.first_layer()
        self.blocks = nn.ModuleList(self.block(index) for index in range(config.depth))
        self.norm = self.norm_layer()
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, config.patch**2 * config.image_channels * (1 + config.variance)))
        if not self.last.weight.is_meta:
            self._start()

    def first_layer(self) -> nn.Module:
        """Return the layer from images to tokens, [B, C, H, W] → [B, width, H/patch, W/patch]."""
        config = self.config
        return nn.Conv2d(config.image_channels, config.width, config.patch, config.patch)

    def block(self, index: int) -> nn.Module:
        return DiTBlock(self.config.width, self.config.heads, self.config.dropout)

    def norm_layer(self) -> nn.Module:
        return nn.LayerNorm(self.config.width, EPS, elementwise_affine=False)

    @torch.no_grad()
    def _start(self) -> None:
        # The code of the DiT paper does the same; layers of zeros stay zero.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.any():
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        conditioning = self.conditioning
        weights = [conditioning.first.weight, conditioning.second.weight]
        if conditioning.classes is not None:
            weights.append(conditioning.classes.weight)
        for weight in weights:
            nn.init.normal_(weight, std=0.02)

    def units(self) -> list[nn.Module]:
        return [*self.blocks]

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        code = self.conditioning(logsnr, labels)
        x = self.tokens(z)
        for block in self.blocks:
            x = self.run_unit(block, x, code)
        return self.image(x, code)

    def tokens(self, z: Tensor) -> Tensor:
        """Return tokens with position embeddings: [B, C, H, W] → [B, N, width]."""
        x = self.first(self.config.padded(z))
        _, width, side, _ = x.shape
        return x.flatten(2).transpose(1, 2) + positions(side, width, x.device)

    def image(self, x: Tensor, code: Tensor) -> Tensor:
        """Return the output [B, C or 2C, H, W]. x: last block's tokens, [B, N, width]. code: conditioning, [B, width]."""
        config = self.config
        side = config.side // config.patch
        batch = x.shape[0]  # len() would fix the batch in torch.export
        shift, scale = self.modulation(code)[:, None].chunk(2, 2)
        x = self.last(torch.addcmul(shift, self.norm(x), scale + 1))
        patches = x.view(batch, side, side, config.patch, config.patch, -1).permute(0, 5, 1, 3, 2, 4)
        return config.cut(patches.reshape(batch, -1, config.side, config.side))


# JiT: a DiT with RMSNorm, normalised queries and keys, rotary positions, SwiGLU, a bottleneck before the tokens, and class tokens


@dataclass(frozen=True)
class JiTConfig(DiTConfig):
    """Config of a JiT. Raises UsageError: 4 × heads doesn't divide the width, or class_start ≥ depth."""

    code: str = "flow-reversed"  # level code: the number that tells the network its noise level
    bottleneck: Size = 128  # channels between the pixels of a patch and the transformer's width
    class_tokens: Count = 32  # tokens that repeat the class embedding, for networks with classes
    class_start: Count = 4  # number of blocks before the class tokens join

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divisor(self.width, 4 * self.heads, "4 × heads")
        if self.class_start >= self.depth:
            raise UsageError(f"network: class_start {self.class_start} must be below the depth {self.depth}; lower class_start")


def rotary_angles(side: int, width: int, before: int, device: torch.device) -> Tensor:
    """Return rotary angles of tokens, [before + side², width/2].

    Axis 1: angles by the token's row, then by the token's column. The first `before` tokens have angle 0.
    side: tokens per row and column. width: channels of a head.
    """
    frequency = ROTARY ** (-torch.arange(width // 4, device=device) / (width // 4))
    angle = torch.arange(side, device=device)[:, None] * frequency
    both = torch.cat([angle.repeat_interleave(side, 0), angle.repeat(side, 1)], 1)
    return torch.cat([both.new_zeros(before, width // 2), both])


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + width/2). x: [B, heads, N, width]. angle: [N, width/2]."""
    cos = angle.cos().to(x.dtype)
    sin = angle.sin().to(x.dtype)
    one, other = x.chunk(2, -1)
    return torch.cat([one * cos - other * sin, one * sin + other * cos], -1)


class JiTBlock(nn.Module):
    """JiT block: attention, then SwiGLU, both with adaLN-Zero.

    x: tokens [B, N, C]. code: conditioning [B, C]. angle: rotary angles, [N, C/heads/2].
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        hidden = MLP * width * 2 // 3
        self.norm1 = nn.RMSNorm(width, EPS)
        self.norm2 = nn.RMSNorm(width, EPS)
        self.norm_q = nn.RMSNorm(width // heads, EPS)
        self.norm_k = nn.RMSNorm(width // heads, EPS)
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.widen = nn.Linear(width, 2 * hidden)
        self.narrow = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, code: Tensor, angle: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(code)[:, None].chunk(6, 2)
        h = self.qkv(torch.addcmul(shift1, self.norm1(x), scale1 + 1))
        h = attend(h, self.heads, lambda q, k: (rotated(self.norm_q(q), angle), rotated(self.norm_k(k), angle)))
        x = x + gate1 * self.dropout(self.mix(h))
        gate, value = self.widen(torch.addcmul(shift2, self.norm2(x), scale2 + 1)).chunk(2, 2)
        return x + gate2 * self.narrow(self.dropout(F.silu(gate) * value))


@network("jit", config=JiTConfig, source="Li & He 2025")
class JiT(DiT):
    """DiT with RMSNorm, SwiGLU, rotary positions and class tokens."""

    config: JiTConfig

    def __init__(self, config: JiTConfig):
        super().__init__(config)
        self.context = config.class_tokens if config.num_classes else 0
        if self.context:
            self.context_positions = nn.Parameter(torch.randn(1, self.context, config.width) * POSITION_STD)

    def first_layer(self) -> nn.Module:
        config = self.config
        patches = nn.Conv2d(config.image_channels, config.bottleneck, config.patch, config.patch, bias=False)
        return nn.Sequential(patches, nn.Conv2d(config.bottleneck, config.width, 1))

    def block(self, index: int) -> nn.Module:
        config = self.config
        middle = config.depth // 4 <= index < config.depth // 4 * 3
        return JiTBlock(config.width, config.heads, config.dropout if middle else 0.0)

    def norm_layer(self) -> nn.Module:
        return nn.RMSNorm(self.config.width, EPS)

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        config = self.config
        code = self.conditioning(logsnr, labels)
        x = self.tokens(z)
        side = config.side // config.patch
        angle = rotary_angles(side, config.width // config.heads, self.context, x.device)
        for index, block in enumerate(self.blocks):
            if self.conditioning.classes is not None and self.context and index == config.class_start:
                of_class = self.conditioning.classes(named_labels(labels, -1, logsnr))[:, None]
                x = torch.cat([(of_class + self.context_positions).to(x.dtype), x], 1)
            x = self.run_unit(block, x, code, angle[-x.shape[1] :])
        return self.image(x[:, -(side**2) :], code)


# U-ViT. Details that the paper leaves open are chosen so that the paper's ImageNet network has 2 billion parameters.

PATCHINGS = {"none": 0, "dwt-1": 1, "dwt-2": 2}  # name → number of wavelet levels; each level halves the image side


@dataclass(frozen=True)
class UViTConfig(LevelsConfig):
    """Config of a U-ViT. `dropout` acts in the transformer only."""

    depth: Depth  # number of blocks of the transformer, which is the last level
    heads: Size  # number of attention heads
    embedding: Size  # width of the embedding of noise level and class
    # dwt-1 or dwt-2: the network works on 1 or 2 levels of wavelet bands, not on pixels (none)
    patching: Literal["none", "dwt-1", "dwt-2"] = "none"

    @property
    def width(self) -> int:
        return self.widths[-1]

    @property
    def halvings(self) -> int:
        return PATCHINGS[self.patching] + len(self.levels) - 1


class TransformerBlock(nn.Module):
    """U-ViT block: attention, then an MLP whose input the conditioning scales and shifts.

    x: tokens [B, N, C]. code: conditioning [B, width].
    """

    def __init__(self, channels: int, heads: int, width: int, dropout: float):
        super().__init__()
        check_divisor(channels, heads, "heads")
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.mix = zeroed(nn.Linear(channels, channels))
        self.norm2 = nn.LayerNorm(channels, elementwise_affine=False)
        self.scale_shift = nn.Linear(width, 2 * channels)
        self.widen = nn.Linear(channels, MLP * channels)
        self.narrow = zeroed(nn.Linear(MLP * channels, channels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        x = x + self.dropout(self.mix(attend(self.qkv(self.norm1(x)), self.heads)))
        scale, shift = self.scale_shift(code)[:, None].chunk(2, 2)
        h = torch.addcmul(shift, self.norm2(x), scale + 1)
        return x + self.narrow(self.dropout(F.gelu(self.widen(h))))


@network("uvit", config=UViTConfig, source="Hoogeboom et al. 2023")
class UViT(Network):
    """U-ViT: a U-Net whose lowest level is a deep transformer."""

    config: UViTConfig

    def __init__(self, config: UViTConfig):
        super().__init__(config)
        self.patches = PATCHINGS[config.patching]
        width = config.embedding
        channels = config.widths
        inside = config.image_channels * 4**self.patches
        self.conditioning = Conditioning(LinearCode(), width, config.num_classes)
        self.first = nn.Conv2d(inside, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.widen = nn.ModuleList()
        self.narrow = nn.ModuleList()
        for now, below in pairwise(channels):
            self.down.append(nn.ModuleList(Block(now, now, width, 0.0) for _ in range(config.blocks)))
            self.up.append(nn.ModuleList(Block(2 * now, now, width, 0.0) for _ in range(config.blocks)))
            self.widen.append(nn.Conv2d(now, below, 1))
            self.narrow.append(nn.Conv2d(below, now, 1))
        side = config.side >> config.halvings
        self.position = nn.Parameter(torch.randn(1, config.width, side, side) * POSITION_STD)
        self.transformer = nn.ModuleList(
            TransformerBlock(config.width, config.heads, width, config.dropout) for _ in range(config.depth)
        )
        self.norm = norm(channels[0])
        self.last = zeroed(nn.Conv2d(channels[0], inside, 3, padding=1))

    def units(self) -> list[nn.Module]:
        ups = [block for level in reversed(self.up) for block in level]  # type: ignore[attr-defined]
        return [*(block for level in self.down for block in level), *self.transformer, *ups]  # type: ignore[attr-defined]

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        code = self.conditioning(logsnr, labels)
        z = self.config.padded(z)
        x = self.first(dwt(z, self.patches) if self.patches else z)
        skips = []
        for level, widen in zip(self.down, self.widen):
            for block in level:  # type: ignore[attr-defined]
                x = self.run_unit(block, x, code)
                skips.append(x)
            x = widen(F.avg_pool2d(x, 2))
        x = x + self.position
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.transformer:
            tokens = self.run_unit(block, tokens, code)
        x = tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        for level, narrow in zip(reversed(self.up), reversed(self.narrow)):
            x = resized(narrow(x), "up")
            for block in level:  # type: ignore[attr-defined]
                x = self.run_unit(block, x, code, skips.pop())
        out = self.last(self.norm(x, silu=True))
        return self.config.cut(idwt(out.to(z.dtype), self.patches) if self.patches else out)


# The 5/3 wavelet (Le Gall & Tabatabai 1988) by lifting, from images to subbands of half the size and back. Edges are mirrored.

# Variances of unit white noise along one axis after levels 1 and 2: (low band, high band).
VARIANCE = ((46 / 64, 3 / 2), (1780 / 4096, 171 / 128))
# 1/σ of white noise in the four bands of an image, at levels 1 and 2. Python floats, which need no copy to the device.
SCALES = [[1 / math.sqrt(rows * columns) for rows in bands for columns in bands] for bands in VARIANCE]
HIGH = [1.0, *SCALES[0][1:]]  # scales of level 1 before level 2, which scales the lowest band itself


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split the last axis, […, 2n], into a low and a high wavelet band, […, n] each."""
    even = x[..., 0::2]
    odd = x[..., 1::2]
    high = odd - 0.5 * (even + _after(even))
    return even + 0.25 * (high + _before(high)), high


def merge(low: Tensor, high: Tensor) -> Tensor:
    """Invert split(): bands […, n] → tensor […, 2n]."""
    even = low - 0.25 * (high + _before(high))
    odd = high + 0.5 * (even + _after(even))
    return torch.stack([even, odd], -1).flatten(-2)


def _after(x: Tensor) -> Tensor:
    return torch.cat([x[..., 1:], x[..., -1:]], -1)


def _before(x: Tensor) -> Tensor:
    return torch.cat([x[..., :1], x[..., :-1]], -1)


def bands(x: Tensor, scales: list[float]) -> Tensor:
    """Return one level of the wavelet transform of images [B, C, H, W]: four bands, [B, 4C, H/2, W/2].

    Bands along (H, W): (low, low), (low, high), (high, low), (high, high). scales: factor of each band.
    """
    halves = [half for side in split(x.mT) for half in split(side.mT)]
    return torch.cat([half * scale for half, scale in zip(halves, scales)], 1)


def image(x: Tensor, scales: list[float]) -> Tensor:
    """Invert bands() with the same scales: [B, 4C, H, W] → [B, C, 2H, 2W]."""
    ll, lh, hl, hh = (band / scale for band, scale in zip(x.chunk(4, 1), scales))
    return merge(merge(ll, lh).mT, merge(hl, hh).mT).mT


def dwt(x: Tensor, levels: int) -> Tensor:
    """Return the wavelet transform of images: [B, C, H, W] → [B, C·4^levels, H/2^levels, W/2^levels].

    levels: 1 or 2. White noise keeps variance 1, except near edges.
    """
    if levels == 1:
        return bands(x, SCALES[0])
    low, fine = bands(x, HIGH).tensor_split([x.shape[1]], 1)
    return torch.cat([bands(low, SCALES[1]), torch.pixel_unshuffle(fine, 2)], 1)  # level 2 splits the lowest band only


def idwt(x: Tensor, levels: int) -> Tensor:
    """Invert dwt(): [B, C·4^levels, H, W] → [B, C, H·2^levels, W·2^levels]."""
    if levels == 1:
        return image(x, SCALES[0])
    coarse, fine = x.tensor_split([x.shape[1] // 4], 1)
    return image(torch.cat([image(coarse, SCALES[1]), torch.pixel_shuffle(fine, 2)], 1), HIGH)
