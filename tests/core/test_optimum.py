"""The least error of a finite set of images against quadrature and information theory; the excess above it, and copying."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elbocli.core.adaptive import ErrorMoments, bin_edges
from elbocli.core.optimum import BEGUN, COPIES, SURE, Excess, LeastErrors, copying, excess, excess_by_bin, verdict
from elbocli.core.weighting import parse_weighting

GRID = torch.linspace(-12, 12, 1201, dtype=torch.float64)


MASS = torch.exp(-0.5 * GRID.square()) / math.sqrt(2 * math.pi) * 0.02
"""Nodes and weights over a standard normal, exact to rounding for what is smooth."""


LEVELS = torch.linspace(-8, 6, 15, dtype=torch.float64)


def least(points: Tensor, levels: Tensor = LEVELS) -> Tensor:
    """e* of points on a line by elbo's sums, with the noise integrated: [L]."""
    count = len(points)
    nodes = len(GRID)
    eps = GRID.expand(count, nodes)[:, :, None]
    sums = LeastErrors(points[:, None], eps, levels.expand(count, nodes, -1))
    sums.add(points[:, None], torch.eye(count, dtype=torch.bool))
    found = sums.values()[0]
    return (found * MASS[:, None]).sum(1).mean(0)


def test_two_points_have_the_error_of_the_hyperbolic_tangent():
    """x̂ = tanh(e^{λ/2} y) for ±1, so e* = snr (1 − E tanh(snr + √snr ε)) at snr = e^λ."""
    snr = LEVELS.exp()[:, None]
    wanted = (snr * (1 - torch.tanh(snr + snr.sqrt() * GRID)) * MASS).sum(1)
    found = least(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


def test_half_its_integral_is_the_entropy_of_the_choice():
    """I-MMSE: ½∫ e* dλ from −∞ to ∞ is log N. Below the grid e* is e^λ times the variance, above it vanishes."""
    points = torch.tensor([-2.0, -0.7, 0.1, 1.6, 3.0], dtype=torch.float64)
    levels = torch.linspace(-14, 9, 461, dtype=torch.float64)
    tail = math.exp(-14) * float(points.var(correction=0))
    nats = 0.5 * (float(torch.trapezoid(least(points, levels), levels)) + tail)
    assert nats == pytest.approx(math.log(5), abs=1e-6)


def draws(count: int, size: int, dimensions: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images of levels, noise of the first `size` as sources [S, 2, D], and λ [S, 2, L]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, dimensions), generator=generator).double()
    eps = torch.randn(size, 2, dimensions, generator=generator, dtype=torch.float64)
    return images, eps, LEVELS.expand(size, 2, -1)


def own(rows: range, size: int) -> Tensor:
    return torch.arange(size)[:, None] == torch.tensor([*rows])


@settings(max_examples=10)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 7), st.integers(0, 99))
def test_blocks_and_classes_are_those_of_one_softmax(count, dimensions, batch, seed):
    """Stated again: the mean over noise is of ½ (variance + squared error of x̂), for each draw by itself."""
    images, eps, logsnr = draws(count, 2, dimensions, seed)
    labels = torch.arange(count) % 3
    unit = 1 / 127.5
    sums = LeastErrors(images[:2], eps, logsnr, labels[:2], unit)
    for start in range(0, count, batch):
        part = range(start, min(count, start + batch))
        sums.add(images[part.start : part.stop], own(part, 2), labels[part.start : part.stop])
    found = sums.values()
    for kind, among in enumerate(([torch.ones(count, dtype=torch.bool)] * 2, [labels == label for label in labels[:2]])):
        for source in range(2):
            x = images[among[source]] * unit
            for half in range(2):
                snr = LEVELS.exp()[:, None]
                y = images[source] * unit + eps[source, half] / snr.sqrt()
                weight = torch.softmax(-0.5 * snr * (y[:, None] - x).square().sum(2), 1)
                mean = weight @ x
                spread = (weight * (x - mean[:, None]).square().sum(2)).sum(1)
                wanted = 0.5 * snr[:, 0] * (spread + (images[source] * unit - mean).square().sum(1))
                torch.testing.assert_close(found[kind, source, half], wanted, atol=1e-10, rtol=1e-9)


def test_images_that_are_alike_stay_together_at_any_level():
    images = torch.full((3, 4), 7.0, dtype=torch.float64)
    sums = LeastErrors(images[:1], torch.ones(1, 1, 4, dtype=torch.float64), LEVELS.expand(1, 1, -1) + 40)
    sums.add(images, own(range(3), 1))
    assert sums.values().abs().max() == 0


