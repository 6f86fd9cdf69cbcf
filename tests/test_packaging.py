"""Releases: a wheel and an sdist hold what they should and nothing else, and their bounds are what the tests install."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import release
import yaml
from bounds import SETUP, oldest_python
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from release import tracked

from elbocli.main import COMMANDS
from elbocli.version import __version__

ROOT = Path(__file__).parent.parent
PAGE = re.compile(r"man/[^/]+\.[15]")
EGG = ("SOURCES.txt", "dependency_links.txt", "entry_points.txt", "requires.txt", "top_level.txt", "PKG-INFO")


@pytest.mark.long
def test_a_wheel_holds_the_package_its_pages_and_nothing_else(wheel):
    name, version, *_ = wheel.name.split("-")
    package = [each for each in tracked() if each.startswith("elbocli/")]
    share = f"{name}-{version}.data/data/share/man"
    pages = [f"{share}/man{each[-1]}/{each[4:]}" for each in tracked() if PAGE.fullmatch(each)]
    written = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"]
    assert len(pages) > len(COMMANDS)
    assert {"elbocli/py.typed", "elbocli/__init__.pyi", "elbocli/report/page.html"} < set(package)
    about = [f"{name}-{version}.dist-info/{each}" for each in written]
    assert sorted(zipfile.ZipFile(wheel).namelist()) == sorted([*package, *pages, *about])


@pytest.mark.long
def test_an_sdist_is_what_is_tracked_and_the_same_bytes_whatever_lies_around(tmp_path, monkeypatch):
    made = release.make_sdist(tmp_path / "first")
    with tarfile.open(made) as archive:
        names = {each.name.partition("/")[2] for each in archive if each.isfile()}
        owners = {(each.uid, each.gid, each.uname, each.mtime) for each in archive}
    assert names == {*tracked(), *(f"elbocli.egg-info/{each}" for each in EGG), "PKG-INFO"}
    assert owners == {(0, 0, "", release.epoch())}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(release.epoch()))
    before = os.umask(0o077)
    try:
        again = release.make_sdist(tmp_path / "again")
    finally:
        os.umask(before)
    assert made.read_bytes() == again.read_bytes()


def test_tag_changes_and_version_agree():
    assert release.disagreement() == "" == release.disagreement(f"v{__version__}")
    assert "v9.9.9" in release.disagreement("v9.9.9")


@pytest.mark.long
def test_installed_in_a_fresh_environment_it_runs_and_man_finds_its_pages(installed, tmp_path):
    result = installed.run("elbo", "weights", "check", "edm", cwd=tmp_path)
    assert result.returncode == 1 and "-3.307778" in result.stdout
    where = installed.run("python", "-c", "import elbocli; print(elbocli.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(installed.folder))
    page = installed.folder / "share/man/man1/elbo-train.1"
    assert page.exists()
    if shutil.which("man"):
        assert installed.run("man", "-w", "elbo-train", cwd=tmp_path).stdout.strip() == str(page)


# Bounds: `make oldest` installs what setup.cfg promises, and the hosted workflow tests it


def printed(*words):
    """Lines of the script, as make reads them."""
    line = [sys.executable, ROOT / "tools/bounds.py", *words]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()


def test_each_requirement_is_constrained_to_its_lowest_version():
    parser = ConfigParser()
    parser.read(SETUP)
    texts = (parser["options"]["install_requires"], parser["options.extras_require"]["test"])
    promised = {each.name: each.specifier for text in texts for each in map(Requirement, text.split("\n")[1:])}
    constraints = {each.name: each.specifier for each in map(Requirement, printed())}
    assert constraints == {name: SpecifierSet(str(bound).replace(">=", "==")) for name, bound in promised.items()}


def test_the_workflow_runs_both_from_the_oldest_python_on():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    matrix = workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]
    runs = [(run["bounds"], Version(run["python"])) for run in matrix]
    oldest = Version(oldest_python().removeprefix("python"))
    newest = [version for bounds, version in runs if bounds == "newest"]
    assert ("oldest", oldest) in runs and newest[0] == oldest
    assert [version.minor for version in newest] == [*range(oldest.minor, newest[-1].minor + 1)]
