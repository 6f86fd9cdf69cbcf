"""Hostile files through real commands: refused in a sentence."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import run_elbo
from hostile_files import HOSTILE, TRAIN, Hostile, good_files

LINES = [(case, line, case.quick and line == case.lines[0]) for case in HOSTILE for line in case.lines]
"""The last: whether it is known how the line ends, which takes no time. Others may have nothing to do with what is hostile."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("good")
    good_files(folder)
    assert ran(TRAIN, folder)[0] == 0
    yield folder


def ran(line: str, folder: Path) -> tuple[int, str]:
    """The exit code and words of a command."""
    found = run_elbo(*line.split(), cwd=folder)
    return found.returncode, found.stderr.decode(errors="replace")


@pytest.mark.parametrize(
    ("case", "line", "quick"),
    [
        pytest.param(case, line, quick, marks=() if quick else pytest.mark.slow, id=f"{case.name}: {line}")
        for case, line, quick in LINES
    ],
)
def test_it_is_refused_in_a_sentence(case: Hostile, line: str, quick: bool, good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    shutil.copytree(good, folder)
    case.make(folder)
    code, said = ran(line, folder)
    assert code in ((0,) if case.harmless and quick else (1, 2) if quick else (0, 1, 2)), said
    assert "Traceback" not in said
    if code:
        *_, last = said.splitlines()
        assert last.startswith(f"elbo {line.split()[0]}") and "error: " in last and len(last) < 1500
