"""Commands that read a run while it is trained, with --keep 1, snapshots and resumes: they find a whole checkpoint, always.

The slow test makes 500 reads, or TIMES, and prints a table: pytest -m slow -s tests/cli/test_beside_writer.py.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Zygote

READS = {
    "sample": "sample {run} -n 2 --steps 2 -o x.npz",
    "bound": "bound {run} -n 4 --draws 2",
    "ema": "ema {run} --std .1 -o x.safetensors",
    "verify": "info {run} --verify",
    "report": "report {run} -o x.html",
    "eval": "eval {run}/previews --ref {run}/previews --extractor elbo-tiny --metrics fid",
    "info": "info {run}",
}
NOTHING_YET = ("no checkpoint yet", "no snapshots of", "can't be made of", "no such images", "needs at least 2")
COMPLAINTS = ("damaged", "error:", "Traceback", "using the checkpoint before", "without this snapshot")
FIRST = ("report", "info")
"""Commands that have something to say of a run in its first steps."""
STEPS = 400
WRITE = (
    f"train {{data}} -o {{run}} --preset {{preset}} --steps {STEPS} --save-every 2 --keep 1 --snapshot-every 3 "
    "--log-every 1 --preview-every 50 --ema .9 --ema power:std=.05 --ema power:std=.15 --val-split 20 --val-every 1600"
)


class Writer:
    """Trains one run after the other, `run` being the one now; each is killed once and goes on."""

    def __init__(self, line: str, folder: Path, **places: Path):
        self.run, self._line, self._folder, self._places = folder / "0", line, folder, places
        self._zygote, self._ending = Zygote(), False
        self.troubles: list[Any] = []
        self._thread = threading.Thread(target=self._train)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._thread.join()
        self._zygote.close()
        self._zygote.process.wait()

    def _train(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ELBO_")}
        for number in itertools.count():
            if self._ending:
                return
            self.run, ended = self._folder / str(number // 2), None if number % 2 else (signal.SIGKILL, 4.0)
            line = self._line.format(run=self.run, **self._places).split()
            done = self._zygote.run(
                ["-m", "elbocli", *line], self._folder, environment | {"ELBO_DEVICE": "cpu"}, b"", 600, ended
            )
            if done.returncode not in (0, -signal.SIGKILL):
                self.troubles.append(done)
                return


@pytest.fixture
def writer(digits: Path, preset: Path, tmp_path: Path) -> Iterator[Writer]:
    (tmp_path / "runs").mkdir()
    with Writer(WRITE, tmp_path / "runs", data=digits, preset=preset) as writer:
        yield writer


def read(name: str, writer: Writer, elbo: Callable[..., Any], folder: Path) -> str:
    """Read the run that is trained now. Returns a word for how that ended, or what it said instead."""
    run = writer.run
    wanted = run / ("config.yaml" if name in FIRST else "checkpoints")
    while not wanted.exists():
        assert not writer.troubles, writer.troubles
        time.sleep(0.001)
    for path in folder.glob("x*"):
        path.unlink()
    done = elbo(*READS[name].format(run=run).split(), cwd=folder)
    said = done.stderr.decode().strip()
    assert not writer.troubles, writer.troubles
    page = (folder / "x.html").read_text() if (folder / "x.html").exists() else ""
    if done.returncode == 0 and not any(each in said + page for each in COMPLAINTS):
        return "read"
    if done.returncode == 1 and "Traceback" not in said and any(each in said for each in NOTHING_YET):
        return "nothing yet"
    return f"{done.returncode}: {said}"


def test_a_read_beside_a_writer(writer: Writer, elbo: Callable[..., Any], tmp_path: Path) -> None:
    found = {name: read(name, writer, elbo, tmp_path) for name in ("sample", "verify", "report")}
    assert set(found.values()) <= {"read", "nothing yet"}, found


@pytest.mark.slow
def test_500_reads_beside_a_writer(writer: Writer, elbo: Callable[..., Any], tmp_path: Path) -> None:
    times = int(os.environ.get("TIMES", "500"))
    table: dict[str, Counter[str]] = {name: Counter() for name in READS}
    for _, name in zip(range(times), itertools.cycle(READS)):
        table[name][read(name, writer, elbo, tmp_path)] += 1
    for name, counted in table.items():
        print(f"{name:8}", ", ".join(f"{count} {how}" for how, count in counted.most_common()))
    assert all(set(counted) <= {"read", "nothing yet"} for counted in table.values())
    assert all(counted["read"] for counted in table.values())  # of a run's first moments little can be read
