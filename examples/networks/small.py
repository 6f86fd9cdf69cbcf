"""A network of one's own, in plain torch: residual convolutions, each scaled and shifted by the noise level and the class.

elbo trains it (small.yaml), and imports weights that another program trained: see demo.sh.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import elbocli.plugin as elbo


class Layer(nn.Module):
    """x [B, C, H, W], code [B, W] → x + two convolutions, between which the code scales and shifts."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(width, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.film(code)[:, :, None, None].chunk(2, 1)
        hidden = self.first(nn.functional.silu(self.norm(x)))
        return x + self.second(nn.functional.silu(hidden * (1 + scale) + shift))


class Small(nn.Module):
    """(z [B, C, H, W], logsnr [B], labels [B] or None) → [B, C, H, W], what the run's prediction says.

    image_size, image_channels and num_classes are those of the dataset.
    """

    rates: Tensor

    def __init__(self, image_size: int, image_channels: int, num_classes: int, channels: int = 32, depth: int = 6):
        super().__init__()
        width = 4 * channels
        self.level = nn.Sequential(nn.Linear(2 * channels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.classes = nn.Embedding(num_classes + 1, width)  # the last is 'no class', which elbo calls -1
        self.places = nn.Parameter(torch.zeros(channels, image_size, image_size))
        self.enter = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.layers = nn.ModuleList(Layer(channels, width) for _ in range(depth))
        self.leave = nn.Conv2d(channels, image_channels, 3, padding=1)
        self.register_buffer("rates", torch.logspace(-2, 0.5, channels), persistent=False)

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        angles = logsnr[:, None] * self.rates
        code = self.level(torch.cat([angles.sin(), angles.cos()], 1))
        if labels is not None:
            last = self.classes.num_embeddings - 1
            code = code + self.classes(labels.where(labels >= 0, last))
        x = self.enter(z) + self.places
        for layer in self.layers:
            x = layer(x, code)
        return self.leave(x)


@dataclass(frozen=True)
class SmallConfig(elbo.NetworkConfig):
    """Settings of the network, in the section `network` of small.yaml. null_class: the network is trained without the class, too."""

    channels: int = 32
    depth: int = 6
    null_class: bool = True


@elbo.network("small", config=SmallConfig, source="examples/networks/small.py")
class SmallNetwork(elbo.Network):
    """Small as a network of elbo."""

    def __init__(self, config: SmallConfig):
        super().__init__(config)
        shape = config.image_size, config.image_channels, config.num_classes
        self.network = Small(*shape, config.channels, config.depth)

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.network(z, logsnr, labels)
