"""DiT: a transformer over patches, conditioned by scales, shifts and gates that start at zero, built from a config.

Source: Peebles & Xie 2023, whose DiT-XL/2 has 675 million parameters. SiT (Ma et al. 2024) and REPA (Yu et al. 2025) have
the same network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.errors import UsageError
from elbocli.nn.networks import Depth, Network, NetworkConfig, Size, explained, network
from elbocli.nn.networks.blocks import Conditioning, Fourier, Width, attend, zeroed

MLP = 4
EPS = 1e-6
CODE_CHANNELS = 256
LOWEST = 1e-4
"""The frequencies of places fall from 1 to just above this."""
START_STD = 0.02


@dataclass(frozen=True)
class DiTConfig(NetworkConfig):
    """Patches that don't fit the image are filled with zeros. Raises UsageError for sizes that don't go together."""

    width: Width = explained("Channels of the transformer. A multiple of 4, and of the heads.")
    depth: Depth = explained("Its blocks.")
    heads: Size = explained("Heads of its attention.")
    patch: Size = explained("Side of a patch, which is one token.")
    code: str = explained("The number that the network is told of the level: a level code.", default="logsnr:factor=25")
    null_class: bool = explained("Whether 'no class' has a learned code, and not none.", default=True)
    variance: bool = explained("Whether there are as many outputs again, for the variance.", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise UsageError(f"network: heads {self.heads} must divide the width {self.width}")

    @property
    def side(self) -> int:
        """Side in pixels at which the network works: the image's, rounded up to whole patches."""
        return -(-self.image_size // self.patch) * self.patch


def positions(side: int, width: int, device: torch.device) -> Tensor:
    """Codes of the places of side × side tokens, row by row, [side², width]: of the column, then of the row.

    Each is sines, then cosines, of the place's number. Computed where it is used, so that no file and no device holds it.
    """
    quarter = width // 4
    power = torch.arange(quarter, device=device, dtype=torch.float64) / quarter
    angle = torch.arange(side, device=device, dtype=torch.float64)[:, None] * LOWEST**power
    along = torch.cat([angle.sin(), angle.cos()], 1).float()
    return torch.cat([along.repeat(side, 1), along.repeat_interleave(side, 0)], 1)


class DiTBlock(nn.Module):
    """Attention, then an MLP: the conditioning shifts and scales the input of each, and gates its output.

    [B, N, C], [B, C] → [B, N, C]. It starts as the identity.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
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
    """The network of a DiTConfig; its units are its blocks."""

    def __init__(self, config: DiTConfig):
        super().__init__(config)
        width, code = config.width, Fourier(CODE_CHANNELS, config.code)
        self.conditioning = Conditioning(code, width, config.num_classes, config.null_class)
        self.first = nn.Conv2d(config.image_channels, width, config.patch, config.patch)
        self.blocks = nn.ModuleList(DiTBlock(width, config.heads, config.dropout) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, config.patch**2 * config.image_channels * (1 + config.variance)))
        if not self.first.weight.is_meta:
            self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Draw the weights as the paper's authors do; what is zero stays so."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.any():
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        told = self.conditioning
        for weight in (told.first.weight, told.second.weight, *([told.classes.weight] if told.classes else [])):
            nn.init.normal_(weight, std=START_STD)

    def units(self) -> list[nn.Module]:
        """Blocks, from the first to the last."""
        return [*self.blocks]

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """All that comes out, [B, C or 2C, H, W]: what the prediction says, then what is said of the variance."""
        config, code = self.config, self.conditioning(logsnr, labels)
        size = config.image_size
        x = self.first(config.padded(z))
        batch, width, side, _ = x.shape
        x = x.flatten(2).transpose(1, 2) + positions(side, width, x.device)
        for block in self.blocks:
            x = self.through(block, x, code)
        shift, scale = self.modulation(code)[:, None].chunk(2, 2)
        x = self.last(torch.addcmul(shift, self.norm(x), scale + 1))
        patches = x.view(batch, side, side, config.patch, config.patch, -1).permute(0, 5, 1, 3, 2, 4)
        out = patches.reshape(batch, -1, config.side, config.side)
        return out[..., :size, :size].clone(memory_format=torch.channels_last)  # FSDP hooks itself to it: no view
