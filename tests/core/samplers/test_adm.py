"""ADM's walk as its authors' formulas have it, against the walk of ddpm on the same timesteps with the same noise."""

import adm
import numpy as np
import pytest
import torch

from elbocli.core.prediction import Prediction, alpha_sigma
from elbocli.core.samplers import parse_sampler, time_grid, walk
from elbocli.core.sampling import CLIPS, Guidance
from elbocli.core.schedule import parse_schedule
from elbocli.errors import UsageError
from elbocli.nn.denoiser import Denoiser

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


@pytest.mark.parametrize("clip", ["none", "static"])
@pytest.mark.parametrize(("name", "steps"), [("linear", 250), ("cosine", 50)])
def test_with_a_learned_variance_a_walk_is_adms(name, steps, clip):
    """A network of 2C channels, whose v goes beyond [−1, 1] as real ones do, through the denoiser that elbo draws with."""
    whole = np.cumprod(1 - adm.betas(name, 1000))
    levels = np.log(whole / (1 - whole))

    def outputs(z, timestep):
        """ε̂ of data that are normal with variance .3, and a v that depends on everything."""
        abar = whole[timestep]
        eps = (1 - abar) ** 0.5 * z / (1 - abar + 0.3 * abar)
        return eps + 0.1 * (z.flip(-1) / 3).sin(), (3 * z.flip(-2) + timestep / 100).sin() * 1.3

    def network(z, logsnr, labels):
        timestep = int(np.abs(levels - float(logsnr[0])).argmin())
        return torch.cat(outputs(z, timestep), 1)

    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(steps)]
    draw = iter(noise)
    wanted = adm.Spaced(name, 1000, str(steps)).walk(
        outputs, next(draw), lambda: next(draw), "learned", clip == "static"
    )
    sampler, draw = parse_sampler("ddpm-learned"), iter(noise)
    denoiser = Denoiser(network, Prediction("eps"), clip=CLIPS.parse(clip))
    grid = time_grid(parse_schedule(LEVELS[name]), steps)
    found = walk(sampler, next(draw), grid, denoiser.asked_by(sampler), lambda: next(draw))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)
    assert denoiser.evaluations == steps and float(found.std()) > 0.2


def test_guidance_is_dits_and_the_variance_is_the_one_with_the_class():
    """DiT guides ε̂ of the first three of four channels, and leaves the rest as the class has it."""
    scale, generator = 1.5, torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64)
    tables = {label: torch.randn(2, 8, 3, 3, generator=generator, dtype=torch.float64) for label in (-1, 5)}
    prediction, labels, at = Prediction("eps"), torch.tensor([5, 5]), 0.7
    guided = Denoiser(lambda z, logsnr, labels: tables[int(labels[0])], prediction, Guidance(scale, channels=3), labels)
    with_class, without = tables[5], tables[-1]
    eps = with_class[:, :4].clone()
    eps[:, :3] = without[:, :3] + scale * (with_class[:, :3] - without[:, :3])
    alpha, sigma = alpha_sigma(at)
    x_hat, gamma = guided.with_variance(z, at)
    np.testing.assert_allclose(x_hat, (z - sigma * eps) / alpha, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gamma, (with_class[:, 4:] + 1) / 2, rtol=1e-14)
    assert guided.evaluations == 2
    np.testing.assert_allclose(guided(z, at), x_hat, rtol=1e-14)
    everything = Denoiser(guided.network, prediction, Guidance(scale), labels)(z, at)
    np.testing.assert_allclose(everything[:, :3], x_hat[:, :3], rtol=1e-12)
    assert not torch.allclose(everything[:, 3], x_hat[:, 3])


def test_a_network_of_other_channels_has_no_variance():
    with pytest.raises(UsageError, match="a learned variance needs 6 channels of a network"):
        Denoiser(lambda z, *_: z, Prediction("eps")).with_variance(torch.zeros(1, 3, 2, 2), 0.0)
