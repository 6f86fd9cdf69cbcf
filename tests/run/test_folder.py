"""The run folder: claimed, killed while it is claimed; and what a start may change in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.run.folder import claim
from elbocli.run.settings import Resolved, resolve

CLAIM = """
import random, time
from contextlib import ExitStack
from elbocli.files.checkpoint import read_config
from elbocli.files.dataset import Dataset
from elbocli.run.folder import claim
from elbocli.run.folder import record_start
from elbocli.run.settings import resolve
resolved = resolve({"preset": sys.argv[2]}, Dataset(Path(sys.argv[1])))
folder = Path(sys.argv[3])
def work(out, at=lambda: None):
    with ExitStack() as stack:
        claim(out, resolved, stack, 0)
        record_start(out, resolved, "elbo train")
        at()
def goes_on(out):
    work(out)
    assert read_config(out).settings["steps"] == 40
    assert sorted(path.name for path in out.iterdir()) == [".lock", "config.yaml"], list(out.iterdir())
"""


@pytest.fixture
def resolved(digits: Path, preset: Path) -> Resolved:
    return resolve({"preset": str(preset)}, Dataset(digits))


def test_a_claim_killed_at_any_moment_is_gone_on_with(
    crashes: Callable[..., str], digits: Path, preset: Path, tmp_path: Path
) -> None:
    code = """
k = 0
while crashed(lambda: work(folder / str(k)), k):
    goes_on(folder / str(k))
    k += 1
print(k)
"""
    assert int(crashes(CLAIM + code, digits, preset, tmp_path)) >= 6


def test_sixty_claims_killed_at_random_moments_are_gone_on_with(
    crashes: Callable[..., str], digits: Path, preset: Path, tmp_path: Path
) -> None:
    code = """
random.seed(17)
early = 0
for trial in range(60):
    out = folder / str(trial)
    child = os.fork()
    if child == 0:
        work(out, lambda: time.sleep(1))
        os._exit(0)
    time.sleep(random.choice((0.003, 0.01, 0.03, 0.1)) * random.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    early += not (out / "config.yaml").exists()
    goes_on(out)
print(early)
"""
    assert int(crashes(CLAIM + code, digits, preset, tmp_path)) > 5


def test_a_folder_of_a_killed_claim_is_a_new_run(elbo: Any, digits: Path, preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".config.yaml.1.tmp"):
        (run / name).touch()
    result = elbo("train", digits, "-o", run, "--preset", preset, "--steps", 2)
    assert result.returncode == 0, result.stderr
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.parametrize("name", ["notes.txt", "config.yaml.1.tmp"])
def test_a_folder_that_holds_anything_else_is_no_new_run(name: str, resolved: Resolved, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a run"), ExitStack() as stack:
        claim(tmp_path, resolved, stack, 0)
    assert (tmp_path / name).read_text() == "mine"


def content(run: Path) -> dict[str, bytes]:
    """All files of a run but its lock."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.stat().st_size
    }


def test_a_finished_run_stays_as_it_is(elbo: Any, digits: Path, preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = ("train", digits, "-o", run, "--preset", preset, "--steps", 8, "--val-split", 20, "--val-every", 64)
    assert elbo(*first).returncode == 0
    before = content(run)
    copy = shutil.copy(digits, tmp_path / "copy.h5")
    (tmp_path / "more.yaml").write_text("keep: 5\n")
    for again in ([digits], [copy], ["--keep", 1], ["--config", tmp_path / "more.yaml"], ["--steps", 8]):
        assert elbo("train", *again, "-o", run).returncode == 0
        assert content(run) == before
    for fewer, variables in ((["--steps", 7], {}), ([], {"ELBO_TRAIN_STEPS": "7"})):
        refused = elbo("train", "-o", run, *fewer, env=variables)
        assert refused.returncode == 2 and b"done 8 steps" in refused.stderr, refused.stderr
        assert content(run) == before
    rows = (run / "validation.jsonl").read_bytes()
    for _ in range(2):  # the second finds nothing to do
        assert elbo("train", copy, "-o", run, "--steps", 12).returncode == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert [line.rpartition(" ")[2] for line in config["commands"]] == ["64", "12"]
    assert config["settings"]["steps"] == 12 and config["data"]["path"] == str(copy)
    assert (run / "validation.jsonl").read_bytes().startswith(rows)
    assert [json.loads(line).get("step") for line in (run / "validation.jsonl").read_text().splitlines()] == [
        None,
        4,
        8,
        12,
    ]
    assert status_of(run)["state"] == "done"


def status_of(run: Path) -> Any:
    return json.loads((run / "status.json").read_text())


def test_a_run_killed_after_its_last_checkpoint_is_done(elbo: Any, digits: Path, preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert elbo("train", digits, "-o", run, "--preset", preset, "--steps", 2).returncode == 0
    before = content(run)
    (run / "status.json").write_text(json.dumps(status_of(run) | {"state": "running", "step": 1, "saved": None}))
    assert elbo("train", "-o", run).returncode == 0
    assert {key: status_of(run)[key] for key in ("state", "step", "saved")} == {"state": "done", "step": 2, "saved": 2}
    assert content(run) | {"status.json": b""} == before | {"status.json": b""}


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/*"])
def test_a_run_whose_checkpoints_are_gone_is_refused_and_begins_anew_where_that_is_asked_for(
    gone: str, elbo: Any, digits: Path, preset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    line = ("train", digits, "-o", run, "--preset", preset, "--steps", 10)
    assert elbo(*line).returncode == 0
    for pattern in gone.split():
        for path in run.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = content(run)
    refused = elbo(*line)
    assert refused.returncode == 1 and b"checkpoints" in refused.stderr and b"--overwrite" in refused.stderr
    assert content(run) == before
    for _ in range(2):  # the same command continues what it began
        anew = elbo(*line, "--lr", 0.001, "--overwrite")
        assert anew.returncode == 0, anew.stderr
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["settings"]["lr"] == 0.001 and len(config["commands"]) == 1
    assert elbo(*line, "--seed", 1, "--overwrite").returncode == 2  # a run with checkpoints is never begun anew
