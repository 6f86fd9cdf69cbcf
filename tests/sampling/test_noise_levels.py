"""`elbo grid`: a schedule that `elbo sample` walks level by level, its errors, and lines that are refused."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import yaml
from harness import on_terminal

from elbocli.files.schedule_file import resolve_schedule
from elbocli.files.yaml_text import read_yaml
from elbocli.sampling import noise_levels as make

Elbo = Callable[..., CompletedProcess[bytes]]
FEW = ("-n", 4, "--steps", 4)


@pytest.fixture(scope="module")
def trained(elbo: Elbo, digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Train a small network for 20 steps; a walk evaluates the network hundreds of times."""
    path = tmp_path_factory.mktemp("grids") / "run"
    small = [word for each in ("channels=4", "levels=[1]", "attention=[]") for word in ("--set", f"network.{each}")]
    done = elbo("train", digits, "-o", path, "--preset", preset, "--steps", 20, *small)
    assert done.returncode == 0, done.stderr
    with patch.object(make, "CELLS", 16):  # a quarter; tests/core guards how exact the fine solution is
        yield path


@pytest.fixture
def works(elbo: Elbo, tmp_path: Path) -> Elbo:
    """A command line that must succeed."""

    def run(*words: Any) -> CompletedProcess[bytes]:
        done = elbo(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    return run


def largest_errors(told):
    """Name of a grid → largest error of its steps, from messages."""
    lines = re.findall(r"grid ([\w-]+): .* largest error (\S+) ", told.stderr.decode())
    return {name: float(error) for name, error in lines}


@pytest.mark.parametrize("sampler", ["heun", "heun:space=path", "dpmpp-2m"])
def test_sample_visits_the_levels_that_were_found(sampler, works, trained, tmp_path):
    errors = largest_errors(works("grid", trained, "--sampler", sampler, *FEW, "-o", "g.yaml"))
    assert set(errors) == {"solver", "cosine", "edm-sample"} and errors["solver"] < errors["cosine"]
    schedule = resolve_schedule(str(tmp_path / "g.yaml"), -10.0, 10.0, clip=True)
    works("sample", trained, "-n", 2, "--sampler", sampler, "--steps", 4, "--schedule", "g.yaml", "-o", "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        drawn = json.loads(file.attrs["samples"])
    assert (drawn["logsnr_min"], drawn["logsnr_max"]) == pytest.approx((schedule.logsnr_min, schedule.logsnr_max))
    assert f"{drawn['sampler']}, 4 steps" == read_yaml(tmp_path / "g.yaml")["made_for"]


@pytest.mark.long
def test_guides_are_those_of_sample_and_batches_change_nothing(works, trained):
    worse = min((trained / "checkpoints").iterdir())
    levels = {
        name: np.array(
            [knot["logsnr"] for knot in yaml.safe_load(works("grid", trained, *FEW, "--sampler", "ddim", *words).stdout)["knots"]]
        )
        for name, words in {
            "plain": (),
            "own": ("--guidance-scale", 3),
            "worse": ("--guidance-scale", 3, "--guide", worse),
            "parts": ("--guidance-scale", 3, "--guide", worse, "--batch-size", 3),
            "there": ("--guidance-scale", 3, "--guide", worse, "--guidance-interval", -9, -8),
        }.items()
    }
    assert len({str(levels[name]) for name in ("plain", "own", "worse", "there")}) == 4
    assert levels["parts"] == pytest.approx(levels["worse"], abs=1e-3)


@pytest.mark.long
def test_sample_warns_of_another_walk_than_the_grid_is_made_for(works, trained):
    heun = ("--sampler", "heun")
    guided = ("--guidance-scale", 2)
    for name, words in {"heun": heun, "guided": (*heun, *guided)}.items():
        works("grid", trained, *FEW, *words, "-o", f"{name}.yaml")
    for name, steps, words, warned in (
        ("heun", 4, heun, False),
        ("heun", 3, heun, True),
        ("heun", 4, (*heun, *guided), True),
        ("guided", 4, (*heun, *guided), False),
    ):
        walk = ("--schedule", f"{name}.yaml", "--steps", steps, *words)
        drawn = works("sample", trained, "-n", 1, "-o", "x.npy", "--overwrite", *walk)
        assert (b"heun.yaml: is made for" in drawn.stderr) == warned


@pytest.mark.parametrize(
    ("words", "code", "word"),
    [
        (("--sampler", "dpmpp-2m-sde"), 2, "noise"),
        (("--sampler", "euler-maruyama"), 2, "noise"),
        (("--sampler", "ddpm-learned"), 2, "noise"),
        (("--classes", "12"), 2, "of 10"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(words, code, word, elbo, trained):
    result = elbo("grid", trained, *FEW, *words)
    assert (result.returncode, result.stdout) == (code, b""), result.stderr
    assert b"Traceback" not in result.stderr and word in result.stderr.decode()


def test_a_terminal_gets_a_bar(trained, tmp_path):
    code, shown = on_terminal("grid", trained, *FEW, "--sampler", "ddim", "-o", "g.yaml", cwd=tmp_path)
    assert code == 0 and re.search(r"[1-9]\d*/\d+.*evaluation/s", shown), shown