def test_the_nearest_image_tells_the_mean_square_of_a_draw():
    """Two points: at least the true one, and at most twice as much. A copy of the source is not its neighbour."""
    for copies in (0, 2):
        points = torch.tensor([-1.0, 1.0] + [-1.0] * copies, dtype=torch.float64)
        eps = GRID[None, :, None]
        sums = LeastErrors(points[:1, None], eps, LEVELS.expand(1, len(GRID), -1))
        sums.add(points[:, None], torch.arange(len(points))[None] == 0)
        draws = sums.values()
        true, told = ((each[0, 0] * MASS[:, None]).sum(0) for each in (draws.square(), sums.squares()))
        told = told[true > 1e-12]
        true = true[true > 1e-12]
        assert bool((told >= true * (1 - 1e-9)).all()) and (copies or bool((told <= 2.0001 * true).all()))


# The excess


EDGES = bin_edges(-6, 6, 24)


GENERATOR = torch.Generator().manual_seed(0)


def moments(mean: torch.Tensor, spread: float = 0.1, count: int = 400) -> ErrorMoments:
    """Moments as `count` gamma-like errors of that relative spread leave them."""
    noisy = mean * (1 + spread / math.sqrt(count) * torch.randn(len(mean), generator=GENERATOR, dtype=torch.float64))
    return ErrorMoments(EDGES, torch.full_like(mean, count), noisy, noisy.square() * (1 + spread**2))


def test_the_excess_is_an_integral_within_its_error():
    at = 0.5 * (EDGES[1:] + EDGES[:-1])
    mean = at.sigmoid()
    least = 0.5 * at.sigmoid()
    wanted = float((0.5 * 0.5 * parse_weighting("sigmoid:bias=2")(at) * mean * 0.5).sum())
    apart = []
    for _ in range(40):
        found = excess(moments(mean), least, torch.zeros(24, dtype=torch.float64), parse_weighting("sigmoid:bias=2"))
        apart.append((found.value - wanted) / found.se)
    assert max(map(abs, apart)) < 4 and 0.6 < torch.tensor(apart).std() < 1.4


def test_the_error_of_the_least_one_is_shared_by_all_bins():
    ones = torch.ones(24, dtype=torch.float64)
    nothing = torch.zeros(24, dtype=torch.float64)
    found = excess(moments(ones, 1e-6), nothing, 0.1 * ones, parse_weighting("elbo"))
    assert found.least_se == pytest.approx(0.5 * 12 * 0.1) and found.se == pytest.approx(found.least_se)


def test_a_network_copies_at_the_least_error_and_not_where_it_is_as_good_on_new_images():
    same = Excess(0.2, 0.01, 0.001)
    least = Excess(0.001, 0.001, 0.001)
    found = copying(same, same)
    assert found is not None and found["share"] == pytest.approx(0) and "no sign" in found["verdict"]
    found = copying(least, Excess(1.0, 0.01, 0.001))
    assert found is not None and found["share"] == pytest.approx(0.999) and "copies" in found["verdict"]
    assert copying(least, Excess(0.01, 0.01, 0.0)) is None


@pytest.mark.parametrize(
    ("share", "se", "words"),
    [(COPIES + 0.1, 0.04, "copies"), (BEGUN + 0.1, 0.04, "begun"), (0.0, 0.1, "no sign"), (0.4, 0.3, "may copy")],
)
def test_the_verdict_heeds_the_error(share, se, words):
    assert words in verdict(share - SURE * se, share + SURE * se)


def test_the_share_scatters_as_its_error_says():
    own = 0.3
    new = 1.0
    least = 0.1
    found = []
    for noise in torch.randn(4000, 3, generator=GENERATOR, dtype=torch.float64).tolist():
        common = least * noise[0]
        pair = [value + 0.02 * own_noise - common for value, own_noise in zip((own, new), noise[1:])]
        each = copying(*(Excess(value, math.hypot(0.02, least), least) for value in pair))
        assert each is not None
        found.append((each["share"], each["se"]))
    shares, errors = torch.tensor(found, dtype=torch.float64).T
    assert float(shares.std()) == pytest.approx(float(errors.mean()), rel=0.1)


def test_bins_that_were_not_seen_have_no_excess():
    known = moments(torch.ones(24, dtype=torch.float64))
    known.count[3] = 1
    value, se = excess_by_bin(known, torch.zeros(24, dtype=torch.float64), torch.zeros(24, dtype=torch.float64))
    assert bool(value[3].isnan()) and int(value.isnan().sum()) == 1 and float(se[0]) > 0
