"""Tests that `make test` leaves out, and `make check` runs: those that take long. `tests/long.txt` lists them.

python tests/long_tests.py JUNIT.xml > tests/long.txt, of a whole run (`make check PYTEST_ADDOPTS=--junitxml=JUNIT.xml`) on idle
cores. The whole pipeline stays in `make test`, however long it takes.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

LISTED = Path(__file__).with_name("long.txt")
LONG_S = 2.5
"""Seconds of a worker, where three share two cores."""
KEPT = "tests/test_pipeline.py"


@cache
def long_tests() -> frozenset[str]:
    """Node ids of the listed tests."""
    return frozenset(LISTED.read_text().splitlines())


def found_in(junit: Path) -> list[str]:
    """Node ids of tests that took long in that run."""
    cases = ElementTree.parse(junit).iter("testcase")
    times = {
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": float(case.get("time", 0))
        for case in cases
    }
    return sorted(name for name, seconds in times.items() if seconds >= LONG_S and not name.startswith(KEPT))


if __name__ == "__main__":
    print(*found_in(Path(sys.argv[1])), sep="\n")
