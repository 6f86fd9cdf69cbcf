"""Exact denoisers as networks of an ε prediction, and the likelihoods that they stand for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def levels_of(logsnr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ at each λ [B], shaped to go with `like` [B, …]."""
    shaped = logsnr.double().view(-1, *[1] * (like.dim() - 1))
    return shaped.sigmoid().sqrt(), (-shaped).sigmoid().sqrt()


class Mixture:
    """Independent numbers, each from normals of `means` and `stds` with probabilities `shares`."""

    def __init__(self, shares: Any, means: Any, stds: Any):
        self.shares, self.means, self.stds = (
            torch.tensor(values, dtype=torch.float64) for values in (shares, means, stds)
        )

    def __call__(self, z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        at = z.double()[..., None]
        alpha, sigma = levels_of(logsnr, at)
        variance = (alpha * self.stds) ** 2 + sigma**2
        away = at - alpha * self.means
        of = (self.shares.log() - 0.5 * away**2 / variance - 0.5 * variance.log()).softmax(-1)
        return (of * sigma * away / variance).sum(-1).to(z.dtype)

    def nats(self, x: Tensor) -> Tensor:
        """−log p of each example."""
        away = (x.double()[..., None] - self.means) / self.stds
        log_p = self.shares.log() - 0.5 * away**2 - self.stds.log() - 0.5 * math.log(2 * math.pi)
        return -log_p.logsumexp(-1).flatten(1).sum(1)

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        """Examples, float32."""
        random = torch.Generator().manual_seed(seed)
        of = torch.multinomial(self.shares, math.prod(shape), True, generator=random)
        eps = torch.randn(len(of), generator=random, dtype=torch.float64)
        return (self.means[of] + self.stds[of] * eps).view(*shape).float()


class Levels:
    """Independent pixels of 256 levels, which have these probabilities [256]."""

    def __init__(self, shares: Tensor):
        self.shares, self.at = shares, torch.arange(256, dtype=torch.float64) / 127.5 - 1

    def __call__(self, z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        at = z.double()[..., None]
        alpha, sigma = levels_of(logsnr, at)
        of = (self.shares.log() - 0.5 * ((at - alpha * self.at) / sigma) ** 2).softmax(-1)
        x_hat = (of * self.at).sum(-1)
        alpha, sigma = levels_of(logsnr, z)
        return ((z.double() - alpha * x_hat) / sigma).to(z.dtype)

    def nats(self, pixels: Tensor) -> Tensor:
        """−log P of each image of levels."""
        return -self.shares.log()[pixels.long()].flatten(1).sum(1)

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        """Pixels, uint8."""
        random = torch.Generator().manual_seed(seed)
        return torch.multinomial(self.shares, math.prod(shape), True, generator=random).view(*shape).to(torch.uint8)


class ByClass:
    """A network that asks another for each label."""

    def __init__(self, *of: Mixture):
        self.of = of

    def __call__(self, z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        found = torch.stack([network(z, logsnr, None) for network in self.of], 1)
        return found[torch.arange(len(z)), labels]
