"""ADM's walk as its authors' formulas have it, against the walk of ddpm on the same timesteps with the same noise."""

import adm
import numpy as np
import pytest
import torch

from elbocli.core.samplers.walk import parse_sampler, time_grid, walk
from elbocli.core.schedule import parse_schedule

LEVELS = {"linear": "t-linear", "cosine": "t-squaredcos"}


def draws(seed=0, size=64):
    """Noise by torch's generator, float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("name", "steps"), [("linear", 250), ("cosine", 250), ("cosine", 10), ("linear", 1000)])
def test_with_a_constant_variance_a_walk_is_adms(mixture, name, steps, variance):
    whole = np.cumprod(1 - adm.betas(name, 1000))

    def network(z, timestep):
        abar = whole[timestep]
        return (z - abar**0.5 * mixture.denoise(z, np.log(abar / (1 - abar)))) / (1 - abar) ** 0.5

    draw = draws()
    wanted = adm.Spaced(name, 1000, str(steps)).walk(network, draw(), draw, variance)
    draw, grid = draws(), time_grid(parse_schedule(LEVELS[name]), steps)
    found = walk(parse_sampler(f"ddpm:gamma={int(variance == 'large')}"), draw(), grid, mixture.denoise, draw)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)
    assert float(found.std()) > 0.3
