"""What is shipped: a wheel with man pages and no tests, pages that say what the commands say."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    line = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder),
        str(source),
    ]
    subprocess.run(line, check=True, capture_output=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_a_wheel_holds_the_package_its_presets_and_pages_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "test" in name]
    for wanted in (
        "elbocli/nn/presets/imagenet64.yaml",
        "elbocli/report/page.html",
        "data/share/man/man1/elbo-train.1",
        "data/share/man/man5/elbo-formats.5",
        "LICENSE",
    ):
        assert any(name.endswith(wanted) for name in names), wanted


def test_installed_in_a_fresh_environment_it_runs_and_man_finds_its_pages(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    line = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(line, check=True, capture_output=True, timeout=120)
    # The dependencies come from here: installing torch again would need a network.
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    import click

    (site / "deps.pth").write_text(str(Path(click.__file__).parent.parent) + "\n")
    environment = {**os.environ, "PATH": f"{tmp_path}/env/bin:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)  # which may name the tree under test
    result = subprocess.run(
        ["elbo", "weights", "check", "edm"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1 and "-3.307778" in result.stdout
    where = subprocess.run(
        [python, "-c", "import elbocli; print(elbocli.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(tmp_path))
    assert (tmp_path / "env" / "share" / "man" / "man1" / "elbo-train.1").exists()
    if shutil.which("man"):
        found = subprocess.run(
            ["man", "-w", "elbo-train"], env=environment, capture_output=True, text=True, check=False
        )
        assert found.stdout.strip() == str(tmp_path / "env/share/man/man1/elbo-train.1"), found.stderr
