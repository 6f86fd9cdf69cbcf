"""Grids of levels: entropy's and the adaptive schedules are the same; a grid's levels come back as they were."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from elbocli.core.adaptive import ErrorMoments, bin_edges, fit_schedule
from elbocli.core.samplers import time_grid
from elbocli.core.sampling import GRIDS
from elbocli.core.weighting import parse_weighting
from elbocli.files.schedule_file import resolve_schedule, to_text

LOW, HIGH = -8.0, 8.0
EDGES = bin_edges(LOW, HIGH, 50)
FLOOR = 1e-9


def fit_to(mean: torch.Tensor):
    """Fits the adaptive schedule to a log so long that its mean errors are exact."""
    moments = ErrorMoments(EDGES, torch.full_like(mean, 1e14), mean, mean.square() * (1 + 1e-6))
    return lambda weighting: fit_schedule(moments, parse_weighting(weighting), "loss", FLOOR)


def normal_information(logsnr: torch.Tensor) -> torch.Tensor:
    """I(x; z) of N(0, .09): ½ log(1 + .09 e^λ)."""
    return 0.5 * (0.09 * logsnr.exp()).log1p()


def components(mixture, z, logsnr):
    """Terms of p(z) and of x given z, for each normal of a mixture: share × density, mean and variance, arrays like z."""
    alpha2, sigma2 = 1 / (1 + math.exp(-logsnr)), 1 / (1 + math.exp(logsnr))
    found = []
    for share, mean, var in zip(mixture.share, mixture.mean, mixture.var):
        total, off = alpha2 * var + sigma2, z - math.sqrt(alpha2) * mean
        density = share * np.exp(-(off**2) / (2 * total)) / math.sqrt(2 * math.pi * total)
        found.append((density, mean + math.sqrt(alpha2) * var / total * off, np.full_like(z, var * sigma2 / total)))
    return [np.stack(each) for each in zip(*found)]


def mixture_information(mixture, logsnr, nodes):
    """I(x; z) = h(z) − h(z | x)."""
    z, weight = nodes
    density = components(mixture, z, logsnr)[0].sum(0)
    entropy = -float(weight @ (density * np.log(np.maximum(density, 1e-300))))
    return entropy - 0.5 * math.log(2 * math.pi * math.e / (1 + math.exp(logsnr)))


def mixture_error(mixture, logsnr, nodes):
    """E(ε − ε̂)² = e^λ E Var[x | z]."""
    z, weight = nodes
    density, mean, var = components(mixture, z, logsnr)
    whole = np.maximum(density.sum(0), 1e-300)
    first, second = (density * mean).sum(0) / whole, (density * (var + mean**2)).sum(0) / whole
    return math.exp(logsnr) * float(weight @ (whole * (second - first**2)))


def shares(schedule):
    """The time that a schedule spends in each bin, from the noisiest."""
    return -schedule.t(EDGES).diff()


def test_equal_steps_of_a_normals_entropy_are_the_adaptive_schedule_of_elbo():
    steps = normal_information(EDGES).diff()
    mean = 2 * steps / EDGES.diff()
    entropic = GRIDS["entropic"](fit_to(mean), list)
    torch.testing.assert_close(shares(entropic), steps / steps.sum(), rtol=0, atol=1e-9)
    fitted = fit_to(mean)("elbo")
    torch.testing.assert_close(
        entropic.logsnr(torch.linspace(0, 1, 33).double()),
        fitted.logsnr(torch.linspace(0, 1, 33).double()),
        rtol=0,
        atol=1e-9,
    )


def test_equal_steps_of_a_mixtures_entropy_are_the_adaptive_schedule_of_elbo(mixture, panels):
    """Two sides that share nothing: entropies of densities, and squared errors of the denoiser."""
    nodes, (at, weight) = panels(np.linspace(-9, 9, 600)), panels(EDGES.numpy())
    steps = torch.tensor(
        [mixture_information(mixture, edge, nodes) for edge in EDGES.tolist()], dtype=torch.float64
    ).diff()
    error = torch.tensor([mixture_error(mixture, float(level), nodes) for level in at], dtype=torch.float64)
    mean = (error * torch.from_numpy(weight)).reshape(len(EDGES) - 1, -1).sum(1) / EDGES.diff()
    torch.testing.assert_close(shares(GRIDS["entropic"](fit_to(mean), list)), steps / steps.sum(), rtol=0, atol=1e-9)


def test_the_rescaled_grid_is_the_adaptive_schedule_of_fm_ot():
    mean = 2 * normal_information(EDGES).diff() / EDGES.diff()
    steps = mean * 2 * -(-EDGES / 2).exp().diff()
    rescaled = GRIDS["rescaled"](fit_to(mean), list)
    torch.testing.assert_close(shares(rescaled), steps / steps.sum(), rtol=0, atol=1e-9)
    fitted = fit_to(mean)("fm-ot")
    torch.testing.assert_close(shares(rescaled), shares(fitted), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [2, 3, 7, 16, 33])
def test_levels_come_back_from_a_file_as_they_were(count: int, tmp_path: Path):
    levels = sorted((torch.rand(count, generator=torch.Generator().manual_seed(count)).double() * 19 - 9.7).tolist())
    file = tmp_path / "grid.yaml"
    file.write_text(to_text(GRIDS["solver"](None, lambda: levels), grid="solver"))
    schedule = resolve_schedule(str(file), -10.0, 10.0, clip=True)
    assert time_grid(schedule, count) == pytest.approx([*levels, math.inf], rel=0, abs=1e-12)
