"""`elbo --version -v` says all that a report of a bug needs, also if something is missing or broken."""

import configparser
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from elbocli import main
from elbocli.version import __version__

SETUP = Path(__file__).parents[2] / "setup.cfg"


def declared() -> dict[str, bool]:
    """Packages that setup.cfg names, and whether elbo can't do without."""
    config = configparser.ConfigParser()
    config.read(SETUP)
    lines = {True: [config["options"]["install_requires"]], False: config["options.extras_require"].values()}
    names = {need: re.findall(r"^\s*([\w-]+)", "\n".join(lines[need]), re.MULTILINE) for need in (False, True)}
    return {name: need for need, found in names.items() for name in found}


@pytest.mark.parametrize("line", [("--version", "-v"), ("-v", "--version")], ids=" ".join)
def test_it_names_all_that_matters(elbo: Callable[..., Any], line: tuple[str, ...]) -> None:
    import torch

    result = elbo(*line)
    assert result.returncode == 0 and not result.stderr
    said = result.stdout.decode()
    assert said.startswith(f"elbo {__version__}\n") and "Python version" in said and torch.__version__ in said
    for name, needed in declared().items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            assert not needed
        else:
            assert f"\n{name} {version}\n".lower() in said.lower().replace("_", "-"), name


def test_a_broken_torch_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main.run(["--version", "-v"]) == 0
    said = capsys.readouterr().out
    assert "ModuleNotFoundError" in said and "numpy" in said


@pytest.mark.parametrize("line", [("-v",), ("-v", "train", "x.h5")], ids=" ".join)
def test_alone_it_is_refused_where_it_would_change_nothing(elbo: Callable[..., Any], line: tuple[str, ...]) -> None:
    result = elbo(*line)
    assert result.returncode == 2 and b"elbo COMMAND -v" in result.stderr
