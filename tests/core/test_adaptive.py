"""Errors are counted in bins and smoothed, and the schedule fitted to them has least variance; measured against sampling."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.core.adaptive import (
    BENDS,
    AdaptiveSchedule,
    BinSums,
    ErrorMoments,
    OnlineObjective,
    bin_edges,
    fit_schedule,
    loss_variance,
    roughness,
    smooth,
)
from elbocli.core.objective import Objective
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting
from elbocli.errors import DataError, UsageError

EDGES = bin_edges(-6, 8, 28)
MIDDLE = 0.5 * (EDGES[1:] + EDGES[:-1])
W = parse_weighting("sigmoid:bias=2")


def sums_of(mean, spread, count=1e18):
    """[3, bins] for errors of that mean and standard deviation in each bin, so many that no bin needs its neighbours."""
    count = torch.full_like(mean, count)
    return torch.stack([count, count * mean, count * (mean.square() + spread.square())])


def moments_of(mean, spread, count=1e18):
    return ErrorMoments.of_sums(EDGES, sums_of(mean, spread, count))


def average(weighting, edges):
    """Mean of w over each bin, by fine midpoints."""
    part = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    return weighting(edges[:-1, None] + edges.diff()[:, None] * part).mean(1)


positive = st.lists(st.floats(0.01, 5), min_size=28, max_size=28).map(lambda v: torch.tensor(v, dtype=torch.float64))


# Counting


@given(st.integers(0, 999), st.integers(1, 300))
def test_bin_sums_are_a_histogram(seed, n):
    random = np.random.default_rng(seed)
    lam = random.uniform(-6, 8, n)
    error = random.gamma(2, size=n)
    sums = BinSums(-6, 8, 28)
    half = n // 2
    sums.add(torch.from_numpy(lam[:half]), torch.from_numpy(error[:half]))
    sums.add(torch.from_numpy(lam[half:]), torch.from_numpy(error[half:]))
    found = sums.take().numpy()
    for row, weight in enumerate((np.ones(n), error, error**2)):
        np.testing.assert_allclose(found[row], np.histogram(lam, 28, (-6, 8), weights=weight)[0], rtol=1e-12, atol=1e-12)


def test_the_ends_and_levels_beyond_them_belong_to_the_outer_bins_and_taking_sums_starts_from_zero():
    sums = BinSums(-6, 8, 28)
    sums.add(torch.tensor([-6.0, -6.0001, 8.0, 8.0001]), torch.ones(4))
    taken = sums.take()
    assert float(sums.take().abs().sum()) == 0
    assert taken[0].tolist() == [2, *[0] * 26, 2]


# Fitting


@settings(max_examples=15)
@given(positive, st.floats(0.001, 1))
def test_the_density_is_weight_times_error_over_a_floor_of_uniform(mean, floor):
    schedule = fit_schedule(moments_of(mean, mean), W, floor)
    mass = average(W, EDGES) * mean * EDGES.diff()
    above = (mass / mass.sum() - floor / 28).clamp(min=0)
    wanted = (floor / 28 + (1 - floor) * above / above.sum()) * 2
    np.testing.assert_allclose(schedule.density(MIDDLE), wanted, rtol=3e-4)
    assert float(schedule.density(MIDDLE).min()) >= floor / 14 * (1 - 1e-9)
    assert (schedule.logsnr_min, schedule.logsnr_max) == (-6, 8)


@settings(max_examples=30)
@given(positive, positive)
def test_errors_other_than_the_mean_have_the_least_variance_of_their_kind(mean, spread):
    """The root of the second moment for independent t, the deviation for low-discrepancy t."""
    moments = moments_of(mean, spread)
    plain = parse_weighting("elbo")
    errors = {"mean": None, "second": (mean.square() + spread.square()).sqrt(), "deviation": spread}
    variance = {
        name: loss_variance(moments, plain, fit_schedule(moments, plain, 1e-9, error).density) for name, error in errors.items()
    }
    assert variance["second"][0] <= min(v[0] for v in variance.values()) * (1 + 1e-3) + 1e-12
    assert variance["deviation"][1] <= min(v[1] for v in variance.values()) * (1 + 1e-3)


def test_bins_never_seen_are_interpolated_from_their_neighbours():
    mean = (0.3 * MIDDLE).exp()
    sums = sums_of(mean, mean, 1000.0)
    for gap in ([5, 6, 7], [13], [20, 21]):
        sums[:, gap] = 0
    for known in (ErrorMoments.of_sums(EDGES, sums).filled(), ErrorMoments.of_sums(EDGES, sums).smoothed):
        np.testing.assert_allclose(known.mean, mean, rtol=0.03)
        np.testing.assert_allclose(known.second, 2 * mean.square(), rtol=0.06)


def test_a_bin_seen_once_is_not_trusted():
    sums = sums_of(MIDDLE * 0 + 2, MIDDLE * 0 + 1, 1000.0)
    sums[:, 9] = torch.tensor([1.0, 6.0, 36.0])
    assert float(ErrorMoments.of_sums(EDGES, sums).filled().mean[9]) == pytest.approx(2, rel=0.01)


def test_filling_leaves_the_bins_that_were_seen():
    mean = torch.from_numpy(np.random.default_rng(0).gamma(2, size=28))
    filled = moments_of(mean, mean, 2.0).filled()
    np.testing.assert_allclose(filled.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(filled.second, 2 * mean.square(), rtol=1e-12)


def test_smoothing_brings_a_short_log_nearer_to_the_truth():
    random = np.random.default_rng(3)
    truth = (MIDDLE / 2).sigmoid()
    count = 12
    error = torch.from_numpy(random.gamma(2, size=(60, 28, count))) / 2 * truth[:, None]
    off = []
    for draw in error:
        measured = ErrorMoments(EDGES, torch.full_like(truth, count), draw.mean(1), draw.square().mean(1))
        off.append([(known.mean / truth - 1).numpy() for known in (measured, measured.smoothed)])
    alone, smooth = np.square(off).mean((0, 2))
    assert smooth < alone / 3
    assert abs(np.mean(off, 0)[1]).max() < 0.15


ONES = torch.ones(28, dtype=torch.float64)


@pytest.mark.parametrize(
    ("error", "options"),
    [
        *((UsageError, {"floor": floor}) for floor in (0, 0.9e-9, 1.1, math.nan)),
        (DataError, {"weighting": parse_weighting("edm:mean=-200,std=0.1")}),
        (DataError, {"moments": ErrorMoments.of_sums(EDGES, torch.zeros(3, 28))}),
    ],
)
def test_moments_and_options_that_fit_no_schedule_are_refused(error, options):
    with pytest.raises(error):
        fit_schedule(**{"moments": moments_of(ONES, ONES), "weighting": W, **options})


# Predicted variance against sampling


def test_predicted_variance_has_no_bias_from_short_logs():
    """Mean over logs of nine errors a bin, though each bin's own variance is that of nine numbers about their mean."""
    random = np.random.default_rng(4)
    truth = (MIDDLE / 2).sigmoid()
    count = 9
    p = parse_schedule("cosine", -6, 8).density
    wanted = loss_variance(moments_of(truth, truth / 2), W, p)[1]
    error = torch.from_numpy(random.gamma(4, size=(75, 28, count))) / 4 * truth[:, None]
    found = []
    for draw in error:
        measured = ErrorMoments(EDGES, torch.full_like(truth, count), draw.mean(1), draw.square().mean(1))
        loss = loss_of(truth) / loss_of(measured.mean)
        found.append(loss_variance(measured, W, p)[1] / loss**2)
    assert np.mean(found) == pytest.approx(wanted, rel=0.04)


