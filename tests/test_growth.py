"""The table of how time and memory grow (tests/bench/growth.py): its exponents, and that it can be made."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from growth import COUNTED, WORKS, Cost, exponent

BENCH = Path(__file__).parent / "bench"


@pytest.mark.parametrize("power", [0.5, 1, 1.7])
def test_the_exponent_is_the_power_of_what_is_done_beside_the_start(power: float) -> None:
    sizes = [1000, 10_000, 70_000]
    costs = [Cost(2 + 1e-3 * n**power, 0) for n in sizes]
    assert exponent(sizes, costs, 2) == pytest.approx(power)


def test_there_is_no_exponent_where_there_is_no_time_but_the_start() -> None:
    costs = [Cost(2 + COUNTED / 2, 0), Cost(3, 0)]
    assert exponent([10, 100], costs, 2) is None and exponent([10], costs[:1], 0) is None
    assert exponent([10, 100], costs, 0) == pytest.approx(math.log10(3 / costs[0].seconds))


@pytest.mark.slow
def test_the_table_is_made_small() -> None:
    """Every row, at sizes that say nothing."""
    line = [sys.executable, str(BENCH / "growth.py"), "--sizes", "120,240"]
    made = subprocess.run(line, capture_output=True, text=True, check=False, timeout=900)
    assert made.returncode == 0, made.stderr
    rows = [line.split("|")[1].strip() for line in made.stdout.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row] == [work.name for work in WORKS]
