"""EDM's sampler and its random numbers re-stated (Karras et al. 2022, algorithm 2); nothing of elbo is used."""

import math

import torch

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0


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
    at = [
        (SIGMA_MAX ** (1 / RHO) + i / (n - 1) * (sigma_min ** (1 / RHO) - SIGMA_MAX ** (1 / RHO))) ** RHO
        for i in range(n)
    ]
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
