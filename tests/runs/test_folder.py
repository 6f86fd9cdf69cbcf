"""A run folder is claimed by one process, goes on after a kill, stays as it is once finished, and says how it stands."""

import json
import shutil
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import yaml

from elbocli.errors import UsageError
from elbocli.files.atomic import locked
from elbocli.files.dataset import Dataset
from elbocli.runs import folder as module
from elbocli.runs.folder import Status, claim, read_status
from elbocli.runs.settings import resolve

CLAIM = """
from contextlib import ExitStack
from elbocli.runs.config import read_config
from elbocli.files.dataset import Dataset
from elbocli.runs.folder import claim, record_start
from elbocli.runs.settings import resolve
resolved = resolve({"preset": sys.argv[2]}, Dataset(Path(sys.argv[1])))
folder = Path(sys.argv[3])
def work(out):
    with ExitStack() as stack:
        claim(out, resolved, stack, 0)
        record_start(out, resolved, "elbo train")
k = 0
while crashed(lambda: work(folder / str(k)), k):
    work(folder / str(k))
    assert read_config(folder / str(k)).settings.steps == 40
    assert sorted(path.name for path in (folder / str(k)).iterdir()) == [".lock", "config.yaml"]
    k += 1
print(k)
"""


@pytest.fixture
def resolved(digits, preset):
    return resolve({"preset": str(preset)}, Dataset(digits))


@pytest.mark.long
def test_a_claim_killed_at_any_moment_is_gone_on_with(crashes, digits, preset, tmp_path):
    assert int(crashes(CLAIM, digits, preset, tmp_path)) >= 6


@pytest.mark.parametrize("name", ["notes.txt", "config.yaml.1.tmp"])
def test_a_folder_that_holds_anything_else_is_no_new_run(name, resolved, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError), ExitStack() as stack:
        claim(tmp_path, resolved, stack, 0)
    assert (tmp_path / name).read_text() == "mine"


def content(run):
    """All files of a run but its lock."""
    files = (path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def status_of(run):
    return json.loads((run / "status.json").read_text())


def test_a_finished_run_stays_as_it_is(elbo, digits, preset, tmp_path):
    run = tmp_path / "run"
    first = ("train", digits, "-o", run, "--preset", preset, "--steps", 8, "--val-split", 20, "--val-every", 4)
    assert elbo(*first).returncode == 0
    before = content(run)
    copy = shutil.copy(digits, tmp_path / "copy.h5")
    for again in ([digits], [copy], ["--keep-last", 1], ["--steps", 8]):
        assert elbo("train", *again, "-o", run).returncode == 0 and content(run) == before
    refused = elbo("train", "-o", run, env={"ELBO_TRAIN_STEPS": "7"})
    assert refused.returncode == 2 and b"8 steps" in refused.stderr and content(run) == before
    for _ in range(2):  # the second finds nothing to do
        assert elbo("train", copy, "-o", run, "--steps", 12).returncode == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert [line.rpartition(" ")[2] for line in config["commands"]] == ["4", "12"]
    assert config["settings"]["steps"] == 12
    rows = (run / "validation.jsonl").read_bytes()
    assert rows.startswith(before["validation.jsonl"])
    assert [json.loads(line).get("step") for line in rows.splitlines()] == [None, 4, 8, 12]


@pytest.fixture
def short(elbo, digits, preset, tmp_path):
    """A run of 2 steps and the command that made it."""
    line = ("train", digits, "-o", tmp_path / "run", "--preset", preset, "--steps", 2)
    assert elbo(*line).returncode == 0
    return tmp_path / "run", line


def test_a_run_killed_after_its_last_checkpoint_is_done(elbo, short):
    run, line = short
    before = content(run)
    (run / "status.json").write_text(json.dumps(status_of(run) | {"state": "running", "step": 1, "saved": None}))
    assert elbo(*line).returncode == 0
    assert {key: status_of(run)[key] for key in ("state", "step", "saved")} == {"state": "done", "step": 2, "saved": 2}
    assert content(run) | {"status.json": b""} == before | {"status.json": b""}


def test_a_run_whose_checkpoints_are_gone_stays_as_it_is(elbo, short):
    run, line = short
    shutil.rmtree(run / "checkpoints")
    before = content(run)
    refused = elbo(*line)
    assert refused.returncode == 1 and content(run) == before


# How a run stands


@pytest.fixture
def held(resolved, tmp_path):
    """A run that this process holds."""
    with ExitStack() as stack:
        claim(tmp_path / "run", resolved, stack, 0)
        yield tmp_path / "run"


def test_a_status_is_read_as_it_was_written(held):
    status = Status(held, 100)
    status.write("failed", step=7, images=112, saved=5, message="no more disk")
    found = read_status(held)
    later = Status(held, 100).now
    assert (found.state, found.steps, found.message) == ("failed", 100, "no more disk")
    for each in (found, later):
        assert (each.step, each.images, each.saved) == (7, 112, 5)


def test_a_run_that_says_it_is_running_while_its_lock_is_free_is_dead_for_info_and_report(held, trained, elbo, tmp_path):
    Status(held, 10).write("running")
    assert read_status(held).state == "running"
    copy = shutil.copytree(trained, tmp_path / "copy")
    Status(copy, 10).write("running")
    found = json.loads(elbo("info", copy, "--json").stdout)
    assert found["state"] == "dead" and found["step"] == 40
    assert b">dead<" in elbo("report", copy).stdout
    Status(copy, 10).write("done")
    assert read_status(copy).state == "done"


@pytest.mark.usefixtures("nfs_locks")
def test_a_killed_run_goes_on_and_a_live_one_is_seen_on_nfs(elbo, short):
    run, line = short
    left = [run / "checkpoints" / ".step-00000002.7.tmp", run / ".status.json.7.tmp"]
    left[0].mkdir()
    left[1].touch()
    Status(run, 2).write("running")
    with locked(run / ".lock", "run"):
        assert read_status(run).state == "running"
    assert read_status(run).state == "dead"
    assert elbo(*line, "--steps", 3).returncode == 0 and status_of(run)["state"] == "done"
    assert not any(path.exists() for path in left)


@pytest.mark.usefixtures("no_locks")
def test_a_file_system_without_locks_is_a_warning(elbo, short):
    run, line = short
    result = elbo(*line, "--steps", 3)
    assert result.returncode == 0 and result.stderr.count(b"locks") <= 1
    Status(run, 3).write("running")
    assert read_status(run).state == "running"


def test_the_step_is_written_every_few_seconds(held, monkeypatch):
    clock = SimpleNamespace(now=0.0, time=lambda: 0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    status = Status(held, 100)
    written = []
    monkeypatch.setattr(module, "write_json", lambda path, content: written.append((content["state"], content["step"])))
    for step in range(1, 13):
        clock.now = step
        status.reached(step=step, images=16 * step)
    assert written == [("running", 5), ("running", 10)]
