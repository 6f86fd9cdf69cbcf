import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.core.adaptive import BinSums, Moments, Online, bin_edges, fit, loss_variance
from elbocli.core.criteria import CRITERIA
from elbocli.core.schedule import Table, parse_schedule
from elbocli.core.weighting import parse_weighting
from elbocli.errors import DataError, UsageError

EDGES = bin_edges(-6, 8, 28)
MIDDLE = 0.5 * (EDGES[1:] + EDGES[:-1])
W = parse_weighting("sigmoid:bias=2")


def sums_of(mean, spread, count=1000.0):
    """[3, bins] for errors of that mean and standard deviation in each bin."""
    count = torch.full_like(mean, count)
    return torch.stack([count, count * mean, count * (mean.square() + spread.square())])


def moments_of(mean, spread):
    return Moments.of_sums(EDGES, sums_of(mean, spread))


def average(weighting, edges):
    """Mean of w over each bin, by fine midpoints."""
    part = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    return weighting(edges[:-1, None] + edges.diff()[:, None] * part).mean(1)


positive = st.lists(st.floats(0.01, 5), min_size=28, max_size=28).map(lambda v: torch.tensor(v, dtype=torch.float64))


def test_edges_are_equal_bins():
    np.testing.assert_allclose(bin_edges(-5, 13.3, 100), np.linspace(-5, 13.3, 101), rtol=1e-14)
    assert len(bin_edges(-5, 5)) == 101


# Counting


@given(st.integers(0, 999), st.integers(1, 300))
def test_bin_sums_are_a_histogram(seed, n):
    random = np.random.default_rng(seed)
    lam, error = random.uniform(-6, 8, n), random.gamma(2, size=n)
    sums = BinSums(-6, 8, 28)
    half = n // 2
    sums.add(torch.from_numpy(lam[:half]), torch.from_numpy(error[:half]))
    sums.add(torch.from_numpy(lam[half:]), torch.from_numpy(error[half:]))
    found = sums.take().numpy()
    for row, weight in enumerate((np.ones(n), error, error**2)):
        np.testing.assert_allclose(
            found[row], np.histogram(lam, 28, (-6, 8), weights=weight)[0], rtol=1e-12, atol=1e-12
        )


def test_the_ends_and_what_rounding_puts_beyond_them_belong_to_the_outer_bins():
    sums = BinSums(-6, 8, 28)
    sums.add(torch.tensor([-6.0, -6.0001, 8.0, 8.0001]), torch.ones(4))
    assert sums.take()[0].tolist() == [2, *[0] * 26, 2]


def test_taking_the_sums_starts_again_from_zero():
    sums = BinSums(-6, 8, 28)
    sums.add(torch.tensor([1.0]), torch.tensor([2.0]))
    taken = sums.take()
    assert taken.sum() == 1 + 2 + 4
    assert float(sums.take().abs().sum()) == 0
    assert taken.sum() == 7


# Fitting


@given(positive, st.floats(0.001, 1))
def test_the_density_is_weight_times_error_over_a_floor_of_uniform(mean, floor):
    schedule = fit(moments_of(mean, mean), W, "loss", floor)
    mass = average(W, EDGES) * mean * EDGES.diff()
    wanted = (1 - floor) * mass / mass.sum() / EDGES.diff() + floor / 14
    np.testing.assert_allclose(schedule.density(MIDDLE), wanted, rtol=2e-4)
    assert float(schedule.density(MIDDLE).min()) >= floor / 14 * (1 - 1e-9)
    assert (schedule.logsnr_min, schedule.logsnr_max) == (-6, 8)


@given(positive, positive)
def test_criteria_are_the_mean_the_root_of_the_second_moment_and_the_deviation(mean, spread):
    second = mean.square() + spread.square()
    wanted = {"loss": mean, "second-moment": second.sqrt(), "std": spread}
    assert set(wanted) == set(CRITERIA)
    for name, score in wanted.items():
        mass = average(W, EDGES) * score
        found = fit(moments_of(mean, spread), W, name, 1e-9).density(MIDDLE)
        np.testing.assert_allclose(found, mass / mass.sum() * 2, rtol=3e-4)


