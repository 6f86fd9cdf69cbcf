"""The bound against what is known exactly: Gaussian likelihoods, the entropy of a toy, the theorem for every weighting."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.elbo import Augmented, bits_per_dimension, by_cell, prior, reconstruction
from elbocli.core.loss import denoising_losses
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS

PLAIN = parse_weighting("elbo")
SPECS = [*WEIGHTINGS, "sigmoid:bias=-3", "edm:monotone", "iddpm:shift=1.5,monotone", "sd3:m=1,s=0.5", "schedule:cosine"]


def normal_expectation(order):
    node, weight = np.polynomial.hermite_e.hermegauss(order)
    return torch.from_numpy(node), torch.from_numpy(weight / weight.sum())


class Exact:
    """A network that outputs the target of the exact denoiser: forward(c_in z, λ, labels), through the package's code."""

    def __init__(self, denoise, prediction):
        self.denoise, self.prediction = denoise, prediction

    def __call__(self, inputs, logsnr, labels):
        c = self.prediction.coefficients(logsnr)
        shape = (-1, 1, 1, 1)
        z = inputs / c.c_in.view(shape)
        x_hat = self.denoise(z, logsnr.view(shape))
        return (x_hat - c.x_from_z.view(shape) * z) / c.x_from_out.view(shape)


def gaussian_reconstruction(dimensions, logsnr_max):
    """½ D log(2πe e^{−λmax}): nats for data with a density, whose decoder is the posterior of a flat prior."""
    return 0.5 * dimensions * (math.log(2 * math.pi * math.e) - logsnr_max)


def mean_error(network, prediction, x, eps, chance, logsnr, schedule):
    """E‖ε−ε̂‖² at each λ, by the function that training and `bound` use, over nodes (x, ε) with their chances."""
    each = len(logsnr)
    level = logsnr.repeat_interleave(len(x))
    tile = (each, *[1] * (x.dim() - 1))
    given = x.repeat(tile), eps.repeat(tile), None, level, PLAIN, schedule, prediction
    error = denoising_losses(network, *given).eps_mse
    return (error.view(each, -1) * math.prod(x.shape[1:])) @ chance


def integrate(function, panels, low, high, cells):
    at, share = panels(np.linspace(low, high, cells + 1))
    return float((function(torch.from_numpy(at)) * torch.from_numpy(share)).sum())


# Exact values


@pytest.mark.parametrize("prediction", ["v", "eps", "x", "edm"])
@pytest.mark.parametrize(("variance", "x"), [(0.36, 0.8), (0.04, -0.1), (1.7, 2.5)])
def test_the_bound_of_gaussian_data_is_its_likelihood(prediction, variance, x, panels):
    low, high = -20.0, 20.0
    p = Prediction(prediction)
    network = Exact(
        lambda z, lam: lam.sigmoid().sqrt() * variance / (lam.sigmoid() * variance + (-lam).sigmoid()) * z, p
    )
    eps, chance = normal_expectation(4)
    data = torch.full((len(eps), 1, 1, 1), x, dtype=torch.float64)
    schedule = parse_schedule("uniform", low, high)

    def error(lam):
        return mean_error(network, p, data, eps.view(-1, 1, 1, 1), chance, lam, schedule)

    nats = (
        float(prior(data[:1], low)) + 0.5 * integrate(error, panels, low, high, 160) + gaussian_reconstruction(1, high)
    )
    assert nats == pytest.approx(0.5 * math.log(2 * math.pi * variance) + x * x / (2 * variance), abs=1e-7)


