"""`torchrun … elbo train` as people start it: who speaks, what signals do, what survives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elbocli.files.checkpoint import checkpoints
from elbocli.files.dataset import Dataset

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Launched:
    """torchrun with two workers, in a session of its own. Its streams go to files, as orphans may outlive it.

    patch: code that the workers run before they become `elbo`. forked: the workers import nothing, which saves seconds, but
    don't know that the launcher is gone, nor hear what is sent to its session.
    """

    def __init__(self, folder: Path, *line: Any, launcher: tuple[str, ...] = (), patch: str = "", forked: bool = False):
        self.folder = folder
        program = ["program.py"] if patch else ["-m", "elbocli"]
        (folder / "program.py").write_text(f"{patch}\nfrom elbocli.main import main\nmain()\n")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *launcher]
        with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
            self.process = subprocess.Popen(
                [*torchrun, *program, *map(str, line)],
                cwd=folder,
                stdout=out,
                stderr=err,
                env={**ENVIRONMENT, "PYTHON_EXEC": sys.executable},
                start_new_session=True,
            )

    def workers(self) -> list[int]:
        """Process numbers of the workers that there are now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(child) for child in children.read_text().split()] if children.exists() else []

    def group(self) -> bool:
        """Whether any process of the session is left."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout: float = 120) -> int:
        """The launcher's exit code, when all that it started has ended too."""
        code = self.process.wait(timeout)
        until = time.monotonic() + timeout
        while self.group():
            assert time.monotonic() < until, "processes are left behind"
            time.sleep(0.05)
        return code

    @property
    def said(self) -> str:
        """On stderr, by elbo."""
        return "".join(line for line in (self.folder / "err").read_text().splitlines(True) if line.startswith("elbo"))

    def kill(self) -> None:
        """End everything."""
        if self.group():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Any]:
    started: list[Launched] = []

    def begin(*line: Any, **how: Any) -> Launched:
        started.append(Launched(tmp_path, *line, **how))
        return started[-1]

    yield begin
    for one in started:
        one.kill()


def until_it_logs(launched: Launched, run: Path) -> None:
    log = run / "metrics.jsonl"
    for _ in range(2400):
        if log.exists() and log.stat().st_size:
            return
        assert launched.process.poll() is None, (launched.folder / "err").read_text()
        time.sleep(0.05)
    pytest.fail("nothing was logged")


@pytest.mark.parametrize(
    ("number", "target"),
    [
        (signal.SIGTERM, "launcher"),
        pytest.param(signal.SIGINT, "group", marks=pytest.mark.slow),
        (signal.SIGUSR1, "worker"),
    ],
)
def test_a_signal_to_anyone_saves_once_and_ends_all(
    number: signal.Signals, target: str, digits: Path, preset: Path, tmp_path: Path, launch: Any
) -> None:
    line = ("train", digits, "-o", "run", "--preset", preset, "--steps", 10**6, "--save-every", 10**6)
    launched = launch(*line, forked=target != "group")
    run = tmp_path / "run"
    until_it_logs(launched, run)
    if target == "group":
        os.killpg(launched.process.pid, number)
    else:
        os.kill(launched.process.pid if target == "launcher" else launched.workers()[-1], number)
    assert launched.wait() == 1
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert [path.name for path in checkpoints(run)] == [f"step-{status['step']:08d}"]
    last_words = [text for text in launched.said.splitlines() if ": saved step " in text]
    assert last_words == [
        f"elbo train: {number.name}: saved step {status['step']} of 1000000; the same command goes on from there"
    ]
    assert (tmp_path / "out").read_text() == ""


@pytest.mark.slow
def test_orphans_of_a_killed_launcher_save_and_the_same_command_waits_for_them(
    digits: Path, preset: Path, tmp_path: Path, launch: Any
) -> None:
    line = ("train", digits, "-o", "run", "--preset", preset, "--save-every", 10**6, "--schedule", "adaptive")
    launched = launch(*line, "--steps", 10**6)
    run = tmp_path / "run"
    until_it_logs(launched, run)
    launched.process.kill()
    launched.process.wait()
    again = launch(*line, "--steps", 10**6, "--time-limit", "1s")
    assert again.wait() == 0, (tmp_path / "err").read_text()
    assert "going on after step" in again.said
    assert "ended by its time limit" in again.said
    assert len([text for text in again.said.splitlines() if text.startswith("elbo train: run: ")]) == 2
    assert (tmp_path / "out").read_text() == "run\n"
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"


