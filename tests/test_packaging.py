"""What is shipped: a wheel with man pages and no tests, pages that say what the commands say."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from wheel_fixtures import Installed

from elbocli.main import COMMANDS

ROOT = Path(__file__).parent.parent


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


def test_a_wheel_holds_the_package_its_presets_and_pages_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if re.search(r"\btests?\b|\btest_|_test\b", name)]
    for wanted in (
        "elbocli/nn/presets/imagenet64.yaml",
        *(f"elbocli/report/{name}.html" for name in ("base", "parts", "page", "several")),
        "elbocli/__init__.pyi",
        "elbocli/py.typed",
        "data/share/man/man1/elbo-train.1",
        "data/share/man/man5/elbo-formats.5",
        "LICENSE",
    ):
        assert any(name.endswith(wanted) for name in names), wanted


def test_installed_in_a_fresh_environment_it_runs_and_man_finds_its_pages(installed: Installed, tmp_path: Path) -> None:
    result = installed.run("elbo", "weights", "check", "edm", cwd=tmp_path, fresh=True)
    assert result.returncode == 1 and "-3.307778" in result.stdout
    where = installed.run("python", "-c", "import elbocli; print(elbocli.__file__)", cwd=tmp_path, fresh=True)
    assert where.stdout.startswith(str(installed.folder))
    assert (installed.folder / "share" / "man" / "man1" / "elbo-train.1").exists()
    if shutil.which("man"):
        found = installed.run("man", "-w", "elbo-train", cwd=tmp_path)
        assert found.stdout.strip() == str(installed.folder / "share/man/man1/elbo-train.1"), found.stderr