@settings(max_examples=30)
@given(positive, positive)
def test_each_criterion_has_the_least_variance_of_its_kind(mean, spread):
    moments = moments_of(mean, spread)
    plain = parse_weighting("elbo")
    variance = {name: loss_variance(moments, plain, fit(moments, plain, name, 1e-9).density) for name in CRITERIA}
    assert variance["second-moment"][0] <= min(v[0] for v in variance.values()) * (1 + 1e-9) + 1e-12
    assert variance["std"][1] <= min(v[1] for v in variance.values()) * (1 + 1e-9)


@given(positive)
def test_under_the_papers_density_low_discrepancy_gains_nothing(mean):
    moments = moments_of(mean, mean)
    plain = parse_weighting("elbo")
    independent, comb = loss_variance(moments, plain, fit(moments, plain, "loss", 1e-9).density)
    assert comb == pytest.approx(independent, rel=1e-6)


def test_one_log_serves_every_weighting():
    mean = (-MIDDLE / 4).exp()
    for text in ("elbo", "fm-ot", "edm-monotonic", "iddpm"):
        w = parse_weighting(text)
        ratio = fit(moments_of(mean, mean), w, floor=1e-9).density(MIDDLE) / (average(w, EDGES) * mean)
        assert float(ratio.max() / ratio.min()) == pytest.approx(1, rel=2e-3)