def test_mistakes_are_told_once(digits: Path, preset: Path, tmp_path: Path, launch: Any) -> None:
    launched = launch("train", tmp_path / "none.h5", "-o", "run", "--preset", preset, forked=True)
    assert launched.wait() == 1
    assert launched.said.count("no such dataset") == 1
    late = "import os, time; os.environ['RANK'] == '0' and time.sleep(2)"
    line = ("train", digits, "-o", "run", "--preset", preset, "--steps", "many")
    launched = launch(*line, patch=late, forked=True)
    assert launched.wait() == 1
    assert launched.said.count("many") == 1, "the others have waited for the first to say it"
    assert "elbocli/" not in (tmp_path / "err").read_text(), "a traceback of ours"


@pytest.mark.slow
def test_twenty_kills_of_workers_and_launchers_change_no_byte(
    digits: Path, preset: Path, tmp_path: Path, launch: Any
) -> None:
    """With --max-restarts the launcher starts the workers anew; when it is killed itself, the same command is given."""
    steps = 2500
    options = ("--preset", preset, "--steps", steps, "--save-every", 20, "--log-every", 10, "--schedule", "adaptive")
    assert launch("train", digits, "-o", "whole", *options).wait(400) == 0
    rng, kills, launchers = random.Random(3), 0, 0
    line, restarts = ("train", digits, "-o", "killed", *options), ("--max-restarts", "9")
    launched, seen, begun = launch(*line, launcher=restarts), set[int](), 0.0
    while kills < 20:
        if launched.process.poll() is not None:
            assert launched.process.returncode == -signal.SIGKILL, (tmp_path / "err").read_text()
            launched = launch(*line, launcher=restarts)
        fresh = [worker for worker in launched.workers() if worker not in seen]
        status = status_of(tmp_path / "killed")
        if len(fresh) < 2 or status.get("time", 0) <= begun or status["state"] != "running":
            time.sleep(0.05)
            continue
        time.sleep(1.2 * rng.random())
        seen |= set(fresh)
        if rng.random() < 0.4:
            launched.process.kill()
            launched.process.wait()
            launchers += 1
        else:
            os.kill(rng.choice(fresh), signal.SIGKILL)
        kills, begun = kills + 1, time.time()
    if launched.process.poll() is not None:
        launched = launch(*line, launcher=restarts)
    assert launched.wait(600) == 0, (tmp_path / "err").read_text()
    assert 3 < launchers < 17
    last = [checkpoints(tmp_path / run)[-1] for run in ("whole", "killed")]
    assert last[0].name == last[1].name == f"step-{steps:08d}"
    for name in ("model.safetensors", "ema-0.9.safetensors"):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes()
    logs = [(tmp_path / run / "losslog.jsonl").read_bytes() for run in ("whole", "killed")]
    assert logs[0] == logs[1]


def status_of(run: Path) -> dict[str, Any]:
    """What a run says of itself, nothing before it does."""
    path = run / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def rows(path: Path) -> int:
    """Images that are safe of a file in the making."""
    try:
        return int(json.loads(path.with_name(path.name + ".partial.json").read_text())["rows"])
    except FileNotFoundError:
        return 0


def until_more_is_safe(launched: Launched, path: Path, least: int) -> None:
    for _ in range(6000):
        if rows(path) >= least:
            return
        assert launched.process.poll() is None, (launched.folder / "err").read_text()
        time.sleep(0.01)
    pytest.fail("nothing was drawn")


LACKING = """
import os, torch
from elbocli.evaluate import extract as features
from elbocli.sample import draw as sample
from elbocli.train import loop
def lacking(*_):
    raise {error}("9 GiB")
if os.environ["RANK"] == "1":
    {what} = lacking
"""


