"""Parts of the comparison in equal time: its interval, the loop's batches, and the loop's network."""

import math
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp


@pytest.fixture
def equal_time(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return import_module("equal_time")


def test_the_interval_of_a_ratio_is_students_over_seeds(equal_time):
    theirs = np.array([40.0, 50.0, 60.0])
    found = equal_time.ratio(0.4 * theirs * np.exp([0.1, 0.0, -0.1]), theirs)
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's t of two degrees of freedom, from a printed table
    assert list(found.values()) == pytest.approx([0.4, 0.4 * math.exp(-half), 0.4 * math.exp(half)], rel=1e-6)
    ours = [10.0, 30.0, 15.0, 20.0]
    low, high = ttest_1samp(np.log(ours), 0).confidence_interval(0.95)
    found = equal_time.ratio(ours, [1.0] * 4)
    assert (found["low"], found["high"]) == pytest.approx((math.exp(low), math.exp(high)))
    assert equal_time.ratio([3.0], [4.0]) == {"ratio": pytest.approx(0.75), "low": None, "high": None}


def test_an_epoch_of_the_loop_is_a_permutation_without_its_last_rows(equal_time):
    first, second = (np.concatenate(list(islice(found, 3))) for found in [equal_time.batches(14, 4, 0)] for _ in range(2))
    assert len(set(first)) == len(set(second)) == 12 and set(first) | set(second) <= set(range(14)) and set(first) != set(second)


@pytest.mark.parametrize(("size", "parameters"), [(8, 209_009), (28, 794_609), (64, 931_827)])
def test_the_loops_network_is_the_narrowest_with_as_many_parameters(equal_time, size, parameters):
    network = equal_time.narrowest(size, 1, 10, parameters, 2)
    width = network.config.block_out_channels[0]
    narrower = equal_time.narrowest(size, 1, 10, parameters, 2, width - 8)
    assert narrower.num_parameters() < parameters <= network.num_parameters() < 1.4 * parameters
