"""Learning rates: that they are lr after warm-up and before any decay, fall to what was asked for, and never rise again."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from elbocli.core.training import LR_DECAYS, learning_rate
from elbocli.errors import UsageError

STEPS = 1000
FINAL = [name for name, each in LR_DECAYS.items() if "final" in each.params]


def rates(spec: str, warmup: int = 0, steps: int = STEPS) -> list[float]:
    return [learning_rate(done, steps, 0.25, warmup, LR_DECAYS.parse(spec)) for done in range(steps)]


@pytest.mark.parametrize("name", LR_DECAYS)
def test_a_rate_begins_at_lr_and_never_rises_after_warm_up(name: str) -> None:
    found = rates(name)
    assert found[0] == 0.25
    assert all(one >= other > 0 for one, other in pairwise(found))
    warm = rates(name, warmup=10)
    assert warm[10:] == found[10:]
    for done in range(10):
        assert warm[done] == pytest.approx(found[done] * (done + 1) / 10, rel=1e-15)


@pytest.mark.parametrize("name", FINAL)
def test_a_rate_that_has_an_end_falls_there_by_half_in_half_the_time(name: str) -> None:
    decay = LR_DECAYS.parse(f"{name}:final=.2")
    assert [decay(done, STEPS) for done in (0, STEPS // 2, STEPS, 2 * STEPS)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert LR_DECAYS.parse(name)(STEPS, STEPS) == pytest.approx(0, abs=1e-15)
    assert rates(f"{name}:final=1") == rates("constant")


def test_a_cosine_falls_slowest_at_both_ends_and_a_line_evenly() -> None:
    falls = [[one - other for one, other in pairwise(rates(name))] for name in ("cosine", "linear")]
    assert falls[0].index(max(falls[0])) == pytest.approx(STEPS / 2, abs=1) and falls[0][0] < falls[0][STEPS // 4]
    assert max(falls[1]) == pytest.approx(min(falls[1]), rel=1e-9)


def test_an_inverse_square_root_is_constant_until_its_reference_whatever_the_number_of_steps() -> None:
    found = rates("rsqrt:ref=100")
    assert set(found[:101]) == {0.25}
    assert found[400] == pytest.approx(0.25 / 2) and found[900] == pytest.approx(0.25 / 3)
    assert rates("rsqrt:ref=100", steps=500) == found[:500]
    assert math.isclose(LR_DECAYS["rsqrt"](280_000, 1), 0.5)


@pytest.mark.parametrize(
    "spec", ["cosine:final=-.1", "linear:final=1.5", "rsqrt:ref=0", "rsqrt:final=0", "constant:final=1"]
)
def test_a_rate_that_cannot_be_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=spec.partition(":")[0]):
        LR_DECAYS.parse(spec)