@pytest.mark.parametrize(
    ("verb", "what", "error"),
    [
        ("train", "loop.update", "torch.OutOfMemoryError"),
        pytest.param("sample", "sample.draw", "torch.OutOfMemoryError", marks=pytest.mark.slow),
        pytest.param("eval", "features._features_of", "MemoryError", marks=pytest.mark.slow),
    ],
)
def test_a_process_out_of_memory_says_so_and_which_it_is(
    verb: str, what: str, error: str, digits: Path, preset: Path, trained: Path, launch: Any
) -> None:
    line = {
        "train": ("train", digits, "-o", "run", "--preset", preset),
        "sample": ("sample", trained, "-n", 8, "--steps", 2, "-o", "x.npy"),
        "eval": ("eval", digits, "--ref", digits, "--extractor", "elbo-tiny"),
    }[verb]
    launched = launch(*line, patch=LACKING.format(what=what, error=error), forked=True)
    assert launched.wait() == 1
    assert f"elbo {verb}: error: rank 1: out of memory (9 GiB); do less at a time" in launched.said


LEFT = """
import os, time
from pathlib import Path
from elbocli.errors import DataError
from elbocli.evaluate import scoring as evaluate
whole, siblings = evaluate.scored, Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children")
def scored(*given):
    until = time.monotonic() + 30
    while len(siblings.read_text().split()) > 1:
        assert time.monotonic() < until, "the other process waits"
        time.sleep(0.05)
    time.sleep(1)
    if "is" in given[3].metrics:
        raise DataError("the disk is on fire")
    return whole(*given)
evaluate.scored = scored
"""


@pytest.mark.slow
def test_nobody_waits_for_the_scores_of_the_first_process(digits: Path, tmp_path: Path, launch: Any) -> None:
    """However long they take, for several samples too; and what goes wrong is still told."""
    images = Dataset(digits).batch(np.arange(200))
    np.save(tmp_path / "a.npy", images[:100])
    np.save(tmp_path / "b.npy", images[100:])
    line = ("eval", "a.npy", "b.npy", "--ref", digits, "--extractor", "elbo-tiny", "--metrics")
    launched = launch(*line, "fid", patch=LEFT)
    assert launched.wait() == 0, (tmp_path / "err").read_text()
    assert len(json.loads((tmp_path / "out").read_text())["repeats"]) == 2
    launched = launch(*line, "is", patch=LEFT)
    assert launched.wait() == 1 and (tmp_path / "out").read_text() == ""
    assert [text for text in launched.said.splitlines() if ": error: " in text] == [
        "elbo eval: error: the disk is on fire"
    ]


@pytest.mark.slow
def test_samples_go_on_after_a_killed_launcher_and_are_those_of_one_process(
    elbo: Any, trained: Path, tmp_path: Path, launch: Any
) -> None:
    line = ("sample", trained, "-n", 400, "--steps", 10, "--batch", 5, "-o", "x.h5")
    launched = launch(*line)
    until_more_is_safe(launched, tmp_path / "x.h5", 10)
    launched.process.kill()
    launched.process.wait()
    again = launch(*line)
    assert again.wait() == 0, (tmp_path / "err").read_text()
    said = [text for text in again.said.splitlines() if text.startswith("elbo sample: ")]
    assert len(said) == 2 and "2 processes; going on after" in said[0], "the first process alone speaks, in one voice"
    assert (tmp_path / "out").read_text() == ""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert elbo(*line, cwd=elsewhere).returncode == 0
    assert (tmp_path / "x.h5").read_bytes() == (elsewhere / "x.h5").read_bytes()


@pytest.mark.slow
def test_ten_kills_of_sampling_workers_and_launchers_change_no_byte(
    elbo: Any, trained: Path, tmp_path: Path, launch: Any
) -> None:
    line = ("sample", trained, "-n", 3000, "--steps", 10, "--batch", 5, "-o", "x.h5")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert elbo(*line, cwd=elsewhere).returncode == 0
    rng, out, launchers = random.Random(5), tmp_path / "x.h5", 0
    for kill in range(10):
        launched = launch(*line)
        until_more_is_safe(launched, out, rows(out) + rng.randint(1, 200))
        if kill % 3 == 0:
            launched.process.kill()
            launched.process.wait()
            launchers += 1
        else:
            os.kill(rng.choice(launched.workers()), signal.SIGKILL)
            launched.wait()
        assert not out.exists()
    assert launch(*line).wait(300) == 0, (tmp_path / "err").read_text()
    assert launchers == 4 and out.read_bytes() == (elsewhere / "x.h5").read_bytes()
    assert [path.name for path in tmp_path.glob("*x.h5*")] == ["x.h5"]
