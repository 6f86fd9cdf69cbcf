"""The multiscale error is the quadratic form it claims to be, and the plain error for small images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from identities import target

from elbocli.core.loss import denoising_losses, losses, step_coefficients
from elbocli.core.multiscale import BASE, multiscale_error, shares, sizes
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block_constant(size: int, coarse: int) -> np.ndarray:
    """Q: the projection onto signals of that length that are constant in each of `coarse` blocks."""
    return np.kron(np.eye(coarse), np.full((size // coarse,) * 2, coarse / size))


def form(size: int) -> np.ndarray:
    """M = Σ a_s Q_s of an image as a vector, from 1/s and the projections alone."""
    inverse = {s: 1 / s for s in sizes(size)}
    shares = np.array([*inverse.values()]) / sum(inverse.values())
    parts = [np.kron(block_constant(size, s), block_constant(size, s)) for s in inverse]
    return np.tensordot(shares, parts, 1)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (8, [8]),
        (32, [32]),
        (48, [48]),
        (64, [64, 32]),
        (96, [96, 48]),
        (66, [66, 33]),
        (256, [256, 128, 64, 32]),
        (512, [512, 256, 128, 64, 32]),
    ],
)
def test_it_looks_at_halves_down_to_the_base(size: int, wanted: list[int]) -> None:
    assert list(sizes(size)) == wanted
    assert math.fsum(shares(size)) == pytest.approx(1, abs=1e-15)
    np.testing.assert_allclose(np.array(shares(size)) * wanted, shares(size)[0] * size)  # ∝ 1/s


@given(st.integers(1, 2 * BASE - 1), st.sampled_from([1, 3, 4]))
def test_up_to_the_base_it_is_the_mean_square_bit_for_bit(size: int, channels: int) -> None:
    difference = draw(2, channels, size, size).float()
    assert torch.equal(multiscale_error(difference), difference.square().flatten(1).mean(1))


@pytest.mark.parametrize("size", [64, 66])
def test_it_is_a_quadratic_form(size: int) -> None:
    difference, m = draw(2, 3, size, size), form(size)
    flat = difference.flatten(2).numpy()
    wanted = np.einsum("bci,bci->b", flat @ m, flat) / flat[0].size
    np.testing.assert_allclose(multiscale_error(difference), wanted, rtol=1e-12)


def test_its_gradient_is_that_of_the_form() -> None:
    difference = draw(2, 1, 64, 64).requires_grad_()
    multiscale_error(difference).sum().backward()
    assert difference.grad is not None
    wanted = 2 * (difference.detach().flatten(2).numpy() @ form(64)) / 64**2
    np.testing.assert_allclose(difference.grad.flatten(2), wanted, rtol=1e-10, atol=1e-18)
    assert torch.autograd.gradcheck(multiscale_error, draw(1, 1, 64, 64).requires_grad_(), fast_mode=True)


@pytest.mark.parametrize(("scale", "weight"), [(32, 15), (64, 7), (128, 3), (256, 1)])
def test_haar_details_of_each_octave_have_the_weight_that_is_said(scale: int, weight: float) -> None:
    """At 256 pixels: details that appear at `scale`, in fifteenths; those of 32 are all that is coarser."""
    values = draw(2, 3, scale, scale)
    if scale > BASE:
        coarse = torch.nn.functional.avg_pool2d(values, 2)
        values = values - coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    detail = values.repeat_interleave(256 // scale, 2).repeat_interleave(256 // scale, 3)
    plain = detail.square().flatten(1).mean(1)
    np.testing.assert_allclose(multiscale_error(detail) / plain, weight / 15, rtol=1e-12)


@pytest.mark.parametrize(
    ("f", "g"), [(0.0, 0.0), (3 / 128, 0.0), (20 / 128, 5 / 128), (0.5, 0.5), (40 / 128, 40 / 128)]
)
def test_waves_have_the_weight_that_is_said_over_their_phases(f: float, g: float) -> None:
    at = torch.arange(128, dtype=torch.float64)
    phases = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    turn = 2 * math.pi * (f * at[None, :] + g * at[:, None])
    waves = (turn + phases[:, None, None]).cos()[:, None]
    found = multiscale_error(waves).mean() / waves.square().mean()

    def kernel(h: float, k: int) -> float:
        return 1.0 if h == 0 or k == 1 else (math.sin(math.pi * k * h) / (k * math.sin(math.pi * h))) ** 2

    wanted = sum(a * kernel(f, 128 // s) * kernel(g, 128 // s) for a, s in zip(shares(128), sizes(128)))
    assert float(found) == pytest.approx(wanted, rel=1e-10)
    assert float(found) <= 1 + 1e-12


@pytest.mark.parametrize("prediction", ["eps", "v", "edm"])
def test_only_the_weighted_loss_changes(prediction: str) -> None:
    lam = torch.linspace(-6, 6, 4, dtype=torch.float64)
    w, s, p = parse_weighting("sigmoid"), parse_schedule("cosine", -10, 10), Prediction(prediction)
    c = step_coefficients(lam, w, s, p, dtype=torch.float64)
    x, eps, off = draw(3, 4, 3, 64, 64)
    out = target(p, x, eps, lam) + off
    plain, many = losses(out, x, eps, c), losses(out, x, eps, c, multiscale=True)
    assert torch.equal(plain[1], many[1])
    np.testing.assert_allclose(many[0], c.loss_factor * multiscale_error(off), rtol=1e-9)
    out, x, eps = (t[..., :32, :32].contiguous() for t in (out, x, eps))
    plain, many = losses(out, x, eps, c), losses(out, x, eps, c, multiscale=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, many, strict=True))


def test_what_is_noised_is_scored_likewise() -> None:
    lam = torch.zeros(2, dtype=torch.float64)
    how = lam, parse_weighting("elbo"), parse_schedule("cosine", -9, 9), Prediction("eps")
    x, eps = draw(2, 2, 1, 64, 64).float()
    found = denoising_losses(lambda z, logsnr, labels: torch.zeros_like(z), x, eps, None, *how, multiscale=True)
    c = step_coefficients(*how)
    np.testing.assert_allclose(found[0], c.loss_factor * multiscale_error(eps), rtol=1e-6)


def test_the_best_guess_stays_the_mean() -> None:
    """Of random targets: the loss's minimum over a constant guess is at their average, as for the plain one."""
    targets, guess = draw(6, 1, 64, 64), draw(1, 1, 64, 64, seed=1).requires_grad_()
    multiscale_error(targets - guess).mean().backward()
    assert guess.grad is not None and float(guess.grad.abs().max()) > 0
    best = targets.mean(0, keepdim=True).requires_grad_()
    multiscale_error(targets - best).mean().backward()
    assert best.grad is not None
    assert float(best.grad.abs().max()) < 1e-12 * float(guess.grad.abs().max()) + 1e-18
