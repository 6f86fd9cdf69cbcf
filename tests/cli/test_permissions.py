"""Files and folders that an ordinary user may not read, search or write, and few that may be open: a sentence, nothing half made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from short_ids import short

SCORE = "--extractor elbo-tiny --metrics fid"
FEW = "-n 2 --steps 2"
READ = [
    ("prep {0} x.h5", "images"),
    ("prep {0} x.h5", "images/0"),
    ("prep {0} x.h5", "images/0/0.png"),
    ("prep {0} x.h5", "data.h5"),
    ("merge x.h5 {0}", "data.h5"),
    ("train {0} -o x --preset {preset}", "data.h5"),
    ("train {data} -o x --preset {0}", "own.yaml"),
    ("train {data} -o x --config {0}", "own.yaml"),
    ("train {data} -o x --preset {preset} --schedule {0}", "schedule.yaml"),
    ("train {data} -o x --preset {preset} --val {0}", "data.h5"),
    ("train {data} -o x --preset {preset} --plugin {0}", "own.py"),
    ("train {data} -o {0} --steps 44", "run"),
    ("train {data} -o {0} --steps 44", "run/config.yaml"),
    ("train {data} -o {0} --steps 44", "run/.lock"),
    ("train {data} -o {0} --steps 44", "run/checkpoints"),
    ("train {data} -o {0} --steps 44", "run/checkpoints/step-00000040"),
    ("train {data} -o {0} --steps 44", "run/checkpoints/step-00000040/state.pt"),
    ("adapt {0}", "run"),
    ("adapt {0}", "run/losslog.jsonl"),
    ("sample {0} -o x.npy " + FEW, "run"),
    ("sample {0} -o x.npy " + FEW, "run/checkpoints"),
    ("sample {run} -o x.npy --ema {0} " + FEW, "average.safetensors"),
    ("sample {run} -o x.npy --guidance 2 --guide {0} " + FEW, "run/checkpoints/step-00000040/meta.json"),
    ("bound {0} -n 4 --draws 2", "run/checkpoints"),
    ("bound {run} {0} -n 4 --draws 2", "data.h5"),
    ("ema {0} --std .1 -o x.safetensors", "run/snapshots"),
    ("ema {0} --std .1 -o x.safetensors", "run/config.yaml"),
    ("optimum {0} -n 4", "data.h5"),
    ("optimum --like {0} -n 4", "run/config.yaml"),
    ("adapt --data-only {0}", "optimum.json"),
    ("compare {0} {scores}", "scores.json"),
    ("compare {scores} {0}", "scores.json"),
    ("compare {0} {0} --ref {0}", "features.safetensors"),
    ("info {0}", "run"),
    ("info {0}", "data.h5"),
    ("info {0} --verify", "run/checkpoints/step-00000040/model.safetensors"),
    ("info {0} --grid x.png", "pictures"),
    ("report {0} -o x.html", "run"),
    ("report {run} {0} -o x.html", "run/config.yaml"),
    ("report {run} --samples {0} -o x.html", "pictures"),
    ("eval {0} --ref {data} " + SCORE, "pictures"),
    ("eval {data} --ref {0} " + SCORE, "features.safetensors"),
    ("weights show sigmoid --schedule {0}", "schedule.yaml"),
    ("presets show {0}", "own.yaml"),
]
"""Command lines, and what of their input can't be reached."""
WRITE = [
    "prep {images} {0}/x.h5",
    "merge {0}/x.h5 {data}",
    "train {data} -o {0}/x --preset {preset} --steps 2",
    "adapt {run} -o {0}/x.yaml",
    "adapt {run} --plot {0}/x.svg",
    "sample {run} -o {0}/x.npz " + FEW,
    "sample {run} -o {0}/x " + FEW,
    "bound {run} -n 4 --draws 2 --curve {0}/x.tsv",
    "ema {run} --std .1 -o {0}/x.safetensors",
    "eval {data} --ref {data} --card {0}/x.md " + SCORE,
    "eval {data} --ref {data} --save-features {0}/x.safetensors " + SCORE,
    "info {data} --grid {0}/x.png",
    "optimum {data} -n 4 -o {0}/x.json",
    "report {run} -o {0}/x.html",
    "weights plot sigmoid -o {0}/x.svg",
    "presets write digits {0}/x.yaml",
]
Elbo = Callable[..., Any]