def loss_of(mean):
    """The weighted loss, but for a half."""
    return float((average(W, EDGES) * mean * EDGES.diff()).sum())


def errors(random, lam, mean, spread):
    """Gamma errors whose mean and deviation are those of their bin."""
    cell = np.clip(np.digitize(lam, EDGES.numpy()) - 1, 0, 27)
    shape = (mean / spread) ** 2
    return random.gamma(shape[cell]) * (mean / shape)[cell]


@pytest.mark.parametrize("schedule", ["cosine", "uniform", "fitted"])
def test_predicted_variance_is_that_of_samples(schedule):
    random = np.random.default_rng(5)
    batch = 64
    mean = (0.3 * torch.sin(MIDDLE)).exp()
    spread = 0.5 + 0.2 * torch.cos(MIDDLE)
    moments = moments_of(mean, spread)
    s = fit_schedule(moments, W) if schedule == "fitted" else parse_schedule(schedule, -6, 8)
    independent, comb = loss_variance(moments, W, s.density, batch)
    loss = 0.5 * loss_of(mean)

    def estimate(t):
        lam = s.logsnr(torch.from_numpy(t))
        ratio = (W(lam) / s.density(lam)).numpy()
        return 0.5 * ratio * errors(random, lam.numpy(), mean.numpy(), spread.numpy())

    single = estimate(random.random(300_000))
    assert single.mean() == pytest.approx(loss, rel=0.01)
    assert single.var() / loss**2 == pytest.approx(independent, rel=0.05)
    t = (random.random((20_000, 1)) + np.arange(batch) / batch) % 1
    batches = estimate(t.ravel()).reshape(t.shape).mean(1)
    assert batches.var() * batch / loss**2 == pytest.approx(comb, rel=0.05)


