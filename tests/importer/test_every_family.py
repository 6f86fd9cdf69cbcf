"""A small checkpoint of each family goes through all commands, through the shell, and is trained further."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from import_chain import works
from peers import adm_unet, dit, edm2, edm_files, edm_unet

from elbocli.files.yaml_text import read_yaml
from elbocli.importer.formats import FORMATS

Elbo = Callable[..., CompletedProcess[bytes]]
GREY: dict[str, Any] = {"image_channels": 1, "levels": (1,), "classes": 10}
UNET: dict[str, Any] = {**GREY, "size": 8, "attention": ()}


def edm(path: Path) -> tuple[Any, ...]:
    edm_files.write_pickle(path, {"ema": edm_files.preconditioned(edm_unet.made(**UNET))})
    return ()


def adm(path: Path) -> tuple[Any, ...]:
    torch.save(adm_unet.made(**UNET, outputs=2), path)
    return ("--size", 8, "--attention", "heads=2")


def transformer(path: Path, **more: int) -> tuple[Any, ...]:
    torch.save(dit.made(channels=1, outputs=2, width=64, **more), path)
    return ()


def magnitudes(path: Path) -> tuple[Any, ...]:
    edm2.write_snapshot(path, edm2.made(**GREY))
    return ()


FAMILIES: dict[str, Callable[[Path], tuple[Any, ...]]] = {
    "edm": edm,
    "guided-diffusion": adm,
    "dit": transformer,
    "sit": lambda path: (*transformer(path), "--format", "sit"),
    "repa": lambda path: transformer(path, projectors=1),
    "edm2": magnitudes,
}


def test_every_format_goes_through_all_commands_here_or_in_a_test_of_its_own() -> None:
    assert set(FAMILIES) | {"diffusers", "program", "module"} == set(FORMATS)


@pytest.mark.parametrize(
    "name",
    # Each format has a test through the shell of its own.
    [pytest.param(name, marks=() if name == "dit" else pytest.mark.slow) for name in FAMILIES],
)
def test_a_small_one_works_on_every_command_and_is_trained_further(
    name: str, elbo: Elbo, digits: Path, tmp_path: Path
) -> None:
    said = FAMILIES[name](tmp_path / "w.pkl")
    result = elbo("import", "w.pkl", "run", *said, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"run\n"), result.stderr
    assert read_yaml(tmp_path / "run" / "config.yaml")["source"]["format"] == name
    assert works(elbo, tmp_path / "run", digits)["bpd"] > 0
    more = ("--weighting", "sigmoid", "--steps", 20, "--batch", 8, "--log-every", 1)
    result = elbo("train", digits, "--init", "run", "-o", "finer", *more, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_yaml(tmp_path / "finer" / "config.yaml")["init"]["weights"]
    assert elbo("sample", "finer", "-n", 2, "--steps", 2, "-o", "x.png", cwd=tmp_path).returncode == 0
