"""`elbo bound` as a user types it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elbocli.cli.main import run

Elbo = Callable[..., Any]


def test_the_bound_is_one_json_object(elbo: Elbo, trained: Path, digits: Path, tmp_path: Path) -> None:
    curve, log, picture = (tmp_path / name for name in ("curve.tsv", "log.jsonl", "curve.svg"))
    result = elbo("bound", trained, digits, "-n", 40, "--draws", 4, "--curve", curve, "--log", log, "--plot", picture)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["n_images"] == 40 and found["draws_per_image"] == 4 and 0 < found["bpd_se"] < found["bpd"]
    assert found["weights"] == "ema-0.9" and found["checkpoint"] == "step-00000040" and found["conditional"]
    assert b"40 of 300 images" in result.stderr
    assert len(curve.read_text().splitlines()) == 101 and b"<svg" in picture.read_bytes()
    fitted = elbo("adapt", log, "--weighting", "elbo")
    assert fitted.returncode == 0 and b"elbo-schedule" in fitted.stdout


def test_the_same_line_prints_the_same(elbo: Elbo, trained: Path) -> None:
    line = ("bound", trained, "-q", "-n", 20, "--draws", 2)
    first, second, other = elbo(*line), elbo(*line), elbo(*line, "--seed", 1)
    assert first.stdout == second.stdout != other.stdout
    assert first.stderr == b""


def test_the_check_exits_0_when_both_sides_agree(elbo: Elbo, trained: Path) -> None:
    result = elbo("bound", trained, "--check", "-n", 100, "--weighting", "sigmoid:bias=2", "--weighting", "edm")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["agree"] and [c["monotone"] for c in found["checks"]] == [True, False]
    assert b"they agree; an ELBO of noise-augmented data" in result.stderr and b"signed sum" in result.stderr


def test_the_check_is_of_the_runs_own_weighting_unless_told(elbo: Elbo, trained: Path) -> None:
    result = elbo("bound", trained, "--check", "-n", 20, "-q")
    assert [c["weighting"] for c in json.loads(result.stdout)["checks"]] == ["sigmoid:bias=2"]


def test_the_check_exits_1_for_a_broken_loss(trained: Path) -> None:
    """The public mistake, injected into the training loss: no −dλ/dt."""
    code = f"""
import sys
from elbocli.core import objective
from elbocli.cli.main import run
whole = objective.weighted_loss
objective.weighted_loss = lambda error, log_weight, log_density: whole(error, log_weight, log_density * 0)
sys.exit(run(["bound", {str(trained)!r}, "--check", "-n", "100"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=120)
    assert result.returncode == 1, result.stderr
    assert not json.loads(result.stdout)["agree"] and b"DISAGREE" in result.stderr


def test_gradients_are_compared_and_the_best_schedule_written(elbo: Elbo, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.yaml"
    line = ("bound", trained, "--gradient-variance", "--batches", 16, "--weighting", "elbo", "-o", out)
    result = elbo(*line, "--schedule", "cosine", "--schedule", "fitted:gradient")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["weights"] == "model" and [r["schedule"] for r in found["gradient_variance"]] == [
        "cosine",
        "fitted:gradient",
    ]
    shown = elbo("weights", "show", "elbo", "--schedule", out)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--draws", 3], 2, "even"),
        (["--check", "--curve", "x.tsv"], 2, "--curve goes with the plain bound"),
        (["--batches", 16], 2, "--batches goes with --gradient-variance"),
        (["--check", "--gradient-variance"], 2, "ask one at a time"),
        (["--weighting", "elbo"], 2, "goes with --check or --gradient-variance"),
        (["--check", "--weighting", "nope"], 2, "no weighting is called 'nope'"),
        (["--schedule", "cosine", "--schedule", "edm"], 2, "one --schedule"),
        (["--schedule", "fitted:nope"], 2, "no criterion is called 'nope'"),
        (["--schedule", "fitted:gradient"], 2, "--gradient-variance"),
        (["--schedule", "edm-sample"], 2, "needs -10 to 10"),
        (["--target-se", "nan"], 2, "nan"),
        (["-n", 1], 2, "1"),
        (["--logsnr-min", 5, "--logsnr-max", 2], 2, "must rise"),
        (["--plot", "x.bmp"], 2, "unknown picture format"),
        (["--gradient-variance", "--batches", 20], 2, "multiple of 8"),
        (
            ["--gradient-variance", "--weighting", "elbo", "--weighting", "edm", "-o", "x.yaml"],
            2,
            "of one --weighting",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[Any],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bound", str(trained), *map(str, options)]) == code
    out, err = capsys.readouterr()
    assert words in err and "error: " in err and out == ""
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_refused(elbo: Elbo, tmp_path: Path, digits: Path) -> None:
    result = elbo("bound", tmp_path, digits)
    assert result.returncode == 1 and b"not a run" in result.stderr


def test_a_wider_range_is_warned_about(elbo: Elbo, trained: Path) -> None:
    result = elbo("bound", trained, "-n", 20, "--logsnr-max", 13.3)
    assert result.returncode == 0 and b"goes beyond the -10 to 10" in result.stderr
    assert json.loads(result.stdout)["logsnr_max"] == 13.3


def test_a_run_is_found_again_from_elsewhere(elbo: Elbo, trained: Path, digits: Path, tmp_path: Path) -> None:
    """Trained as `elbo train data.h5 -o run` in one folder, asked about from another."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "data.h5").write_bytes(digits.read_bytes())
    text = (trained / "config.yaml").read_text()

    shutil.copytree(trained, work / "run")
    (work / "run" / "config.yaml").write_text(text.replace(str(digits), "data.h5"))
    result = elbo("bound", work / "run", "-n", 20, "--draws", 2, "-q", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["dataset"] == str(work / "data.h5")
