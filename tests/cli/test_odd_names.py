"""Names that are not UTF-8: every command works on the files themselves, and shows and stores their names escaped."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elbocli.files.checkpoint import latest
from elbocli.files.dataset import Dataset

ODD, SHOWN = "caf\udce9", "caf\\udce9"
Elbo = Callable[..., bytes]


@pytest.fixture
def well(elbo: Callable[..., Any], tmp_path: Path) -> Elbo:
    """A command line in the test's folder that must end well; what it prints."""

    def run(*line: Any) -> bytes:
        result = elbo(*line, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        output: bytes = result.stdout
        return output

    return run


@pytest.fixture
def odd_run(trained: Path, tmp_path: Path) -> str:
    """A run of that name."""
    shutil.copytree(trained, tmp_path / f"{ODD}-run")
    return f"{ODD}-run"


@pytest.mark.parametrize("store", ["raw", "png"])
def test_images_are_packed_and_merged(store: str, well: Elbo, digits_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_folder / "3", tmp_path / f"{ODD}-src" / ODD)
    image = min((tmp_path / f"{ODD}-src" / ODD).iterdir())
    image.rename(image.with_name(f"0{ODD}.png"))
    well("prep", f"{ODD}-src", f"{ODD}.h5", "--size", 8, "--channels", 1, "--store", store)
    well("merge", f"{ODD}-merged.h5", f"{ODD}.h5")
    for name in (f"{ODD}.h5", f"{ODD}-merged.h5"):
        data = Dataset(tmp_path / name)
        assert data.class_names == [SHOWN]
        assert sum(file.endswith(f"0{SHOWN}.png") for file in data.strings("files")) == 1
        assert SHOWN in data.attributes.command
        assert SHOWN.encode() in well("info", name) and well("info", "--verify", name)


def test_a_run_goes_on(well: Elbo, digits: Path, preset: Path, tmp_path: Path) -> None:
    shutil.copy(digits, tmp_path / f"{ODD}.h5")
    shutil.copy(preset, tmp_path / f"{ODD}.yaml")
    for run in (f"{ODD}-run", "run"):
        for steps in (5, 10):
            line = (f"{ODD}.h5", "-o", run, "--preset", f"{ODD}.yaml", "--steps", steps, "--snapshot-every", 5)
            assert well("train", *line) == os.fsencode(f"{run}\n")
    found, plain = (latest(tmp_path / run) for run in (f"{ODD}-run", "run"))
    assert found is not None and plain is not None and found.step == 10
    assert (found.path / "model.safetensors").read_bytes() == (plain.path / "model.safetensors").read_bytes()
    well("ema", f"{ODD}-run", "--std", 0.1, "-o", f"{ODD}.safetensors")
    well("info", "--verify", f"{ODD}.safetensors")
    well("sample", f"{ODD}-run", "--ema", f"{ODD}.safetensors", "-n", 4, "--steps", 2, "-o", "x.npy")


def test_tensorboard_refuses_such_a_name_in_a_sentence(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    result = elbo("train", digits, "-o", f"{ODD}-run", "--preset", preset, "--log-to", "tensorboard", cwd=tmp_path)
    assert result.returncode == 2 and b"whose name is not UTF-8; choose another -o" in result.stderr


def test_an_autoencoder_is_opened(well: Elbo, autoencoder: Path, digits_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(autoencoder, tmp_path / ODD)
    well("prep", digits_folder / "3", "x.h5", "--size", 16, "--latents", ODD, "--device", "cpu")
    assert SHOWN in Dataset(tmp_path / "x.h5", latents=True).attributes.command


@pytest.mark.parametrize("end", [".h5", ".npz", ".npy", ""])
def test_samples_are_drawn_and_scored(end: str, well: Elbo, odd_run: str, digits: Path, tmp_path: Path) -> None:
    out = f"{ODD}-drawn{end}"
    well("sample", odd_run, "-n", 30, "--steps", 2, "-o", out)
    if end:
        assert b"30" in well("info", out)
    line = ("--ref", digits, "--metrics", "fid", "--extractor", "elbo-tiny")
    saved = ("--save-features", f"{ODD}.safetensors", "--save-stats", f"{ODD}-stats.npz", "--card", f"{ODD}.md")
    found = json.loads(well("eval", out, *line, *saved))
    again = json.loads(well("eval", f"{ODD}.safetensors", "--ref", f"{ODD}-stats.npz", "--metrics", "fid"))
    assert found["samples"] == out.replace(ODD, SHOWN) and abs(again["frechet_distance[elbo-tiny]"]) < 1e-6
    assert SHOWN in (tmp_path / f"{ODD}.md").read_text()
    for name in (f"{ODD}.safetensors", f"{ODD}-stats.npz"):
        well("info", "--verify", name)


def test_results_are_compared(well: Elbo, scores: Path, tmp_path: Path) -> None:
    shutil.copy(scores, tmp_path / f"{ODD}.json")
    found = json.loads(well("compare", f"{ODD}.json", f"{ODD}.json"))
    assert found["first"] == found["others"][0]["file"] == f"{SHOWN}.json"
    assert SHOWN.encode() in well("compare", f"{ODD}.json", f"{ODD}.json", "--table")


def test_what_reads_a_run_reads_it(well: Elbo, odd_run: str, tmp_path: Path) -> None:
    well("bound", odd_run, "-n", 10, "--draws", 2)
    well("report", odd_run, "-o", f"{ODD}.html")
    assert f"<h1>{SHOWN}-run</h1>" in (tmp_path / f"{ODD}.html").read_text()
    well("info", "--verify", odd_run)
    well("adapt", odd_run, "-o", f"{ODD}.yaml")
    well("weights", "show", "sigmoid", "--schedule", f"{ODD}.yaml")
    well("sample", odd_run, "-n", 2, "--steps", 2, "--schedule", f"{ODD}.yaml", "-o", "x.npy")
