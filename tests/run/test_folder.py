"""The run folder: claimed, killed while it is claimed, moved and deleted while it is held."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from elbocli.errors import DataError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.run.folder import RunFolder, claim
from elbocli.run.settings import Resolved, resolve
from elbocli.run.status import Status, read_status

CLAIM = """
import random, time
from contextlib import ExitStack
from elbocli.files.checkpoint import read_config
from elbocli.files.dataset import Dataset
from elbocli.run.folder import claim
from elbocli.run.settings import resolve
resolved = resolve({"preset": sys.argv[2]}, Dataset(Path(sys.argv[1])))
folder = Path(sys.argv[3])
def work(out, at=lambda: None):
    with ExitStack() as stack:
        claim(out, resolved, stack, 0, {})
        at()
def goes_on(out):
    work(out)
    assert read_config(out).settings["steps"] == 40
    assert sorted(path.name for path in out.iterdir()) == [".lock", "config.yaml"], list(out.iterdir())
"""


@pytest.fixture
def resolved(digits: Path, preset: Path) -> Resolved:
    return resolve({"preset": str(preset)}, Dataset(digits))


@pytest.fixture
def held(resolved: Resolved, tmp_path: Path) -> Iterator[RunFolder]:
    with ExitStack() as stack:
        yield claim(tmp_path / "run", resolved, stack, 0, {})


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
    assert int(crashes(CLAIM + code, digits, preset, tmp_path)) > 10


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


@pytest.mark.parametrize("name", ["notes.txt", ".config.yaml.tmp", "config.yaml.1.tmp", ".hidden"])
def test_a_folder_that_holds_anything_else_is_no_new_run(name: str, resolved: Resolved, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a run"), ExitStack() as stack:
        claim(tmp_path, resolved, stack, 0, {})
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_is_found_wherever_it_is_moved_to(held: RunFolder, tmp_path: Path) -> None:
    assert held.find() == tmp_path / "run"
    (tmp_path / "run").rename(tmp_path / "other")
    (tmp_path / "run").mkdir()
    assert held.find() == tmp_path / "other"
    (tmp_path / "deep").mkdir()
    (tmp_path / "other").rename(tmp_path / "deep" / "run")
    assert held.find() == tmp_path / "deep" / "run"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_is_gone_is_said_to_be(held: RunFolder, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(DataError, match="run: the run's folder is gone"):
        held.find()
    (tmp_path / "run").mkdir()  # another one
    with pytest.raises(DataError, match="run: the run's folder is gone"):
        held.find()


def test_what_somebody_moves_away_while_it_is_written_is_written_again(held: RunFolder, tmp_path: Path) -> None:
    seen = []

    def write(run: Path) -> Path:
        seen.append(run)
        if len(seen) == 1:
            (tmp_path / "run").rename(tmp_path / "other")
            raise DataError("no such folder")
        return run

    assert held.write(write) == tmp_path / "other"
    assert seen == [tmp_path / "run", tmp_path / "other"]

    def full(run: Path) -> Path:
        seen.append(run)
        raise DataError("disk full")

    with pytest.raises(DataError, match="disk full"):
        held.write(full)
    assert len(seen) == 3


def test_a_config_that_somebody_deletes_is_there_again(held: RunFolder) -> None:
    before = store.read_config(held.path)
    (held.path / "config.yaml").unlink()
    held.find()
    assert store.read_config(held.path) == before


def test_the_status_goes_where_the_folder_is_and_nowhere_else(held: RunFolder, tmp_path: Path) -> None:
    status = Status(held, 10)
    status.write("running")
    (tmp_path / "run").rename(tmp_path / "other")
    (tmp_path / "run").mkdir()
    status.write("done")
    assert read_status(tmp_path / "other").state == "done"
    assert list((tmp_path / "run").iterdir()) == []
    shutil.rmtree(tmp_path / "other")
    status.write("failed")
    assert not (tmp_path / "other").exists()
