"""What `make oldest` installs is what setup.cfg promises, and the hosted workflow tests it."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from bounds import SETUP, oldest_python
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def printed(*words: object) -> list[str]:
    """Lines of the script, as make reads them."""
    line = [sys.executable, ROOT / "tests" / "bounds.py", *words]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()


def promised() -> list[Requirement]:
    """All requirements of the package and of its tests, read by packaging."""
    parser = ConfigParser()
    parser.read(SETUP)
    texts = (parser["options"]["install_requires"], parser["options.extras_require"]["test"])
    return [Requirement(line) for text in texts for line in text.splitlines() if line]


def test_each_requirement_is_constrained_to_its_lowest_version() -> None:
    constraints = {each.name: each.specifier for each in map(Requirement, printed())}
    for wanted in promised():
        (bound,) = wanted.specifier
        assert bound.operator == ">="
        assert constraints.pop(wanted.name) == SpecifierSet(f"=={bound.version}")
    assert not constraints


def test_another_bound_is_another_constraint(tmp_path: Path) -> None:
    other = tmp_path / "setup.cfg"
    other.write_text(re.sub(r"click >= \S+", "click >= 9.7", SETUP.read_text()))
    assert set(printed(other)) - set(printed()) == {"click==9.7"}


@pytest.mark.parametrize("wrong", ["click", "click == 8.2", "click >= 8.2, < 9", "torch >= 8"])
def test_what_is_no_lower_bound_is_refused(wrong: str, tmp_path: Path) -> None:
    other = tmp_path / "setup.cfg"
    other.write_text(re.sub(r"click >= \S+", wrong, SETUP.read_text()))
    with pytest.raises(subprocess.CalledProcessError):
        printed(other)


def test_the_workflow_runs_both_from_the_oldest_python_on() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    runs = [
        (run["bounds"], f"python{run['python']}")
        for run in workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]
    ]
    assert ("oldest", oldest_python()) in runs
    newest = [Version(python.removeprefix("python")) for bounds, python in runs if bounds == "newest"]
    minors = [version.minor for version in newest]
    assert f"python{newest[0]}" == oldest_python() and minors == list(range(minors[0], minors[-1] + 1))
