"""The next start removes the files that a signal or a kill left half written."""

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


KILLED = [(name, signal.SIGKILL) for name in [*COMMANDS, *SAVING]] + [(name, signal.SIGTERM) for name in COMMANDS]


@pytest.mark.parametrize(("name", "signum"), KILLED)
def test_what_is_left_of_an_ended_command_is_gone_after_the_next_start(name: str, signum: int, run: Any) -> None:
    line = {**COMMANDS, **SAVING}[name]
    done, left = run(line, at_fsync=signum)
    out = next(word for word in line.split() if word.startswith("x"))
    if signum == signal.SIGKILL:
        assert (done.returncode == -signum and out not in left) or name == "train"
    else:
        assert (done.returncode, out in left) == (128 + signum, False)
        assert re.fullmatch(r"elbo [\w ]+: ended by SIGTERM", done.stderr.decode().splitlines()[-1])
    assert left and all(out in each for each in left), "the names say whose litter it is"
    done, left = run(line)
    assert (done.returncode, left) == (0, [out]), done.stderr
