"""Every benchmark runs: once, at its smallest size."""

import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCH = Path(__file__).parent


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCH.glob("bench_*.py")))
def test_a_benchmark_runs(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    rows = list(import_module(name).rows(small=True))
    assert rows and len({row.name for row in rows}) == len(rows)
    assert all(math.isfinite(row.ratio) and row.peer > 0 for row in rows)


def test_the_table_is_printed():
    line = [sys.executable, BENCH / "run.py", "read", "--small"]
    result = subprocess.run(line, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) > 4 and "numpy.memmap" in result.stdout