# Online: see also test_online.py


def test_online_samples_uniformly_until_it_knows_something():
    schedule = AdaptiveSchedule(EDGES).schedule(W, 0.01)
    np.testing.assert_allclose(schedule.density(MIDDLE), 1 / 14, rtol=1e-12)


@pytest.mark.parametrize(("weighting", "adaptive"), [("sigmoid:bias=2", True), ("uncertainty", False), ("sigmoid:bias=2", False)])
def test_errors_make_the_next_objective_and_leave_the_one_before_as_it_was(weighting, adaptive):
    """An adaptive schedule or a learned weighting changes, never both, and nothing of a fixed objective."""
    first = Objective(parse_weighting(weighting), parse_schedule("cosine", -6, 8), Prediction("v"))
    online = OnlineObjective(first, adaptive, 0.02)
    start = online.objective
    before = online.objective.schedule.density(MIDDLE)
    online.refit(torch.full((3, len(online.edges) - 1), 5.0, dtype=torch.float64))
    assert (online.objective is start) == (online.errors is None) == (not adaptive and not start.weighting.learned)
    assert (online.objective.schedule is start.schedule) == (not adaptive)
    assert (online.objective.weighting is start.weighting) == (not start.weighting.learned)
    assert torch.equal(start.schedule.density(MIDDLE), before)
    if start.weighting.learned:  # every error is 1
        np.testing.assert_allclose(online.objective.weighting(MIDDLE), before, rtol=1e-6)
    again = OnlineObjective(first, adaptive, 0.02, online.state).objective
    assert torch.equal(again.schedule.density(MIDDLE), online.objective.schedule.density(MIDDLE))
    assert torch.equal(again.weighting(MIDDLE), online.objective.weighting(MIDDLE))


# A smooth curve through noisy means


AT = torch.linspace(-9.9, 9.9, 100, dtype=torch.float64)


CURVE = (AT / 2).sigmoid()


def noisy(curve, precision, seed):
    """Gamma-distributed means with that precision: 1 over their relative variance."""
    return torch.from_numpy(np.random.default_rng(seed).gamma(precision, size=len(curve)) / precision) * curve


def off(found, curve=CURVE):
    return float((found / curve).log().square().mean().sqrt())


@pytest.mark.parametrize("bend", (BENDS[0], BENDS[-1]))
def test_roughness_is_that_of_the_curve_however_it_is_cut(bend):
    """∫ f″²/bend + f′² dλ of f = sin over ten periods, on bins of different and of uneven width."""
    wanted = 10 * np.pi * (1 / bend + 1)
    for count in (800, 1200):
        at = torch.linspace(0, 20 * np.pi, count, dtype=torch.float64)
        assert float(at.sin() @ roughness(at, bend) @ at.sin()) == pytest.approx(wanted, rel=0.02)
    at = 20 * np.pi * torch.linspace(0, 1, 1200, dtype=torch.float64) ** 1.2
    assert float(at.sin() @ roughness(at, bend) @ at.sin()) == pytest.approx(wanted, rel=0.02)


def test_a_jump_is_followed_when_the_observations_show_it():
    """A smoothness fixed beforehand would smear it: the likeliest one doesn't."""
    curve = CURVE * torch.where(AT > 0, 0.3, 1.0)
    found = smooth(AT, noisy(curve, 1000, 0), torch.full_like(curve, 1000))
    assert off(found, curve) < 0.05
    assert float(found[51] / found[48]) == pytest.approx(0.3, rel=0.15)


def test_between_observations_it_is_straight_in_the_logarithm_and_level_far_beyond():
    precision = torch.full_like(CURVE, 1e6)
    precision[40:60] = 0
    np.testing.assert_allclose(smooth(AT, (0.4 * AT).exp(), precision), (0.4 * AT).exp(), rtol=0.02)
    precision[:60] = 0
    found = smooth(AT, torch.ones_like(AT), precision)
    np.testing.assert_allclose(found, 1, rtol=1e-6)


def test_one_observation_is_the_level_everywhere():
    precision = torch.zeros_like(AT)
    precision[30] = 2
    np.testing.assert_allclose(smooth(AT, torch.full_like(AT, 7), precision), 7, rtol=1e-4)


def test_means_of_zero_pull_down_and_break_nothing():
    mean = torch.where(torch.arange(100) % 2 == 0, 0.0, 2.0).double()
    found = smooth(AT, mean, torch.full_like(mean, 0.5))
    np.testing.assert_allclose(found, 1, rtol=0.2)
