"""Facts on a classifier's probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.calibration import calibration_error, reliability, wilson


@given(st.integers(1, 400), st.data())
def test_the_interval_holds_the_share_and_lies_within_0_and_1(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    low, high = wilson(right, count)
    assert 0 <= low <= right / count + 1e-12 and right / count - 1e-12 <= high <= 1


def test_the_interval_solves_its_equation() -> None:
    """|p − share| = 1.96 √(p (1 − p) / n) at both ends."""
    for end in wilson(37, 50):
        assert abs(end - 0.74) == pytest.approx(1.959963984540054 * np.sqrt(end * (1 - end) / 50), rel=1e-9)


def test_a_calibrated_classifier_has_next_to_no_error_and_a_boaster_his_boast() -> None:
    random = np.random.default_rng(0)
    said = random.uniform(0.1, 1, 20000)
    true = random.uniform(size=20000) < said
    assert calibration_error(reliability(said, true)) < 0.02
    assert calibration_error(reliability(np.full(1000, 0.9), np.arange(1000) < 600)) == pytest.approx(0.3)
    table = reliability(np.array([0.05, 1.0, 0.999]), np.array([False, True, True]))
    assert [(row.low, row.count, row.accuracy) for row in table] == [(0, 1, 0), (0.9, 2, 1)]
