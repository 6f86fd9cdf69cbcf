"""What is half written when a command is ended: a signal removes it, and after a kill the next start does."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMANDS = {
    "adapt": "adapt {run} -o x.yaml",
    "adapt plot": "adapt {run} --plot x.svg",
    "bound": "bound {run} -n 4 --draws 2 --curve x.tsv",
    "bound images": "bound {run} -n 4 --draws 2 --per-image x.tsv",
    "bound log": "bound {run} -n 4 --draws 2 --log x.jsonl",
    "bound plot": "bound {run} -n 4 --draws 2 --plot x.png",
    "ema": "ema {run} --std .1 -o x.safetensors",
    "eval card": "eval {data} --ref {data} --extractor elbo-tiny --metrics fid --card x.md",
    "eval statistics": "eval {data} --ref {data} --extractor elbo-tiny --metrics fid --save-stats x.npz",
    "eval features": "eval {data} --ref {data} --extractor elbo-tiny --metrics fid --save-features x.safetensors",
    "grid": "grid {run} -n 2 --steps 3 -o x.yaml",
    "info": "info {data} --grid x.png",
    "presets": "presets write digits x.yaml",
    "optimum": "optimum {data} -n 4 -o x.json",
    "optimum plot": "optimum {data} -n 4 --plot x.svg",
    "report": "report {run} -o x.html",
    "weights plot": "weights plot sigmoid -o x.pdf",
}
SAVING = {
    "merge": "merge x.h5 {data}",
    "prep": "prep {images} x.h5 --size 8",
    "sample grid": "sample {run} -n 2 --steps 2 -o x.png",
    "sample h5": "sample {run} -n 2 --steps 2 -o x.h5",
    "sample pictures": "sample {run} -n 2 --steps 2 -o x",
    "train": "train {data} -o x --preset {preset} --steps 2",
}
"""Commands that save their work, or end it first."""
Elbo = Callable[..., Any]


@pytest.fixture(scope="module")
def snapshots(elbo: Elbo, digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with snapshots."""
    out = tmp_path_factory.mktemp("snapshots") / "run"
    assert elbo("train", digits, "-o", out, "--preset", preset, "--snapshot-every", 10).returncode == 0
    return out


@pytest.fixture
def run(elbo: Elbo, snapshots: Path, digits: Path, digits_folder: Path, preset: Path, tmp_path: Path) -> Any:
    """run(line, **conditions): a command in a folder of its own, and the names there when it has ended."""
    work = tmp_path / "work"
    work.mkdir()

    def start(line: str, **conditions: Any) -> tuple[Any, list[str]]:
        places = {"run": snapshots, "data": digits, "images": digits_folder, "preset": preset}
        done = elbo(*line.format(**places).split(), cwd=work, **conditions)
        assert b"Traceback" not in done.stderr, done.stderr
        return done, sorted(path.name for path in work.iterdir())

    return start


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_leaves_nothing_half_written(name: str, run: Any) -> None:
    done, left = run(COMMANDS[name], at_fsync=signal.SIGTERM)
    assert (done.returncode, left) == (128 + signal.SIGTERM, [])
    assert re.fullmatch(r"elbo [\w ]+: ended by SIGTERM", done.stderr.decode().splitlines()[-1])


@pytest.mark.parametrize("name", [*COMMANDS, *SAVING])
def test_what_a_kill_leaves_is_gone_after_the_next_start(name: str, run: Any) -> None:
    line = {**COMMANDS, **SAVING}[name]
    done, left = run(line, at_fsync=signal.SIGKILL)
    out = next(word for word in line.split() if word.startswith("x"))
    assert (done.returncode == -signal.SIGKILL and out not in left) or name == "train"
    assert left and all(out in each for each in left), "the names say whose litter it is"
    done, left = run(line)
    assert (done.returncode, left) == (0, [out]), done.stderr


def test_closed_terminal_says_nothing_to_nobody(run: Any) -> None:
    done, left = run(COMMANDS["report"], at_fsync=signal.SIGHUP, closed=(1, 2))
    assert (done.returncode, left, done.stderr) == (128 + signal.SIGHUP, [], b"")
