"""Formulas stated apart from the package: noising, predictions, ADM's betas, EDM's sampler, and exact denoisers with their likelihoods."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def expand(values, like):
    """[B] → [B, 1, …] with the dtype of `like`."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def diffuse(x, eps, logsnr):
    """z = αx + σε. x, eps: [B, …]; logsnr: [B]."""
    return expand(logsnr.sigmoid().sqrt(), x) * x + expand((-logsnr).sigmoid().sqrt(), x) * eps


def target(prediction, x, eps, logsnr):
    """a·x + b·ε."""
    c = prediction.coefficients(logsnr)
    return expand(c.a, x) * x + expand(c.b, x) * eps


def x_hat(prediction, out, z, logsnr):
    """The estimate of the data."""
    c = prediction.coefficients(logsnr)
    return expand(c.x_from_z, z) * z + expand(c.x_from_out, z) * out


def betas(name, count):
    """β of each timestep: `linear`, or `cosine` with its cut at .999."""
    if name == "linear":
        return np.linspace(0.1 / count, 20 / count, count)
    clean = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - clean[1:] / clean[:-1], 0.999)


SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
RHO = 7.0


class Stacked:
    """Random numbers of a batch, of one generator an image; the seed of each is as large as 32 bits hold."""

    def __init__(self, seeds, device="cpu"):
        self.of = [torch.Generator(device) for _ in seeds]
        for generator, seed in zip(self.of, seeds):
            generator.manual_seed(int(seed) % 2**32)

    def normal(self, shape, dtype=torch.float32):
        """[B, *shape]"""
        return torch.stack([torch.randn(shape, generator=generator, dtype=dtype) for generator in self.of])

    def label(self, classes):
        """[B]"""
        return torch.stack([torch.randint(classes, size=[], generator=generator) for generator in self.of])


def algorithm_2(d, draw, n, churn=0.0, s_min=0.0, s_max=math.inf, s_noise=1.0, sigma_min=SIGMA_MIN, edm2=False):
    """y at σ = 0 by a denoiser d(y, σ): σ falls from 80 to sigma_min with rho = 7, and then to 0.

    EDM adds √(σ̂² − σ²) S_noise randn_like(y) in every step, also where σ̂ = σ; EDM2 (edm2) draws only where churn is on.
    """
    at = [(SIGMA_MAX ** (1 / RHO) + i / (n - 1) * (sigma_min ** (1 / RHO) - SIGMA_MAX ** (1 / RHO))) ** RHO for i in range(n)]
    y = draw() * at[0]
    for sigma, below in zip(at, [*at[1:], 0.0]):
        churned = s_min <= sigma <= s_max and (churn > 0 or not edm2)
        raised = sigma * (1 + min(churn / n, math.sqrt(2) - 1)) if churned else sigma
        if churned or not edm2:
            y = y + (raised**2 - sigma**2) ** 0.5 * s_noise * draw()
        slope = (y - d(y, raised)) / raised
        moved = y + (below - raised) * slope
        if below > 0:
            moved = y + (below - raised) * (slope + (moved - d(moved, below)) / below) / 2
        y = moved
    return y


def levels_of(logsnr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ at each λ [B], shaped to go with `like` [B, …]."""
    shaped = logsnr.double().view(-1, *[1] * (like.dim() - 1))
    return shaped.sigmoid().sqrt(), (-shaped).sigmoid().sqrt()


class Mixture:
    """Independent numbers, each from normals of `means` and `stds` with probabilities `shares`."""

    def __init__(self, shares: Any, means: Any, stds: Any):
        self.shares, self.means, self.stds = (torch.tensor(values, dtype=torch.float64) for values in (shares, means, stds))

    def __call__(self, z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        at = z.double()[..., None]
        alpha, sigma = levels_of(logsnr, at)
        variance = (alpha * self.stds) ** 2 + sigma**2
        away = at - alpha * self.means
        of = (self.shares.log() - 0.5 * away**2 / variance - 0.5 * variance.log()).softmax(-1)
        return (of * sigma * away / variance).sum(-1).to(z.dtype)

    def nats(self, x: Tensor) -> Tensor:
        """Return −log p(x) in nats, [B]."""
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
        self.shares = shares
        self.at = torch.arange(256, dtype=torch.float64) / 127.5 - 1

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
