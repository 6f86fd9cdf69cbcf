"""Ctrl-C, SIGTERM and SIGHUP at random moments of every command: the shell's code, no traceback, no litter, no work lost.

The slow test prints its table: pytest -m slow -s tests/cli/test_signals.py.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from signalled import end

from elbocli.files.checkpoint import checkpoints

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SCORE = "--extractor elbo-tiny --metrics fid,kid --kid-subset-size 50"
COMMANDS = {
    "adapt": "adapt {run} -o x.yaml --plot x.svg",
    "bound": "bound {run} -n 100 --draws 8 --curve x.tsv --plot x.png",
    "compare": "compare {scores} {scores}",
    "ema": "ema {run} --std .1 -o x.safetensors",
    "eval": f"eval {{data}} --ref {{data}} {SCORE} --card x.md --save-stats x.npz",
    "grid": "grid {run} --sampler heun --steps 16 -n 16 -o x.yaml",
    "info": "info {run} --verify",
    "info --grid": "info {data} --grid x.png",
    "presets": "presets list",
    "optimum": "optimum {data} -n 100 -o x.json --plot x.svg",
    "report": "report {run} {run} -o x.html",
    "sample -": "sample {run} -n 100 --steps 10",
    "weights plot": "weights plot -o x.pdf",
}
SAVING = {
    "import": "import {weights} x --plugin {plugin}",
    "merge": "merge x.h5 {data}",
    "prep": "prep {images} x.h5 --size 8 --channels 1",
    "sample": "sample {run} -n 100 --steps 10 --batch 10 -o x.npz",
    "sample pictures": "sample {run} -n 100 --steps 10 --batch 10 -o x",
    "train": "train {data} -o x --preset {preset} --steps 40 --snapshot-every 5",
}
"""Commands that go on with what they have when they are given again."""
ALL = {**COMMANDS, **SAVING}
HOW = ("importing", "at work", "done")
"""The state in which a signal found a command."""
Elbo = Callable[..., Any]


@pytest.fixture(scope="module")
def places(
    elbo: Elbo,
    digits: Path,
    digits_folder: Path,
    preset: Path,
    scores: Path,
    foreign: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The names that command lines have for files; `run` has snapshots."""
    run = tmp_path_factory.mktemp("snapshots") / "run"
    assert elbo("train", digits, "-o", run, "--preset", preset, "--snapshot-every", 10).returncode == 0
    return {"run": run, "data": digits, "images": digits_folder, "preset": preset, "scores": scores, **foreign}


def result(folder: Path) -> dict[str, bytes]:
    """The bytes by which what a saving command makes is known again."""
    runs = [folder / "x"] if (folder / "x" / "config.yaml").exists() else []
    files = [path for run in runs for path in checkpoints(run)[-1].glob("*.safetensors")] or folder.rglob("x*")
    return {path.name: path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def whole(elbo: Elbo, places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """By name of the command: what it makes when no signal comes."""
    found = {}
    for name, line in SAVING.items():
        folder = tmp_path_factory.mktemp("whole")
        assert elbo(*line.format(**places).split(), cwd=folder).returncode == 0
        found[name] = result(folder)
    return found


def check(name: str, signum: int, done: Any, folder: Path) -> str:
    """Check how a command ended, and what it left. Returns a word for it."""
    said = done.stderr.decode()
    if done.returncode == -signum:  # Python takes handlers down while it ends; a shell sees the same number
        assert done.stdout or list(folder.iterdir()), (name, signum, done)
    else:
        assert done.returncode in (0, 128 + signum), (name, signum, done)
    assert "Traceback" not in said and "error:" not in said and "Exception" not in said, said
    left = sorted(path.name for path in folder.iterdir())
    unfinished = [each for each in left if ".partial" in each]
    assert name in SAVING or not unfinished, (name, left)
    return "done" if done.returncode <= 0 else "at work" if said else "importing"


def again(name: str, elbo: Elbo, places: dict[str, Path], folder: Path, whole: dict[str, dict[str, bytes]]) -> None:
    """Check that the same command ends the work, to the same bytes."""
    done = elbo(*SAVING[name].format(**places).split(), cwd=folder)
    assert done.returncode == 0 or b"already exists" in done.stderr, done
    assert result(folder) == whole[name], name
    assert not [path for path in folder.iterdir() if path.name != "x" and path.suffix not in (".h5", ".npz")]


def in_process(line: list[str], folder: Path, signum: int, after: float) -> Any:
    """A command in a process of its own, which imports all that it needs itself."""
    command = [sys.executable, "-m", "elbocli", *line]
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, **streams) as process:
        threading.Thread(target=end, args=(process.pid, signum, after)).start()
        output, said = process.communicate(timeout=240)
    return subprocess.CompletedProcess(command, process.returncode, output, said)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_a_signal_at_some_moment(
    name: str,
    signum: int,
    elbo: Elbo,
    places: dict[str, Path],
    whole: dict[str, dict[str, bytes]],
    tmp_path: Path,
) -> None:
    after = random.Random(f"{name} {signum}").uniform(0, 0.5)
    done = elbo(*ALL[name].format(**places).split(), cwd=tmp_path, ended=(signum, after))
    check(name, signum, done, tmp_path)
    if name in SAVING:
        again(name, elbo, places, tmp_path, whole)


@pytest.mark.slow
def test_signals_at_many_moments(
    elbo: Elbo, places: dict[str, Path], whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    draw = random.Random(int(os.environ.get("SEED", "0")))
    times, own = int(os.environ.get("TIMES", "12")), int(os.environ.get("OWN", "2"))
    table: Counter[tuple[str, str, str]] = Counter()
    for name in ALL:
        for signum in SIGNALS:
            for index in range(times + own):
                folder = tmp_path / "work"
                folder.mkdir()
                line = ALL[name].format(**places).split()
                after = draw.uniform(0, 2) * draw.choice([0.1, 0.4, 1])
                if index < times:
                    done = elbo(*line, cwd=folder, ended=(signum, after))
                else:
                    done = in_process(line, folder, signum, after)
                table[name, signum.name, check(name, signum, done, folder)] += 1
                if name in SAVING:
                    again(name, elbo, places, folder, whole)
                shutil.rmtree(folder)
    assert sum(table.values()) == len(ALL) * len(SIGNALS) * (times + own)
    for name in ALL:
        cells = [
            " ".join(
                f"{each.name}: " + ", ".join(f"{table[name, each.name, how]} {how}" for how in HOW) for each in SIGNALS
            )
        ]
        print(f"{name:16}", *cells)
