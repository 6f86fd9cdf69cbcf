"""The bound against what is known exactly: Gaussian likelihoods, the theorem for every weighting, the flow's density."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.bound.ode import log_density, with_trace
from elbocli.core.elbo import (
    Augmented,
    by_cell,
    prior,
    reconstruction,
    reconstruction_of_numbers,
)
from elbocli.core.objective import Objective
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.streams import Stream
from elbocli.core.weighting import parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS

SPECS = [*WEIGHTINGS, "sigmoid:bias=-3", "edm:monotone", "iddpm:shift=1.5,monotone", "sd3:m=1,s=0.5", "eps-mse@cosine"]


# Exact values


@pytest.mark.parametrize("name", ["v", "eps", "x", "edm"])
def test_the_bound_of_gaussian_data_is_its_likelihood(name, panels):
    """Four independent pixels of different variance, as one 2×2 image; the exact denoiser through the code that trains."""
    low = -20.0
    high = 20.0
    p = Prediction(name)
    variance = torch.tensor([0.05, 0.3, 0.9, 2.0], dtype=torch.float64).view(1, 1, 2, 2)
    x = torch.tensor([0.1, -0.5, 0.3, 1.0], dtype=torch.float64).view(1, 1, 2, 2)

    def network(inputs, logsnr, labels):
        c = [values.view(-1, 1, 1, 1) for values in p.coefficients(logsnr)]
        alpha, sigma, _, _, c_in, x_from_z, x_from_out, _ = c
        z = inputs / c_in
        x_hat = alpha * variance / (alpha**2 * variance + sigma**2) * z
        return (x_hat - x_from_z * z) / x_from_out

    # One pixel's noise at a time: the error is a sum over pixels that don't see each other.
    node, weight = np.polynomial.hermite_e.hermegauss(4)
    at, share = (torch.from_numpy(values) for values in panels(np.linspace(low, high, 161)))
    eps = torch.from_numpy(node).repeat(len(at)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    level = at.repeat_interleave(4)
    schedule = parse_schedule("uniform", low, high)
    terms = Objective(parse_weighting("elbo"), schedule, p).losses(network, x.expand_as(eps), eps, None, level)
    error = 4 * terms.eps_mse.view(-1, 4) @ torch.from_numpy(weight / weight.sum())
    nats = float(prior(x, low)) + 0.5 * float(error @ share) + 4 * reconstruction_of_numbers(high)
    wanted = float((0.5 * (2 * math.pi * variance).log() + x.square() / (2 * variance)).sum())
    assert nats == pytest.approx(wanted, abs=4e-7)


@given(st.floats(-8, 8), st.integers(1, 5))
def test_the_prior_is_a_divergence_of_two_normals(low, size):
    x = torch.linspace(-1, 1, 2 * size, dtype=torch.float64).view(2, size)
    signal = 1 / (1 + math.exp(-low))
    noise = 1 / (1 + math.exp(low))
    mean = torch.distributions.Normal(math.sqrt(signal) * x, math.sqrt(noise))
    wanted = torch.distributions.kl_divergence(mean, torch.distributions.Normal(0.0, 1.0)).sum(1)
    np.testing.assert_allclose(prior(x, low), wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("logsnr_max", [2.0, 8.0, 11.0])
def test_reconstruction_is_the_mean_of_the_decoder(logsnr_max, panels):
    """By a finer quadrature of the definition, a softmax over all levels."""
    eps, share = (torch.from_numpy(values) for values in panels(np.linspace(-9, 9, 301)))
    chance = share * (-0.5 * eps.square()).exp() / math.sqrt(2 * math.pi)
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for k in (0, 1, 77, 255):
        read = levels[k] + math.exp(-logsnr_max / 2) * eps
        score = -0.5 * math.exp(logsnr_max) * (read[:, None] - levels).square()
        wanted = -float(chance @ score.log_softmax(1)[:, k])
        assert float(reconstruction(logsnr_max)[k]) == pytest.approx(wanted, rel=1e-9)


# The theorem


def wrong_error(lam):
    """E‖ε−ε̂‖² of a deliberately wrong denoiser of N(0, .36): x̂ = 0.8 times the exact one, plus .1."""
    alpha2 = lam.sigmoid()
    sigma2 = (-lam).sigmoid()
    gain = 0.8 * alpha2.sqrt() * 0.36 / (alpha2 * 0.36 + sigma2)
    # x − x̂ = (1 − gain α) x − gain σ ε − .1
    error = (1 - gain * alpha2.sqrt()).square() * 0.36 + gain.square() * sigma2 + 0.01
    return error * lam.exp()


@pytest.mark.parametrize("spec", SPECS)
def test_the_weighted_loss_is_an_integral_of_bounds_whatever_the_denoiser(spec, panels):
    """∫ (dw/dt) L(t;x) dt + w(λmax) L(0;x) − w(λmin) L(1;x), by quadrature, to 1e-9 absolute."""
    low = -8.0
    high = 6.0
    kl = 0.37
    w = parse_weighting(spec)
    kinks = [parse_weighting("edm").rising(low, high)[0][1], math.log(5.0)]
    edges = np.unique([*np.linspace(low, high, 281), *kinks])
    at, share = (torch.from_numpy(v) for v in panels(edges))
    error = wrong_error(at)
    left = 0.5 * float((w(at) * error * share).sum())
    # L at every node: whole panels below, and a quadrature of the rest of its own panel.
    whole = (0.5 * error * share).view(-1, 8).sum(1)
    below = torch.cat([torch.zeros(1, dtype=torch.float64), whole.cumsum(0)])
    start = torch.from_numpy(edges[:-1]).repeat_interleave(8)
    node, weight = np.polynomial.legendre.leggauss(8)
    half = (at - start)[:, None] / 2
    inner = (0.5 * wrong_error(start[:, None] + half + half * torch.from_numpy(node)) * half * torch.from_numpy(weight)).sum(1)
    bound = kl + below[:-1].repeat_interleave(8) + inner
    ends = w(torch.tensor([low, high], dtype=torch.float64))
    right = float(-(w.slope(at) * bound * share).sum() + ends[1] * (kl + below[-1]) - ends[0] * kl)
    assert right == pytest.approx(left, abs=1e-9)


@pytest.mark.parametrize("spec", SPECS)
def test_the_measure_above_a_level_is_the_weight_there(spec):
    low = -8.0
    high = 6.0
    w = parse_weighting(spec)
    at = torch.linspace(low, high, 1001, dtype=torch.float64)
    above = Augmented(w, low, high).above(at)
    np.testing.assert_allclose(above, w(at), rtol=3e-4, atol=1e-4 * float(w(at).max()))


def test_values_are_added_up_in_their_cells():
    edges = torch.tensor([-2.0, 0.0, 1.0, 4.0], dtype=torch.float64)
    logsnr = torch.tensor([[-2.0, -0.1, 3.0], [0.0, 4.0, 1.5]], dtype=torch.float64)
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], dtype=torch.float64)
    assert by_cell(values, logsnr, edges).tolist() == [[3, 0, 4], [0, 8, 48]]


# The probability-flow equation as a density


@pytest.mark.parametrize(("sampler", "order", "error"), [("heun", 2, 0.05), ("ddim", 1, 1)])
def test_the_density_comes_right_with_the_order_of_the_sampler(mixture, sampler, order, error):
    low = -14.0
    high = 6.0
    z = torch.randn(20, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    share, mean, var = (torch.tensor(each, dtype=torch.float64) for each in (mixture.share, mixture.mean, mixture.var))
    level = torch.tensor(high, dtype=torch.float64)
    spread = level.sigmoid() * var + (-level).sigmoid()
    away = z[..., None] - level.sigmoid().sqrt() * mean
    exact = (share.log() - 0.5 * away**2 / spread - 0.5 * (2 * math.pi * spread).log()).logsumexp(-1).sum((1, 2))
    coarse, fine = (
        (log_density(z, with_trace(mixture.denoise, None), high, low, steps, sampler) - exact).abs().mean() for steps in (64, 128)
    )
    assert float((coarse / fine).log2()) == pytest.approx(order, abs=0.3)
    assert float(fine) < error


def test_random_signs_are_unbiased_for_the_trace():
    """x̂ = z A: the trace is A's."""
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count = 4000
    signs = Stream(0, "signs").signs(range(count), (6,)).double()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(Stream(0, "signs").signs([7, 3], (6,)).double(), signs[[7, 3]])

    def trace(probes, images=count):
        return with_trace(lambda at, level: at @ matrix, probes)(torch.zeros(images, 6, dtype=torch.float64), 0.0)[1]

    one = trace([signs])
    assert trace(None, 2).tolist() == pytest.approx([float(matrix.trace())] * 2)
    assert float(one.mean()) == pytest.approx(float(matrix.trace()), abs=4 * float(one.std()) / math.sqrt(count))
    more = trace([signs[:100], signs[100:200]], 100)
    assert more.tolist() == pytest.approx(((one[:100] + one[100:200]) / 2).tolist())
