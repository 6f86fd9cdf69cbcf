"""elbo-tiny: a small random network whose features tell images apart well enough to test with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Tiny(nn.Module):
    """uint8 [B,3,H,W] → (features [B, 64], logits [B, 10]), from a fixed seed."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 32), (32, 64), (64, 64)]
        self.convs = nn.ModuleList(nn.Conv2d(cin, cout, 3, stride=2, padding=1, bias=False) for cin, cout in sizes)
        self.head = nn.Linear(64, 10, bias=False)
        generator = torch.Generator().manual_seed(2023)
        for parameter in self.parameters():
            fan_in = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.to(self.head.weight.dtype) / 127.5 - 1
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        features = x.mean((2, 3)) * 8
        return features, self.head(features)
