"""The learned weighting in training: its checkpoints, its log, several processes, and what the commands say of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elbocli.core.adaptive import AdaptiveSchedule, bin_edges, bin_middles
from elbocli.core.schedule import parse_schedule
from elbocli.files.checkpoint import latest
from elbocli.files.schedule_file import read_table
from elbocli.run.open import open_run, weighting_of_run

GROUP = Path(__file__).parents[1] / "group.py"
LOW, HIGH = -10.0, 10.0
MIDDLE = bin_middles(bin_edges(LOW, HIGH))
OPTIONS = ("--weighting", "uncertainty", "--schedule", "edm2-img512", "--val-split", 20, "--val-every", 320)


def lines(run: Path, name: str = "losslog.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def succeeded(done: Any) -> Any:
    assert done.returncode == 0, done.stderr.decode()
    return done


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, preset: Path, elbo: Callable[..., Any]
) -> tuple[Path, Path]:
    """A run of 40 steps; and the same, ended as if by a kill after step 23 and gone on with."""
    folder = tmp_path_factory.mktemp("learned")
    whole, pieces = folder / "whole", folder / "pieces"
    said = succeeded(elbo("train", digits, "-o", whole, "--preset", preset, *OPTIONS, "--save-every", 7, "--keep", 9))
    assert b"(learned, not monotone)" in said.stderr
    shutil.copytree(whole, pieces)
    for step in (28, 35, 40):
        shutil.rmtree(pieces / "checkpoints" / f"step-{step:08d}")
    said = succeeded(elbo("train", "-o", pieces))
    assert b"going on after step 21" in said.stderr
    return whole, pieces


def test_a_run_that_goes_on_is_the_same_to_the_last_bit(runs: tuple[Path, Path]) -> None:
    found = [latest(run) for run in runs]
    assert found[0] is not None and found[1] is not None and found[0].step == found[1].step == 40
    for name in found[0].meta.files:
        if name.endswith(".safetensors"):
            assert (found[0].path / name).read_bytes() == (found[1].path / name).read_bytes(), name
    for log in ("losslog.jsonl", "validation.jsonl"):
        assert (runs[0] / log).read_bytes() == (runs[1] / log).read_bytes()
    assert torch.equal(found[0].state()["online"], found[1].state()["online"])


def test_the_log_says_the_weighting_of_its_steps_and_the_same_follows_from_its_errors(runs: tuple[Path, Path]) -> None:
    head, *rows = lines(runs[0])
    assert head["weighting"] == "uncertainty" and [row["step"] for row in rows] == [*range(5, 41, 5)]
    _, over_time = weighting_of_run(runs[0])
    assert [each.step for each in over_time] == [0, *range(5, 41, 5)]
    for row, before in zip(rows, over_time):
        assert row["weight"] == before.weighting(MIDDLE).tolist(), row["step"]
    # The checkpoint holds what was learned, and what is opened has it.
    online = AdaptiveSchedule(bin_edges(LOW, HIGH))
    for row in rows:
        online.update(torch.tensor([row["count"], row["sum"], row["sumsq"]], dtype=torch.float64))
    trained = open_run(runs[0], torch.device("cpu"))
    assert torch.equal(trained.checkpoint.state()["online"], online.state)
    assert torch.equal(trained.weighting()(MIDDLE), over_time[-1].weighting(MIDDLE))
    density = parse_schedule("edm2-img512", LOW, HIGH).density(MIDDLE)
    assert torch.allclose(trained.weighting()(MIDDLE), density / online.moments().smoothed.mean)


def test_a_fixed_weighting_is_not_logged_and_does_not_change(trained: Path) -> None:
    assert all("weight" not in row for row in lines(trained))
    _, (found,) = weighting_of_run(trained)
    assert found.json()["monotone"] and found.weighting.spec == "sigmoid:bias=2"


def test_check_gives_the_verdict_over_time_and_show_and_plot_the_last(
    runs: tuple[Path, Path], elbo: Callable[..., Any], tmp_path: Path
) -> None:
    done = elbo("weights", "check", runs[0], "--json")
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert said["weighting"] == "uncertainty" and said["schedule"] == "edm:mean=-0.4,std=1" and not said["monotone"]
    assert [each["step"] for each in said["times"]] == [0, *range(5, 41, 5)]
    last = said["times"][-1]
    (start, end), *_ = last["rising"]
    assert start == LOW and -4 < end < 3 and 0.9 < last["rise"] <= 1.5
    text = elbo("weights", "check", runs[0])
    assert text.returncode == 1
    assert b"after step 40: rises for logsnr -10 to " in text.stdout and b"not an ELBO" in text.stdout
    shown = succeeded(elbo("weights", "show", runs[0], "--logsnr-min", LOW, "--logsnr-max", HIGH, "--points", 21))
    rows = np.array([row.split("\t") for row in shown.stdout.decode().splitlines()[1:]], float)
    expected = weighting_of_run(runs[0])[1][-1].weighting(torch.from_numpy(rows[:, 0]))
    np.testing.assert_array_equal(rows[:, 1], expected)
    succeeded(elbo("weights", "plot", runs[0], "edm", "-o", tmp_path / "w.svg"))
    assert "uncertainty" in (tmp_path / "w.svg").read_text()
    alone = elbo("weights", "show", "uncertainty")
    assert alone.returncode == 2 and b"name a run that trained with it" in alone.stderr


def test_two_runs_on_one_plot_are_told_apart(runs: tuple[Path, Path], elbo: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("long", "short"):
        shutil.copytree(runs[0], tmp_path / name)
    log = tmp_path / "short" / "losslog.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    rows = succeeded(elbo("weights", "plot", "long", "short/", "edm", cwd=tmp_path)).stdout.decode().splitlines()
    assert [row.split()[0] for row in rows[:3]] == ["uncertainty@long", "uncertainty@short", "edm"]
    assert rows[0].split()[1:] != rows[1].split()[1:]
    succeeded(elbo("weights", "plot", "long", "short", "-o", "w.svg", cwd=tmp_path))
    drawn = (tmp_path / "w.svg").read_text()
    assert "uncertainty@long" in drawn and "uncertainty@short" in drawn


def test_check_of_other_runs(trained: Path, elbo: Callable[..., Any]) -> None:
    said = succeeded(elbo("weights", "check", trained))
    assert b"never rises for logsnr -10 to 10" in said.stdout


def test_a_name_counts_before_a_folder(trained: Path, elbo: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("edm", "own"):
        shutil.copytree(trained, tmp_path / name)
    assert b"edm:mean=-1.2" in elbo("weights", "check", "edm", cwd=tmp_path).stdout
    assert b"never rises" in elbo("weights", "check", "own", cwd=tmp_path).stdout
    assert b"sigmoid:bias=2" in elbo("weights", "check", "./edm", cwd=tmp_path).stdout
    for line in (("check", "nope"), ("show", "nope"), ("plot", "nope"), ("check", "./nope")):
        said = elbo("weights", *line, cwd=tmp_path)
        assert said.returncode == 2 and b"nope" in said.stderr, said.stderr


def test_a_log_of_other_bins_or_damaged_is_refused(
    runs: tuple[Path, Path], elbo: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    log = tmp_path / "run" / "losslog.jsonl"
    log.write_text(log.read_text() + "{\n")
    said = elbo("weights", "check", tmp_path / "run")
    assert said.returncode == 1 and b"line 10: " in said.stderr
    log.unlink()
    assert [
        each["step"] for each in json.loads(elbo("weights", "check", "--json", tmp_path / "run").stdout)["times"]
    ] == [0]


def test_adapt_finds_the_runs_own_schedule_again(
    runs: tuple[Path, Path], trained: Path, elbo: Callable[..., Any], tmp_path: Path
) -> None:
    """EDM2's theorem as a user sees it, on a run that trained so, and on the errors of one that did not."""
    for run, own, more in ((runs[0], "edm2-img512", ()), (trained, "cosine", ("--weighting", "uncertainty"))):
        out = tmp_path / f"{run.name}.yaml"
        succeeded(elbo("adapt", run, *more, "--floor", 1e-6, "-o", out))
        knots = read_table(out)[0].level
        found, expected = read_table(out)[0].t(knots), parse_schedule(own, LOW, HIGH).t(knots)
        assert float((found - expected).abs().max()) < 0.005


