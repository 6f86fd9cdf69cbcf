"""`elbo bound` as a user types it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import yaml
from torch import Tensor

from elbocli.core import loss
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.main import run


class Result(NamedTuple):
    """What a command line left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, read."""
        return json.loads(self.out)


Bound = Callable[..., Result]


@pytest.fixture
def bound(capsys: pytest.CaptureFixture[str]) -> Bound:
    """The command in this process: importing torch once is enough for all these lines."""

    def call(*line: Any) -> Result:
        code = run(["bound", *map(str, line)])
        return Result(code, *capsys.readouterr())

    return call


def test_the_bound_is_one_json_object(elbo: Any, trained: Path, digits: Path, tmp_path: Path) -> None:
    """In a process of its own, with everything it can write."""
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


def test_the_same_line_prints_the_same(bound: Bound, trained: Path) -> None:
    line = (trained, "-q", "-n", 20, "--draws", 2)
    first, second, other = bound(*line), bound(*line), bound(*line, "--seed", 1)
    assert first.out == second.out != other.out
    assert first.err == ""


def test_the_check_exits_0_when_both_sides_agree(bound: Bound, trained: Path) -> None:
    result = bound(trained, "--check", "-n", 100, "--weighting", "sigmoid:bias=2", "--weighting", "edm")
    assert result.code == 0, result.err
    assert result.json["agree"] and [c["monotone"] for c in result.json["checks"]] == [True, False]


def test_the_check_is_of_the_runs_own_weighting_unless_told(bound: Bound, trained: Path) -> None:
    result = bound(trained, "--check", "-n", 20, "-q")
    assert [c["weighting"] for c in result.json["checks"]] == ["sigmoid:bias=2"]


def test_the_check_exits_1_for_a_broken_loss(bound: Bound, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public mistake, injected into the training loss: no −dλ/dt."""
    whole = loss.step_coefficients

    def broken(logsnr: Tensor, weighting: Weighting, schedule: Schedule, *rest: Any) -> loss.StepCoefficients:
        c = whole(logsnr, weighting, schedule, *rest)
        return c._replace(loss_factor=c.loss_factor * schedule.density(logsnr).to(c.loss_factor))

    monkeypatch.setattr(loss, "step_coefficients", broken)
    result = bound(trained, "--check", "-n", 100)
    assert result.code == 1, result.err
    assert not result.json["agree"]
    assert abs(result.json["checks"][0]["difference_in_se"]) > 10


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--draws", 3], 2, "even"),
        (["--check", "--curve", "x.tsv"], 2, "--curve can't go with --check"),
        (["--weighting", "elbo"], 2, "--weighting can't go with the bound"),
        (["--check", "--weighting", "nope"], 2, "no weighting is called 'nope'"),
        (["--schedule", "fitted:nope"], 2, "no criterion is called 'nope'"),
        (["--schedule", "edm-sample"], 2, "not -10 to 10"),
        (["--target-se", "nan"], 2, "nan"),
        (["-n", 1], 2, "1"),
        (["--logsnr-min", 5, "--logsnr-max", 2], 2, "must rise"),
        (["--curve", "-"], 2, "standard output is for other results"),
        (["--check", "--weighting", "edm:mean=-200,std=0.1"], 2, "is zero, or not finite"),
        (["--plot", "x.bmp"], 2, "name a file that ends in .svg"),
    ],
)
def test_what_makes_no_sense_is_refused(
    bound: Bound,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[Any],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = bound(trained, *options)
    assert result.code == code
    assert words in result.err and "error: " in result.err and result.out == ""
    assert not any(tmp_path.iterdir())


def test_a_dataset_of_more_classes_is_refused(bound: Bound, trained: Path, tmp_path: Path) -> None:
    numpy.savez(tmp_path / "x.npz", arr_0=numpy.zeros((11, 8, 8, 1), numpy.uint8), arr_1=numpy.arange(11))
    assert run(["prep", "-q", str(tmp_path / "x.npz"), str(tmp_path / "x.h5")]) == 0
    result = bound(trained, tmp_path / "x.h5")
    assert result.code == 2 and result.out == ""
    assert "x.h5: (side, channels, classes) are (8, 1, 11); the run's are (8, 1, 10)" in result.err


def test_a_run_is_found_again_from_elsewhere(
    bound: Bound, trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained as `elbo train data.h5 -o run` in one folder, asked about from another."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "data.h5").write_bytes(digits.read_bytes())
    shutil.copytree(trained, work / "run")
    config = work / "run" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["data"] |= {"path": "data.h5", "from_run": "../data.h5"}
    config.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    result = bound(work / "run", "-n", 20, "--draws", 2, "-q")
    assert result.code == 0, result.err
    assert Path(result.json["dataset"]) == Path("work/data.h5")