def test_bins_never_seen_are_interpolated_from_their_neighbours():
    mean = (0.3 * MIDDLE).exp()
    sums = sums_of(mean, mean)
    for gap in ([5, 6, 7], [13], [20, 21]):
        sums[:, gap] = 0
    filled = Moments.of_sums(EDGES, sums).filled()
    np.testing.assert_allclose(filled.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(filled.second, 2 * mean.square(), rtol=1e-12)


def test_bins_beyond_the_last_one_seen_take_its_value():
    sums = sums_of(MIDDLE * 0 + 2, MIDDLE * 0 + 1)
    sums[:, :4] = sums[:, -3:] = 0
    assert Moments.of_sums(EDGES, sums).filled().mean.tolist() == pytest.approx([2] * 28)


def test_a_bin_seen_once_is_not_trusted():
    sums = sums_of(MIDDLE * 0 + 2, MIDDLE * 0 + 1)
    sums[:, 9] = torch.tensor([1.0, 500.0, 250000.0])
    assert float(Moments.of_sums(EDGES, sums).filled().mean[9]) == pytest.approx(2)


def test_filling_leaves_the_bins_that_were_seen():
    mean = torch.from_numpy(np.random.default_rng(0).gamma(2, size=28))
    filled = moments_of(mean, mean).filled()
    np.testing.assert_allclose(filled.mean, mean, rtol=1e-12)


def test_an_empty_log_is_refused():
    with pytest.raises(DataError, match="train longer"):
        fit(Moments.of_sums(EDGES, torch.zeros(3, 28, dtype=torch.float64)), W)


@pytest.mark.parametrize("floor", [0, -0.1, 1.1, math.nan])
def test_a_floor_outside_its_range_is_refused(floor):
    with pytest.raises(UsageError, match="floor"):
        fit(moments_of(MIDDLE * 0 + 1, MIDDLE * 0 + 1), W, floor=floor)


def test_an_unknown_criterion_is_refused():
    with pytest.raises(UsageError, match="no criterion"):
        fit(moments_of(MIDDLE * 0 + 1, MIDDLE * 0 + 1), W, "variance")


def test_a_weighting_of_zero_everywhere_is_refused():
    with pytest.raises(DataError, match="zero or not finite"):
        fit(moments_of(MIDDLE * 0 + 1, MIDDLE * 0 + 1), parse_weighting("edm:mean=-200,std=0.1"))


# Predicted variance against sampling


def errors(random, lam, mean, spread):
    """Gamma errors whose mean and deviation are those of their bin."""
    cell = np.clip(np.digitize(lam, EDGES.numpy()) - 1, 0, 27)
    shape = (mean / spread) ** 2
    return random.gamma(shape[cell]) * (mean / shape)[cell]


@pytest.mark.parametrize("schedule", ["cosine", "uniform", "fitted"])
def test_predicted_variance_is_that_of_samples(schedule):
    random = np.random.default_rng(5)
    mean, spread = (0.3 * torch.sin(MIDDLE)).exp(), 0.5 + 0.2 * torch.cos(MIDDLE)
    moments = moments_of(mean, spread)
    s = fit(moments, W) if schedule == "fitted" else parse_schedule(schedule, -6, 8)
    independent, comb = loss_variance(moments, W, s.density)
    loss = 0.5 * float((average(W, EDGES) * mean * EDGES.diff()).sum())

    def estimate(t):
        lam = s.logsnr(torch.from_numpy(t))
        ratio = (W(lam) / s.density(lam)).numpy()
        return 0.5 * ratio * errors(random, lam.numpy(), mean.numpy(), spread.numpy())

    single = estimate(random.random(1_000_000))
    assert single.mean() == pytest.approx(loss, rel=0.01)
    assert single.var() / loss**2 == pytest.approx(independent, rel=0.03)
    batch = 512
    t = (random.random((12000, 1)) + np.arange(batch) / batch) % 1
    batches = estimate(t.ravel()).reshape(t.shape).mean(1)
    assert batches.var() * batch / loss**2 == pytest.approx(comb, rel=0.03)


# Online


def some_sums(random, scale=1.0):
    count = torch.from_numpy(random.integers(0, 20, 28).astype(np.float64))
    mean = torch.from_numpy(random.gamma(2, size=28)) * scale
    return torch.stack([count, count * mean, count * mean.square() * 2])


def test_online_is_the_plain_mean_until_its_memory_is_full():
    random = np.random.default_rng(0)
    online, total = Online(EDGES), torch.zeros(3, 28, dtype=torch.float64)
    for _ in range(50):
        sums = some_sums(random)
        online.update(sums)
        total += sums
    moments, plain = online.moments(), Moments.of_sums(EDGES, total)
    assert float(total[0].max()) < online.memory
    assert torch.equal(moments.count, total[0])
    np.testing.assert_allclose(moments.mean, plain.mean, rtol=1e-12)
    np.testing.assert_allclose(moments.second, plain.second, rtol=1e-12)


def test_online_forgets_at_the_pace_of_its_memory():
    online = Online(EDGES, memory=100)
    one = torch.ones(28, dtype=torch.float64)
    online.update(torch.stack([100 * one, 0 * one, 0 * one]))
    for _ in range(50):
        online.update(torch.stack([10 * one, 10 * one, 10 * one]))
    np.testing.assert_allclose(online.moments().mean, 1 - 0.9**50, rtol=1e-12)


def test_a_bin_that_is_not_visited_keeps_what_it_knows():
    online = Online(EDGES, memory=10)
    online.update(sums_of(MIDDLE * 0 + 3, MIDDLE * 0 + 1))
    before = online.moments().mean.clone()
    rest = sums_of(MIDDLE * 0 + 9, MIDDLE * 0)
    rest[:, 4] = 0
    for _ in range(20):
        online.update(rest)
    assert float(online.moments().mean[4]) == float(before[4])
    assert float(online.moments().mean[5]) == pytest.approx(9)


def test_a_restored_state_goes_on_bit_for_bit():
    random = np.random.default_rng(1)
    stream = [some_sums(random) for _ in range(400)]
    straight = Online(EDGES, memory=200)
    for sums in stream:
        straight.update(sums)
    before = Online(EDGES, memory=200)
    for sums in stream[:150]:
        before.update(sums)
    after = Online(EDGES, memory=200)
    after.state.copy_(before.state.clone())
    for sums in stream[150:]:
        after.update(sums)
    assert torch.equal(after.state, straight.state)
    one, other = (online.schedule(W, 0.01).curve for online in (after, straight))
    assert torch.equal(one.time, other.time)


def test_online_samples_uniformly_until_it_knows_something():
    schedule = Online(EDGES).schedule(W, 0.01)
    np.testing.assert_allclose(schedule.density(MIDDLE), 1 / 14, rtol=1e-12)


def test_online_and_offline_fit_the_same_schedule():
    random = np.random.default_rng(2)
    online, total = Online(EDGES), torch.zeros(3, 28, dtype=torch.float64)
    for _ in range(30):
        sums = some_sums(random)
        online.update(sums)
        total += sums
    offline = fit(Moments.of_sums(EDGES, total), W, "loss", 0.02).curve
    found = online.schedule(W, 0.02).curve
    assert isinstance(found, Table)
    np.testing.assert_allclose(found.time, offline.time, rtol=1e-10)
