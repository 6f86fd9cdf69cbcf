"""A wheel of this tree, and a fresh environment that it is installed in; dependencies come from the running one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from release import make_wheel

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip"]


@dataclass
class Installed:
    """A fresh environment with elbo in it."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def environment(self) -> dict[str, str]:
        """Its variables, without the tree on any path."""
        own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("ELBO_")}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {**own, "ELBO_DEVICE": "cpu", "PATH": path, "VIRTUAL_ENV": str(self.folder)}

    def run(self, *line: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command there, whose `elbo` and `python` are this environment's."""
        return subprocess.run(
            [*map(str, line)],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )


def install(wheel: Path, folder: Path) -> Installed:
    """The wheel with its bytecode, in a new environment there."""
    import click

    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    line = [*PIP, "--python", python, "install", "--quiet", "--compile", "--no-deps", "--no-index", str(wheel)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(line, check=True, capture_output=True, timeout=120, env=environment)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(str(Path(click.__file__).parent.parent) + "\n")
    return Installed(folder)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this tree."""
    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, installed."""
    return install(wheel, tmp_path_factory.mktemp("installed") / "env")


@pytest.fixture(scope="session")
def run_page(installed: Installed) -> Callable[[Path, Path], str]:
    """run_page(page, folder): everything in the page's code blocks, in order, in that folder; what it printed."""

    def run(page: Path, folder: Path) -> str:
        shutil.copy(ROOT / "examples" / "digits" / "make_digits.py", folder)
        result = installed.run("python", Path(__file__).with_name("page_runner.py"), page, cwd=folder)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result.stdout

    return run