def test_report_and_bound_say_what_was_learned(
    runs: tuple[Path, Path], elbo: Callable[..., Any], tmp_path: Path
) -> None:
    said = json.loads(succeeded(elbo("report", runs[0], "--json")).stdout)["objective"]
    assert said["weighting"] == "uncertainty" and len(said["over_time"]) == 9 and not said["monotone"]
    succeeded(elbo("report", runs[0], "-o", tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text()
    assert "After step 40: rises for logsnr -10 to" in page and "learned while training" in page
    done = succeeded(elbo("bound", "-q", runs[0], "--check", "-n", 20, "--draws", 4, "--batch", 80))
    (check,) = json.loads(done.stdout)["checks"]
    assert check["weighting"] == "uncertainty" and check["agree"]


def test_a_damaged_log_costs_a_report_no_more_than_what_it_told(
    runs: tuple[Path, Path], elbo: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    log = tmp_path / "run" / "losslog.jsonl"
    whole = log.read_text().splitlines()
    log.write_text("\n".join([*whole[:4], "{", *whole[5:]]) + "\n")
    found = json.loads(succeeded(elbo("report", "run", "--json", cwd=tmp_path)).stdout)
    assert found["objective"] is None and any("line 5: " in each for each in found["missing"])


def test_what_does_not_go_together_is_refused_before_training(
    digits: Path, preset: Path, elbo: Callable[..., Any], tmp_path: Path
) -> None:
    def said(*words: Any) -> str:
        done = elbo("train", digits, "-o", tmp_path / "x", "--preset", preset, "--weighting", *words, "--dry-run")
        assert done.returncode == 2, done.stderr
        return str(done.stderr.decode())

    assert "needs a schedule that stays" in said("uncertainty", "--schedule", "adaptive")
    assert "takes monotone alone" in said("uncertainty", "--shift", 1)
    assert "takes monotone alone" in said("uncertainty", "--bias", 1)
    plan = succeeded(
        elbo(
            "train",
            digits,
            "-o",
            tmp_path / "x",
            "--preset",
            preset,
            "--weighting",
            "uncertainty:monotone",
            "--dry-run",
        )
    )
    assert b"is learned while training and never rises" in plan.stdout


def test_two_processes_learn_what_one_does(digits: Path, preset: Path, tmp_path: Path) -> None:
    options = {
        "preset": str(preset),
        "network.dropout": 0.0,
        "weighting": "uncertainty:monotone",
        "steps": 12,
        "log_every": 4,
    }
    job = {"data": str(digits), "options": options}
    (tmp_path / "jobs.json").write_text(
        json.dumps([{**job, "size": size, "out": str(tmp_path / f"{size}")} for size in (1, 2)])
    )
    line = [sys.executable, str(GROUP), str(tmp_path / "jobs.json")]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert json.loads(done.stdout) == [[0], [0, 0]], done.stderr
    alone, shared = (lines(tmp_path / f"{size}")[1:] for size in (1, 2))
    for one, two in zip(alone, shared, strict=True):
        assert one["count"] == two["count"]
        np.testing.assert_allclose(one["weight"], two["weight"], rtol=1e-4)
        assert bool((np.diff(two["weight"]) <= 0).all())
    assert shared[0]["weight"] != shared[-1]["weight"]
