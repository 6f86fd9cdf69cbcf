"""`elbo grid`: a schedule that `elbo sample` walks level by level, what it says, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elbocli.core.samplers import time_grid
from elbocli.files.schedule_file import resolve_schedule
from elbocli.files.yaml_text import read_yaml

Elbo = Callable[..., Any]
FEW = ("-n", 4, "--steps", 4)


def levels_of(path: Path, steps: int) -> list[float]:
    return time_grid(resolve_schedule(str(path), -10.0, 10.0, clip=True), steps)[:-1]


@pytest.mark.parametrize(
    "sampler", ["heun", "ddpm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddim", "dpmpp-2m"))]
)
def test_sample_visits_the_levels_that_were_found(sampler: str, elbo: Elbo, trained: Path, tmp_path: Path) -> None:
    made = elbo("grid", trained, "--sampler", sampler, *FEW, "-o", "g.yaml", "--report", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert levels_of(tmp_path / "g.yaml", 4) == pytest.approx(told["levels"], abs=1e-12)
    assert len(told["errors"]) == 4 and told["spread"] == pytest.approx(max(told["errors"]) / min(told["errors"]))
    assert (told["kind"], told["steps"], told["images"]) == ("solver", 4, None if sampler == "ddpm" else 4)
    assert set(told["grids"]) == {"solver", "cosine", "edm-sample", "entropic", "rescaled"}
    assert told["grids"]["solver"]["summed"] == pytest.approx(sum(told["errors"]))
    assert told["grids"]["solver"]["largest"] < told["grids"]["cosine"]["largest"]
    drawn = elbo(
        "sample",
        trained,
        "-n",
        2,
        "--sampler",
        sampler,
        "--steps",
        4,
        "--schedule",
        "g.yaml",
        "-o",
        "x.h5",
        cwd=tmp_path,
    )
    assert drawn.returncode == 0, drawn.stderr
    assert elbo("info", "x.h5", cwd=tmp_path).stdout.count(b"logsnr_m") == 2
    said = read_yaml(tmp_path / "g.yaml")
    assert said["grid"] == "solver" and said["made_for"].startswith(sampler) and said["made_for"].endswith("4 steps")


@pytest.mark.parametrize(("kind", "weighting"), [("entropic", "elbo"), ("rescaled", "fm-ot")])
def test_grids_of_entropy_are_adaptive_schedules(kind: str, weighting: str, elbo: Elbo, trained: Path) -> None:
    grid = elbo("grid", trained, "--kind", kind, *FEW, "--sampler", "ddim")
    fitted = elbo("adapt", trained, "--weighting", weighting)
    assert grid.returncode == fitted.returncode == 0, grid.stderr
    assert grid.stdout.split(b"knots:")[1] == fitted.stdout.split(b"knots:")[1]


def test_standard_error_tells_the_errors_of_grids(elbo: Elbo, trained: Path) -> None:
    made = elbo("grid", trained, *FEW, "--sampler", "heun")
    assert made.returncode == 0 and made.stdout.startswith(b"format: elbo-schedule")
    for word in (b"4 levels", b"solver: root", b"rescaled: root"):
        assert word in made.stderr
    again = elbo("grid", trained, *FEW, "--sampler", "heun", "-q")
    assert again.stdout == made.stdout and again.stderr == b""


def test_guidance_makes_another_grid(elbo: Elbo, trained: Path) -> None:
    plain, guided = (elbo("grid", trained, *FEW, "--sampler", "ddim", "-q", "--guidance", scale) for scale in (1, 3))
    assert plain.returncode == guided.returncode == 0, guided.stderr
    assert plain.stdout != guided.stdout


def test_guides_are_those_of_sample_and_batches_change_nothing(elbo: Elbo, trained: Path) -> None:
    worse = min((trained / "checkpoints").iterdir())
    options = (*FEW, "--sampler", "ddim", "--report", "--guidance", 3)
    found = {}
    for name, words in {
        "own": (),
        "worse": ("--guide", worse),
        "parts": ("--guide", worse, "--batch", 3),
        "there": ("--guide", worse, "--guidance-interval", -9, -8),
    }.items():
        made = elbo("grid", trained, *options, *words)
        assert made.returncode == 0, made.stderr
        found[name] = json.loads(made.stdout)
    levels = {name: told["levels"] for name, told in found.items()}
    assert levels["own"] != levels["worse"] != levels["there"]
    assert levels["parts"] == pytest.approx(levels["worse"], abs=1e-3)
    assert found["parts"]["evaluations"] == found["worse"]["evaluations"] > 100
    refused = elbo("grid", trained, *FEW, "--guide", worse)
    assert refused.returncode == 2 and b"a guide does nothing at --guidance 1" in refused.stderr


def test_of_another_walk_than_the_grid_is_made_for_sample_warns(elbo: Elbo, trained: Path, tmp_path: Path) -> None:
    def warnings(*words: Any) -> list[str]:
        drawn = elbo("sample", trained, "-n", 1, "-q", "-o", "x.npy", "--overwrite", *words, cwd=tmp_path)
        assert drawn.returncode == 0, drawn.stderr
        return [line for line in drawn.stderr.decode().splitlines() if "made for" in line]

    for name, words in {
        "heun": ("--sampler", "heun"),
        "guided": ("--sampler", "heun", "--guidance", 2),
        "log": ("--guidance", 2),
        "any": ("--kind", "entropic", "--sampler", "heun"),
    }.items():
        made = elbo("grid", trained, *FEW, *words, "-o", f"{name}.yaml", cwd=tmp_path)
        assert made.returncode == 0 and (b"knows no guidance" in made.stderr) == (name == "log"), made.stderr
    heun = ("--schedule", "heun.yaml", "--sampler", "heun")
    (line,) = warnings(*heun, "--steps", 3)
    assert "heun.yaml: is made for heun:" in line
    assert len(warnings("--schedule", "heun.yaml", "--sampler", "ddim", "--steps", 4)) == 1
    assert len(warnings(*heun, "--steps", 4, "--guidance", 2)) == 1 and not warnings(*heun, "--steps", 4)
    assert not warnings("--schedule", "guided.yaml", "--sampler", "heun", "--steps", 4, "--guidance", 2)
    assert not warnings("--schedule", "log.yaml", "--steps", 4, "--guidance", 3)
    assert not warnings("--schedule", "any.yaml", "--steps", 3) and not warnings("--steps", 3)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--steps", 1), 2, ">= 2"),
        (("--kind", "best"), 2, "'solver'"),
        (("--sampler", "dpmpp-2m-sde"), 2, "adds noise"),
        (("--sampler", "heun:s_churn=10"), 2, "adds noise"),
        (("--sampler", "hein"), 2, "heun"),
        (("--floor", 0), 2, "> 0"),
        (("--since", 1000), 1, ""),
        (("--classes", "12"), 2, "of 10"),
        (("--guidance-interval", 3, 1, "--guidance", 2), 2, "is empty"),
        (("--guide-weights", "nope", "--guidance", 2), 2, "nope"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[Any, ...], code: int, said: str, elbo: Elbo, trained: Path) -> None:
    result = elbo("grid", trained, "-n", 2, *words)
    assert (result.returncode, result.stdout) == (code, b""), result.stderr
    assert b"Traceback" not in result.stderr and said in result.stderr.decode()


def test_an_output_is_not_overwritten_and_no_run_is_refused(elbo: Elbo, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("mine")
    assert elbo("grid", trained, "-o", "g.yaml", cwd=tmp_path).returncode == 2
    assert (tmp_path / "g.yaml").read_text() == "mine"
    assert elbo("grid", tmp_path).returncode == 1


def test_without_a_log_there_are_grids_for_equations_alone(elbo: Elbo, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "losslog.jsonl").unlink()
    made = elbo("grid", run, *FEW, "--sampler", "ddim", "--report")
    assert made.returncode == 0, made.stderr
    assert set(json.loads(made.stdout)["grids"]) == {"solver", "cosine", "edm-sample"}
    for words in (["--sampler", "ddpm"], ["--kind", "entropic", "--sampler", "ddim"]):
        failed = elbo("grid", run, *FEW, *words)
        assert failed.returncode == 1 and b"losslog.jsonl" in failed.stderr
