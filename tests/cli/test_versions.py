"""`elbo --version -v` says all that a report of a bug needs, also if something is missing or broken."""

import configparser
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from elbocli import __version__
from elbocli.cli import versions

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
    first, *lines = result.stdout.decode().splitlines()
    said = dict(re.split(r"\s{2,}", text, maxsplit=1) for text in lines)
    assert first == f"elbo {__version__}"
    assert said["python"].startswith(sys.version.split()[0]) and "cpu; auto is cpu" in said["devices"]
    assert {"system", "cores", "memory", "threads", "HDF5"} <= said.keys()
    assert (torch.version.cuda or "neither CUDA") in said["built with"]
    for name, needed in declared().items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            assert name not in said and not needed
        else:
            assert said[name].startswith(f"{version} ("), name


def test_what_is_missing_or_broken_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    find = metadata.version

    def version(name: str) -> str:
        if name in ("click", "timm"):
            raise metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(metadata, "version", version)
    for broken in ("torch", "h5py", "elbocli.runtime.device"):
        monkeypatch.setitem(sys.modules, broken, None)
    said = dict(versions.facts())
    assert said["click"] == "not installed (>=8.1)" and "timm" not in said
    for name in ("built with", "threads", "devices", "HDF5"):
        assert said[name].startswith("ModuleNotFoundError: "), said[name]
    assert said["memory"].endswith("MB may be taken") and said["numpy"].startswith(find("numpy"))


def test_where_elbo_is_not_installed_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    said = dict(versions.facts())
    assert "not installed" in said["packages"] and "python" in said


@pytest.mark.parametrize("line", [("-v",), ("-v", "train", "x.h5")], ids=" ".join)
def test_alone_it_is_refused_where_it_would_change_nothing(elbo: Callable[..., Any], line: tuple[str, ...]) -> None:
    result = elbo(*line)
    assert result.returncode == 2 and b"elbo COMMAND -v" in result.stderr