def test_dimensions_add_up(panels):
    """Four independent pixels of different variance, as one 2×2 image."""
    low, high = -20.0, 20.0
    variance = torch.tensor([0.05, 0.3, 0.9, 2.0], dtype=torch.float64).view(1, 1, 2, 2)
    x = torch.tensor([0.1, -0.5, 0.3, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
    p = Prediction("v")
    network = Exact(
        lambda z, lam: lam.sigmoid().sqrt() * variance / (lam.sigmoid() * variance + (-lam).sigmoid()) * z, p
    )
    # One pixel's noise at a time: the error is a sum over pixels that don't see each other.
    node, weight = normal_expectation(4)
    eps = node.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    data, schedule = x.expand(len(node), -1, -1, -1), parse_schedule("uniform", low, high)
    integral = integrate(lambda lam: mean_error(network, p, data, eps, weight, lam, schedule), panels, low, high, 160)
    nats = float(prior(x, low)) + 0.5 * integral + gaussian_reconstruction(4, high)
    wanted = float((0.5 * (2 * math.pi * variance).log() + x.square() / (2 * variance)).sum())
    assert nats == pytest.approx(wanted, abs=4e-7)


@pytest.mark.slow
def test_a_toy_of_256_levels_costs_its_entropy(panels):
    """Exact denoiser of 256 levels with a smooth, symmetric chance; λ from −20 to 13.3, where reading costs 7e-6 bits."""
    low, high, split = -20.0, 13.3, 8.0
    value = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    share = (-0.5 * ((value.abs() - 0.6) / 0.15).square()).exp() + 0.02
    share = share / share.sum()
    p = Prediction("v")

    def denoise(z, lam):
        alpha, var = lam.sigmoid().sqrt().view(-1, 1), (-lam).sigmoid().view(-1, 1)
        score = share.log() - 0.5 * (z.reshape(-1, 1) - alpha * value).square() / var
        return (score.softmax(1) @ value).view_as(z)

    network, schedule = Exact(denoise, p), parse_schedule("uniform", low, high)

    def integral(eps, chance, start, end, cells):
        """½∫ over [start, end]; of the levels, half: the other half is its mirror image."""
        data = value[:128].repeat_interleave(len(eps)).view(-1, 1, 1, 1)
        joint = (2 * share[:128, None] * chance).flatten()
        noise = eps.repeat(128).view(-1, 1, 1, 1)

        def error(lam):
            return torch.cat([mean_error(network, p, data, noise, joint, part, schedule) for part in lam.split(4)])

        return 0.5 * integrate(error, panels, start, end, cells)

    # Until the noise is finer than the levels everything is smooth in ε; after that it has steps.
    eps, chance = normal_expectation(24)
    nats = integral(eps, chance, low, split, 14)
    at, weight = panels(np.linspace(-9, 9, 19))
    chance = torch.from_numpy(weight) * (-0.5 * torch.from_numpy(at).square()).exp() / math.sqrt(2 * math.pi)
    nats += integral(torch.from_numpy(at), chance, split, high, 5)
    nats += float(share @ prior(value.view(-1, 1, 1, 1), low)) + float(share @ reconstruction(high))
    entropy = -float((share * share.log2()).sum())
    assert 0 < bits_per_dimension(nats, 1) - entropy < 1e-5


@given(st.floats(-8, 8), st.integers(1, 5))
def test_the_prior_is_a_divergence_of_two_normals(low, size):
    x = torch.linspace(-1, 1, 2 * size, dtype=torch.float64).view(2, size)
    signal, noise = 1 / (1 + math.exp(-low)), 1 / (1 + math.exp(low))
    mean = torch.distributions.Normal(math.sqrt(signal) * x, math.sqrt(noise))
    wanted = torch.distributions.kl_divergence(mean, torch.distributions.Normal(0.0, 1.0)).sum(1)
    np.testing.assert_allclose(prior(x, low), wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("logsnr_max", [2.0, 8.0, 11.0])
def test_reconstruction_is_the_mean_of_the_decoder(logsnr_max):
    """Against many draws of noise and the definition of a softmax over all levels."""
    eps = torch.randn(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    table = reconstruction(logsnr_max)
    for k in (0, 1, 77, 255):
        found = []
        for part in eps.split(20_000):
            read = levels[k] + math.exp(-logsnr_max / 2) * part
            score = -0.5 * math.exp(logsnr_max) * (read[:, None] - levels).square()
            found.append(-score.log_softmax(1)[:, k])
        nats = torch.cat(found)
        assert float(table[k]) == pytest.approx(float(nats.mean()), abs=5 * float(nats.std()) / math.sqrt(len(eps)))


def test_reconstruction_falls_to_nothing_and_starts_from_the_prior_of_levels():
    means = [float(reconstruction(lam).mean()) for lam in (-20.0, 0.0, 5.0, 8.0, 13.3, 20.0)]
    assert means[0] == pytest.approx(math.log(256), rel=1e-6)
    assert means == sorted(means, reverse=True)
    assert means[-1] == 0


# The theorem


def wrong_error(lam):
    """E‖ε−ε̂‖² of a deliberately wrong denoiser of N(0, .36): x̂ = 0.8 times the exact one, plus .1."""
    alpha2, sigma2 = lam.sigmoid(), (-lam).sigmoid()
    gain = 0.8 * alpha2.sqrt() * 0.36 / (alpha2 * 0.36 + sigma2)
    # x − x̂ = (1 − gain α) x − gain σ ε − .1
    error = (1 - gain * alpha2.sqrt()).square() * 0.36 + gain.square() * sigma2 + 0.01
    return error * lam.exp()


@pytest.mark.parametrize("spec", SPECS)
def test_the_weighted_loss_is_an_integral_of_bounds_whatever_the_denoiser(spec, panels):
    """∫ (dw/dt) L(t;x) dt + w(λmax) L(0;x) − w(λmin) L(1;x), by quadrature, to 1e-9 absolute."""
    low, high, kl = -8.0, 6.0, 0.37
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
    inner = (
        0.5 * wrong_error(start[:, None] + half + half * torch.from_numpy(node)) * half * torch.from_numpy(weight)
    ).sum(1)
    bound = kl + below[:-1].repeat_interleave(8) + inner
    ends = w(torch.tensor([low, high], dtype=torch.float64))
    right = float(-(w.slope(at) * bound * share).sum() + ends[1] * (kl + below[-1]) - ends[0] * kl)
    assert right == pytest.approx(left, abs=1e-9)


@pytest.mark.parametrize("spec", SPECS)
def test_the_measure_above_a_level_is_the_weight_there(spec):
    low, high = -8.0, 6.0
    w = parse_weighting(spec)
    at = torch.linspace(low, high, 1001, dtype=torch.float64)
    above = Augmented(w, low, high).above(at)
    np.testing.assert_allclose(above, w(at), rtol=3e-4, atol=1e-4 * float(w(at).max()))


@pytest.mark.parametrize("spec", [s for s in SPECS if not parse_weighting(s).rising(-10, 10)])
def test_shares_of_a_monotone_weighting_are_a_distribution(spec):
    edges = torch.linspace(-10, 10, 11, dtype=torch.float64)
    shares, point = Augmented(parse_weighting(spec), -10, 10).shares(edges)
    assert float(shares.min()) >= 0
    assert float(shares.sum()) + point == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("spec", "up", "down"), [("iddpm", 0.9865, -0.9865), ("edm", 0.9990, -0.9784)])
def test_signed_masses_are_those_of_the_table(spec, up, down):
    measure = Augmented(parse_weighting(spec), -10, 10)
    assert float(measure.mass.clamp(min=0).sum()) / measure.largest == pytest.approx(up, abs=1e-4)
    assert float(measure.mass.clamp(max=0).sum()) / measure.largest == pytest.approx(down, abs=1e-4)


def test_shares_follow_the_paper_for_a_sigmoid():
    """p_w of sigmoid(b − λ) is Logistic(b, 1)."""
    edges = torch.linspace(-30, 30, 13, dtype=torch.float64)
    shares, _ = Augmented(parse_weighting("sigmoid:bias=2"), -30, 30).shares(edges)
    wanted = (edges[1:] - 2).sigmoid() - (edges[:-1] - 2).sigmoid()
    np.testing.assert_allclose(shares, wanted, atol=2e-3)


def test_values_are_added_up_in_their_cells():
    edges = torch.tensor([-2.0, 0.0, 1.0, 4.0], dtype=torch.float64)
    logsnr = torch.tensor([[-2.0, -0.1, 3.0], [0.0, 4.0, 1.5]], dtype=torch.float64)
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], dtype=torch.float64)
    assert by_cell(values, logsnr, edges).tolist() == [[3, 0, 4], [0, 8, 48]]