@pytest.fixture(scope="module")
def all_there(
    elbo: Elbo, digits: Path, digits_folder: Path, preset: Path, scores: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(digits, folder / "data.h5")
    shutil.copy(preset, folder / "own.yaml")
    shutil.copy(scores, folder / "scores.json")
    (folder / "own.py").touch()
    for index, file in enumerate(sorted(digits_folder.rglob("*.png"))[:4]):
        target = folder / "images" / str(index % 2) / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    for line in (
        "train data.h5 -o run --preset own.yaml --snapshot-every 20",
        "adapt run -o schedule.yaml",
        "ema run --std .1 -o average.safetensors",
        "optimum data.h5 -n 4 -o optimum.json",
        "sample run -o pictures " + FEW,
        "eval data.h5 --ref data.h5 --save-features features.safetensors " + SCORE,
    ):
        done = elbo(*line.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def places(all_there: Path) -> dict[str, Path]:
    """The names that command lines have for its files."""
    return {name.partition(".")[0]: all_there / name for name in ("data.h5", "images", "run", "scores.json")} | {
        "preset": all_there / "own.yaml"
    }


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A folder to work in, whatever becomes of its parts."""
    (tmp_path / "work").mkdir()
    yield tmp_path / "work"
    subprocess.run(["chmod", "-R", "u+rwX", tmp_path], check=True)


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(done: Any, *words: bytes) -> None:
    """Check that a command ended with a sentence that says so."""
    said = done.stderr.splitlines()[-1]
    assert done.returncode in (1, 2) and b"Traceback" not in done.stderr, done
    assert b" error: " in said and any(word in said for word in words), said
    assert b"delete it" not in said and b"damaged" not in said, "what is kept from a user is no damage"


@pytest.mark.parametrize(("line", "victim"), READ, ids=lambda each: short(each.replace("{0}", "IN")))
def test_input_out_of_reach_is_told(
    line: str, victim: str, elbo: Elbo, all_there: Path, places: dict[str, Path], work: Path
) -> None:
    name = victim.partition("/")[0]
    (shutil.copytree if (all_there / name).is_dir() else shutil.copy)(all_there / name, work.parent / name)
    kept = work.parent / victim
    before, usual = contents(work.parent), kept.stat().st_mode
    for mode in (0, 0o444, 0o111) if kept.is_dir() else (0,):
        kept.chmod(mode)
        done = elbo(*line.format(work.parent / name, **places).split(), cwd=work, ordinary=True)
        kept.chmod(usual)
        if mode == 0o111 and done.returncode == 0:  # it needs no list of what is there
            continue
        refused(done, b"ermission denied", b"is not readable")
        assert contents(work.parent) == before


@pytest.mark.parametrize("line", WRITE, ids=lambda line: short(line.replace("{0}", "OUT"), 60))
def test_a_folder_that_may_not_be_written_gets_nothing(
    line: str, elbo: Elbo, places: dict[str, Path], work: Path
) -> None:
    for mode in (0o444, 0o555):
        work.chmod(mode)
        done = elbo(*line.format(work, **places).split(), cwd=work.parent, ordinary=True)
        work.chmod(0o755)
        refused(done, b"ermission denied")
        assert contents(work) == set()


@pytest.mark.parametrize("line", [WRITE[0], WRITE[2], WRITE[6], WRITE[12]], ids=lambda line: line.split()[0])
def test_a_folder_that_may_only_not_be_listed_is_written(
    line: str, elbo: Elbo, places: dict[str, Path], work: Path
) -> None:
    work.chmod(0o333)
    done = elbo(*line.format(work, **places).split(), cwd=work.parent, ordinary=True)
    work.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert len(list(work.iterdir())) == 1


@pytest.mark.parametrize("most", [16, 20, 40])
@pytest.mark.parametrize("line", [WRITE[0], WRITE[2], WRITE[7], WRITE[14]], ids=lambda line: line.split()[0])
def test_few_files_may_be_open(line: str, most: int, elbo: Elbo, places: dict[str, Path], work: Path) -> None:
    done = elbo(*line.format(work, **places).split(), cwd=work.parent, files=most)
    if done.returncode:
        refused(done, b"Too many open files")
    assert most < 40 or done.returncode == 0


@pytest.mark.parametrize("most", [6])
def test_a_process_of_its_own_says_so_too(most: int, places: dict[str, Path], work: Path) -> None:
    shell = f'ulimit -n {most}; exec "$0" -m elbocli "$@"'
    line = ["sh", "-c", shell, sys.executable, *WRITE[2].format(work, **places).split()]
    refused(subprocess.run(line, capture_output=True, timeout=120, check=False), b"Too many open files")
