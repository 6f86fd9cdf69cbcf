"""Which checkpoints stay: the newest, the milestones and those in use, and no others."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.files.retention import due, kept, step_of

steps = st.sets(st.integers(1, 400), max_size=30)
counts, milestones, held = st.integers(1, 10), st.integers(0, 50), st.sets(st.integers(1, 400), max_size=5)


@settings(deadline=None)
@given(steps, counts, milestones, held)
def test_what_stays_and_what_goes_has_its_reason(
    steps: set[int], keep: int, milestone_every: int, held: set[int]
) -> None:
    found = kept(steps, keep, milestone_every, held)
    assert found <= steps
    for step in steps:
        newer = sum(other > step for other in steps)
        reasons = [newer < keep, milestone_every > 0 and step % milestone_every == 0, step in held]
        assert (step in found) == any(reasons)


@settings(deadline=None)
@given(steps, counts, milestones, held)
def test_dropping_as_they_come_leaves_what_dropping_at_the_end_would(
    steps: set[int], keep: int, milestone_every: int, held: set[int]
) -> None:
    """The order doesn't matter, and what is released goes with the next checkpoint."""
    there: set[int] = set()
    for step in sorted(steps):
        there = kept({*there, step}, keep, milestone_every, held)
    assert kept(there, keep, milestone_every, set()) == kept(steps, keep, milestone_every, set())
    assert kept(list(steps), keep, milestone_every, list(held)) == kept(there, keep, milestone_every, held)


def test_a_milestone_is_saved_even_where_no_checkpoint_was_due() -> None:
    assert [step for step in range(1, 41) if due(step, 10, 15)] == [10, 15, 20, 30, 40]
    assert [step for step in range(1, 41) if due(step, 10, 0)] == [10, 20, 30, 40]


def test_a_checkpoint_says_its_step() -> None:
    assert step_of(Path("run/checkpoints/step-00001200")) == 1200
    assert step_of(Path("run/checkpoints/step-123456789")) == 123456789
