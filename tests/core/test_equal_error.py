"""Grids whose steps err alike, for errors whose every constant is known."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.core.local_error import ALIKE, equal_errors, measured_order

LOW, HIGH = -10.0, 10.0


def errors_of(order, peak, last=1.0):
    """C(λ) h^{p+1}, C a bump at `peak`; the last step's is last · e^{−λ/2}."""

    def step_errors(grid):
        steps = [math.exp(-((0.5 * (a + b) - peak) ** 2) / 18) * (b - a) ** (order + 1) for a, b in pairwise(grid)]
        return [*steps, last * math.exp(-grid[-1] / 2)]

    return step_errors


def even(steps, high=HIGH):
    return [LOW + (high - LOW) * k / (steps - 1) for k in range(steps)]


@settings(max_examples=20)
@given(st.sampled_from([1, 2, 3, 4]), st.floats(-4, 6), st.integers(6, 40))  # fewer are wider than the bump
def test_all_steps_err_alike_whatever_the_order(order, peak, steps):
    found = equal_errors(errors_of(order, peak, last=1e9), even(steps), HIGH)
    assert max(found.errors[:-1]) / min(found.errors[:-1]) <= ALIKE * 1.02
    assert found.grid[0] == LOW and all(b > a for a, b in pairwise(found.grid))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_no_other_grid_has_a_smaller_sum(order):
    errors = errors_of(order, 2.0, last=1e9)
    found = equal_errors(errors, even(24), HIGH).grid
    least = sum(errors(found)[:-1])
    for k in range(1, len(found) - 1):
        for by in (-0.3, 0.3):
            moved = list(found)
            moved[k] += by * min(moved[k + 1] - moved[k], moved[k] - moved[k - 1])
            assert sum(errors(moved)[:-1]) > least * 0.995
    assert least < sum(errors(even(24))[:-1])


def test_the_last_level_moves_to_where_the_step_to_clean_data_errs_as_much():
    found = equal_errors(errors_of(1, 0.0, last=0.5), even(12, high=3.0), HIGH)
    assert LOW < found.grid[-1] < HIGH
    assert found.errors[-1] == pytest.approx(found.errors[0], rel=0.06)
    assert found.spread <= ALIKE


def test_the_last_level_stops_at_the_range():
    found = equal_errors(errors_of(2, 0.0, last=1e9), even(12), HIGH)
    assert found.grid[-1] == HIGH


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_order_is_read_off_halves(order):
    assert measured_order(errors_of(order, 0.0), even(100)) == pytest.approx(order, abs=0.05)
