"""An auxiliary loss with weights of its own, as a plug-in would declare it."""

import torch
from torch import Tensor, nn

import elbocli.plugin as elbo


@elbo.auxiliary("test-brightness", formula="(W mean h + b - mean x)^2", source="docs/extending.md")
class Brightness(nn.Module):
    def __init__(self, shapes: list[tuple[int, ...]], block: float = 0.0) -> None:
        super().__init__()
        self.block = block
        self.read = nn.Linear(elbo.block_of(shapes, block)[0], 1)

    def forward(self, hidden: list[Tensor], batch: elbo.AuxiliaryBatch) -> Tensor:
        read = self.read(elbo.block_of(hidden, self.block).float().mean((2, 3)))[:, 0]
        return torch.square(read - batch.x.mean((1, 2, 3)))
