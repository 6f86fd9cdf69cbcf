"""Subsets of timesteps: those of ADM, at the levels of its own schedules."""

import math

import adm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.samplers import time_grid
from elbocli.core.sampling import SPACINGS, usual_spacing
from elbocli.core.schedule import parse_schedule
from elbocli.errors import UsageError
from elbocli.files.schedule_file import resolve_schedule

LEVELS = {"linear": "t-linear", "cosine": "t-squaredcos"}


@pytest.mark.parametrize("words", ["250", "50", "2", "1000", "ddim25", "ddim250", "ddim1000"])
@pytest.mark.parametrize("name", LEVELS)
def test_a_grid_has_adms_abar_at_every_step_and_ends_clean(name, words):
    steps, spacing = int(words.removeprefix("ddim")), SPACINGS["stride" if "ddim" in words else "timesteps"]
    grid = time_grid(parse_schedule(LEVELS[name]), steps, spacing)
    abar = adm.Spaced(name, 1000, words).abar[::-1]
    assert len(grid) == steps + 1 and grid[-1] == math.inf
    np.testing.assert_allclose(grid[:-1], np.log(abar) - np.log1p(-abar), rtol=0, atol=1e-11)
    np.testing.assert_allclose(1 / (1 + np.exp(-np.array(grid[:-1]))), abar, rtol=1e-12)


@given(st.integers(2, 3000), st.data())
def test_any_subset_is_adms(count, data):
    steps = data.draw(st.integers(2, count))
    schedule = parse_schedule(f"t-squaredcos:count={count}")
    numbers = np.interp(time_grid(schedule, steps)[:-1], schedule.curve.level, np.arange(count)[::-1])  # type: ignore[attr-defined]
    assert numbers[::-1].round(6).tolist() == adm.subset(count, str(steps))


def test_declared_timesteps_are_walked_as_adm_does_and_others_evenly(tmp_path):
    assert usual_spacing(parse_schedule("t-linear")).name == "timesteps"
    assert usual_spacing(parse_schedule("cosine")).name == "even"
    config = tmp_path / "scheduler_config.json"
    config.write_text(
        '{"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}'
    )
    same = resolve_schedule(str(config))
    assert usual_spacing(same).name == "even"
    assert time_grid(same, 250) != time_grid(parse_schedule("t-linear"), 250)
    assert time_grid(same, 250, SPACINGS["timesteps"]) == time_grid(parse_schedule("t-linear"), 250)


def test_only_timesteps_within_the_range_are_visited_and_a_shift_moves_them():
    whole = time_grid(parse_schedule("t-linear"), 1000)
    cut = parse_schedule("t-linear", -5.0, 5.0)
    inside = [at for at in whole if -5 <= at <= 5]
    assert time_grid(cut, len(inside))[:-1] == inside
    moved = time_grid(parse_schedule("t-linear:shift=1"), 1000)
    np.testing.assert_allclose(moved[:-1], np.array(whole[:-1]) + 1, rtol=1e-14)
    assert time_grid(parse_schedule("t-linear"), 1) == [whole[0], math.inf]


@pytest.mark.parametrize(
    ("schedule", "steps", "spacing", "complaint"),
    [
        ("cosine", 10, "timesteps", "cosine has no timesteps"),
        ("t-linear", 1001, "timesteps", "has 1000 timesteps in this range, and 1001 steps"),
        ("t-linear", 300, "stride", "no stride takes 300 of the 1000 timesteps .* 334 have one"),
    ],
)
def test_what_a_schedule_does_not_have_is_refused(schedule, steps, spacing, complaint):
    low, high = (-10, 10) if schedule == "cosine" else (None, None)
    with pytest.raises(UsageError, match=complaint):
        time_grid(parse_schedule(schedule, low, high), steps, SPACINGS[spacing])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("t-linear:count=1", "count is 1;"),
        ("t-linear:count=10.5", "whole number of timesteps"),
        ("t-linear:end=2", "a beta is not"),
        ("t-linear:start=0", "a beta is not"),
        ("t-scaled-linear:start=-1", "start is -1;"),
        ("t-squaredcos:count=1000000", "count is"),
    ],
)
def test_timesteps_that_can_not_be_are_refused(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse_schedule(text)
