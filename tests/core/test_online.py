"""A schedule that adapts while training comes near to w·E, on simulated errors.

Errors are gamma-distributed about a known mean at each λ; the mean of w·E over λ is 4. The distance is total variation from w·E to
the schedule, by bin.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.adaptive import LONGEST, SHARE, AdaptiveSchedule, BinSums, bin_edges
from elbocli.core.streams import Stream, times
from elbocli.core.weighting import parse_weighting

BATCH = 128
BINS = 100
SCALE = 4.0
FLOOR = 0.01


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def network(lam):
    """An error curve like that of digits: exponential in λ on the noisy side, then a long shoulder."""
    return sigmoid(lam + 2.5) * (0.15 + 0.9 * sigmoid(0.55 * (lam - 4)))


@dataclass
class Simulation:
    """Training under one weighting. spread: standard deviation of an error over its mean."""

    weighting: str = "sigmoid:bias=2"
    spread: float = 0.3
    low: float = -10.0
    high: float = 10.0

    def __post_init__(self):
        self.w = parse_weighting(self.weighting)
        self.edges = np.linspace(self.low, self.high, BINS + 1)
        self.fine = self.edges[:-1, None] + np.diff(self.edges)[:, None] * (np.arange(32) + 0.5) / 32
        self.fine_w = self.w(torch.from_numpy(self.fine)).numpy()
        self.scale = SCALE / (self.fine_w * network(self.fine)).mean()
        self.t = Stream(0, "t")
        self.random = np.random.default_rng(0)

    def errors(self, lam):
        shape = self.spread**-2
        return self.random.gamma(shape, size=lam.shape) / shape * self.scale * network(lam)

    def distance(self, share):
        mass = (self.fine_w * network(self.fine)).mean(1)
        return 0.5 * float(np.abs(share - mass / mass.sum()).sum())

    def ours(self, marks, every=100):
        """Distances of the adaptive schedule, refitted as the trainer does."""
        online = AdaptiveSchedule(bin_edges(self.low, self.high, BINS))
        self.schedule = online.schedule(self.w, FLOOR)
        found = {}
        sums = BinSums(self.low, self.high, BINS)
        for step in range(max(marks)):
            lam = self.schedule.logsnr(times(self.t, step, BATCH))
            sums.add(lam.float(), torch.from_numpy(self.errors(lam.numpy())).float())
            if (step + 1) % every == 0:
                online.update(sums.take())
                self.schedule = online.schedule(self.w, FLOOR)
            if step + 1 in marks:
                found[step + 1] = self.distance(-self.schedule.t(online.edges).diff().numpy())
        return found


def test_one_batch_is_enough_to_be_nearer_than_uniform():
    simulation = Simulation(spread=1.0)
    uniform = simulation.distance(np.full(BINS, 1 / BINS))
    found = simulation.ours((1, 30), every=1)
    assert found[1] < uniform / 3 and found[30] < uniform / 10


def test_a_weighting_that_diverges_at_one_end():
    """Over 1e17 in w, most of it where the error is all but zero."""
    simulation = Simulation("fm-ot", 1.0, -20, 20)
    assert simulation.ours((1000,))[1000] < 0.031
    density = simulation.schedule.density(torch.linspace(-20, 20, 999, dtype=torch.float64))
    assert bool(density.isfinite().all()) and float(density.min()) >= FLOOR / 40 * (1 - 1e-9)


# Memory


def test_no_start_value_lingers():
    online = AdaptiveSchedule(bin_edges(-10, 10))
    first = torch.ones(3, BINS, dtype=torch.float64)
    then = torch.ones(3, BINS, dtype=torch.float64) * 5
    online.update(first)
    assert torch.equal(online.moments().mean, torch.ones(BINS, dtype=torch.float64))
    online.update(then)
    kept = (1 / 6) ** (1 / SHARE)
    np.testing.assert_allclose(online.state[0], 5 + kept, rtol=1e-12)
    np.testing.assert_allclose(online.state[3], 6, rtol=1e-12)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_how_often_it_is_updated_does_not_change_what_is_remembered(counts):
    often = AdaptiveSchedule(bin_edges(-1, 1, 4))
    once = AdaptiveSchedule(bin_edges(-1, 1, 4))
    fresh = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64).expand(3, 4)
    for online, parts in ((often, counts), (once, [sum(counts)])):
        online.update(torch.full((3, 4), 1000.0, dtype=torch.float64))
        for count in parts:
            online.update(count * fresh)
    np.testing.assert_allclose(often.state[1], once.state[1], rtol=1e-9)
    np.testing.assert_allclose(once.state[1], 1000 * (4000 / (4000 + 4 * sum(counts))) ** (1 / SHARE), rtol=1e-9)


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_at_any_age_a_change_is_forgotten_fast_enough(before, after):
    online = AdaptiveSchedule(bin_edges(-1, 1, 2))
    old = torch.full((3, 2), before / 2, dtype=torch.float64)
    new = torch.zeros(3, 2, dtype=torch.float64)
    new[0] = after / 2
    online.update(old)
    online.update(new)
    left = float(online.state[1].sum()) / max(before, 1)
    assert left <= 0.999 ** (after / BATCH) * (1 + 1e-9)
    assert left <= math.exp(-after / LONGEST) * (1 + 1e-9)


def test_a_visit_without_errors_changes_nothing():
    online = AdaptiveSchedule(bin_edges(-1, 1, 4))
    online.update(torch.ones(3, 4, dtype=torch.float64))
    before = online.state.clone()
    online.update(torch.zeros(3, 4, dtype=torch.float64))
    assert torch.equal(online.state, before)
