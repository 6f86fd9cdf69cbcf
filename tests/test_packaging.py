"""What is shipped: an sdist and a wheel that hold what they should and nothing else, pages that say what the commands say."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import release
from release import tracked
from wheel_fixtures import Installed

from elbocli.main import COMMANDS
from elbocli.version import __version__

ROOT = Path(__file__).parent.parent
PAGE = re.compile(r"man/[^/]+\.[15]")
EGG = ("SOURCES", "dependency_links", "entry_points", "requires", "top_level")


def test_man_pages_are_what_the_commands_say() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "man" / "build.py", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_finds_nothing_to_complain_about() -> None:
    pages = sorted(map(str, (ROOT / "man").glob("*.[15]")))
    result = subprocess.run(["mandoc", "-T", "lint", *pages], capture_output=True, text=True, check=False)
    assert len(pages) > len(COMMANDS) + 1  # the group's, the formats', and those of commands within commands
    assert result.stdout == "" and result.returncode == 0


def test_a_wheel_holds_the_package_its_pages_and_nothing_else(wheel: Path) -> None:
    name, version, *_ = wheel.name.split("-")
    about = f"{name}-{version}.dist-info"
    package = [each for each in tracked() if each.startswith("elbocli/")]
    pages = [
        f"{name}-{version}.data/data/share/man/man{each[-1]}/{each[4:]}" for each in tracked() if PAGE.fullmatch(each)
    ]
    written = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"]
    assert len(pages) > len(COMMANDS)
    assert {"elbocli/py.typed", "elbocli/__init__.pyi", "elbocli/report/page.html"} < set(package)
    assert sorted(zipfile.ZipFile(wheel).namelist()) == sorted(
        [*package, *pages, *(f"{about}/{each}" for each in written)]
    )


def test_an_sdist_is_what_is_tracked_and_the_same_bytes_whatever_lies_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release.make_sdist(tmp_path / "first")
    top = made.name.removesuffix(".tar.gz")
    with tarfile.open(made) as archive:
        names = {each.name.removeprefix(f"{top}/") for each in archive if each.isfile()}
        owners = {(each.uid, each.gid, each.uname, each.mtime) for each in archive}
    egg = {f"elbocli.egg-info/{each}.txt" for each in EGG} | {"elbocli.egg-info/PKG-INFO", "PKG-INFO"}
    assert names == {*tracked(), *egg}
    assert owners == {(0, 0, "", release.epoch())}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(release.epoch()))
    before = os.umask(0o077)
    try:
        again = release.make_sdist(tmp_path / "again")
    finally:
        os.umask(before)
    assert made.read_bytes() == again.read_bytes()


def test_tag_changes_and_version_agree() -> None:
    assert release.disagreement() == "" == release.disagreement(f"v{__version__}")
    assert release.disagreement("v9.9.9") == f"the tag is v9.9.9, and elbocli.__version__ is {__version__}"


def test_installed_in_a_fresh_environment_it_runs_and_man_finds_its_pages(installed: Installed, tmp_path: Path) -> None:
    result = installed.run("elbo", "weights", "check", "edm", cwd=tmp_path, fresh=True)
    assert result.returncode == 1 and "-3.307778" in result.stdout
    where = installed.run("python", "-c", "import elbocli; print(elbocli.__file__)", cwd=tmp_path, fresh=True)
    assert where.stdout.startswith(str(installed.folder))
    assert (installed.folder / "share" / "man" / "man1" / "elbo-train.1").exists()
    if shutil.which("man"):
        found = installed.run("man", "-w", "elbo-train", cwd=tmp_path)
        assert found.stdout.strip() == str(installed.folder / "share/man/man1/elbo-train.1"), found.stderr
