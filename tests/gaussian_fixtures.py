"""Fixtures: fine quadrature, and data whose exact denoiser is known."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch


def _panels(edges, order=8):
    """Gauss-Legendre nodes and weights on each interval between edges."""
    node, weight = np.polynomial.legendre.leggauss(order)
    edges = np.asarray(edges, np.float64)
    half = np.diff(edges)[:, None] / 2
    return ((edges[:-1, None] + half) + half * node).ravel(), (half * weight).ravel()


@pytest.fixture(scope="session")
def panels():
    """(nodes, weights) = panels(edges)."""
    return _panels


@dataclass(frozen=True)
class Mixture:
    """A mixture of two normals in one dimension: mean .23, variance .8806."""

    share: tuple[float, float] = (0.4, 0.6)
    mean: tuple[float, float] = (-0.7, 0.85)
    var: tuple[float, float] = (0.04, 0.48)

    def denoise(self, z, logsnr):
        """The exact E[x | z], at one λ or a λ per example."""
        level = torch.as_tensor(logsnr, dtype=torch.float64)
        alpha2 = level.sigmoid()
        sigma2 = (-level).sigmoid()
        alpha = alpha2.sqrt()
        estimates = []
        evidence = []
        for share, mean, var in zip(self.share, self.mean, self.var):
            total = alpha2 * var + sigma2
            off = z - alpha * mean
            estimates.append(mean + alpha * var / total * off)
            evidence.append(math.log(share) - 0.5 * total.log() - 0.5 * off.square() / total)
        weight = torch.stack(torch.broadcast_tensors(*evidence)).softmax(0)
        return (weight * torch.stack(torch.broadcast_tensors(*estimates))).sum(0)

    def quadrature(self, order):
        """(x, eps, probability): nodes for an average over data and noise."""
        node, weight = np.polynomial.hermite_e.hermegauss(order)
        weight = weight / weight.sum()
        x = np.concatenate([m + math.sqrt(v) * node for m, v in zip(self.mean, self.var)])
        chance = np.concatenate([s * weight for s in self.share])
        grid = np.meshgrid(x, node, indexing="ij")
        return (*(torch.from_numpy(g.ravel()) for g in grid), torch.from_numpy(np.outer(chance, weight).ravel()))


@pytest.fixture(scope="session")
def mixture():
    return Mixture()
