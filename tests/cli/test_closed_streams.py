"""Standard streams that are closed at the start: each command works, or fails in a sentence, and no file gets what isn't its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PRINT = [
    "--help",
    "--version",
    "completion bash",
    "weights list",
    "weights show sigmoid",
    "weights check sigmoid",
    "weights plot",
    "presets list",
    "presets show digits",
    "presets write digits",
    "adapt {run}",
    "adapt {run} --report -o x.yaml",
    "bound {run} -n 4 --draws 2 --curve x.tsv",
    "compare {scores} {scores}",
    "compare {scores} {scores} --table",
    "ema {run} --std .1 -o x.safetensors",
    "grid {run} -n 2 --steps 3",
    "import list",
    "import {weights} x --plugin {plugin}",
    "optimum {data} -n 4 --plot x.svg",
    "eval {data} --ref {data} --extractor elbo-tiny --metrics fid --save-stats x.npz",
    "info {data}",
    "info {data} --grid x.png",
    "info {data} --grid -",
    "report {run}",
    "sample {run} -n 2 --steps 2",
    "train {data} -o x --preset {preset} --dry-run",
    "train {data} -o x --preset {preset} --steps 2",
]
"""Commands whose result, or a part of it, goes to standard output."""
WRITE = [
    "prep {images} x.h5 --size 8",
    "merge x.h5 {data}",
    "sample {run} -n 2 --steps 2 -o x.npz",
    "report {run} -o x.html",
    "adapt {run} -o x.yaml --plot x.svg",
    "weights plot -o x.svg",
    "presets write digits x.yaml",
]
"""Commands that print nothing."""
READ = ["adapt -", "eval - --ref {data} --extractor elbo-tiny --metrics fid"]
"""Commands that read standard input."""
OPEN, INPUT, RESULT, MESSAGES = (), (0,), (1,), (2,)
SAY_WHEN = {".html"}
"""Files that say when they were made."""
Elbo = Callable[..., Any]


@pytest.fixture
def run(
    elbo: Elbo,
    trained: Path,
    snapshots: Path,
    digits: Path,
    digits_folder: Path,
    preset: Path,
    foreign: dict[str, Path],
    scores: Path,
    tmp_path: Path,
) -> Any:
    """run(line, closed): the command in a folder of its own; its result, and the bytes of each file it wrote."""

    def start(line: str, closed: tuple[int, ...]) -> tuple[Any, dict[str, bytes]]:
        folder = tmp_path / "".join(map(str, closed)) / "work"
        folder.mkdir(parents=True)
        places = {"run": snapshots if line.startswith("ema") else trained, "data": digits, "images": digits_folder}
        places |= {**foreign, "preset": preset, "scores": scores}
        done = elbo(*line.format(**places).split(), cwd=folder, closed=closed)
        assert b"Traceback" not in done.stderr, done.stderr
        names = [path for path in folder.iterdir() if path.is_file()]
        return done, {each.name: b"" if each.suffix in SAY_WHEN else each.read_bytes() for each in names}

    return start


@pytest.fixture(scope="module")
def snapshots(elbo: Elbo, digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with snapshots."""
    out = tmp_path_factory.mktemp("snapshots") / "run"
    assert elbo("train", digits, "-o", out, "--preset", preset, "--snapshot-every", 10).returncode == 0
    return out


@pytest.mark.parametrize("line", PRINT)
def test_a_result_that_goes_nowhere_is_an_error(line: str, run: Any) -> None:
    expected, files = run(line, OPEN)
    assert expected.returncode == 0 and expected.stdout, expected.stderr
    done, made = run(line, RESULT)
    assert done.returncode == 1 and made == {}
    assert done.stderr.count(b"\n") == 1 and b"standard output: is closed" in done.stderr
    done, made = run(line, INPUT + MESSAGES)
    assert done.returncode == 0 and made == files
    assert done.stdout == expected.stdout or line.startswith("report")
    assert run(line, INPUT + RESULT + MESSAGES)[0].returncode == 1


@pytest.mark.parametrize("line", WRITE)
def test_a_command_that_prints_nothing_needs_no_stream(line: str, run: Any) -> None:
    expected, files = run(line, OPEN)
    assert expected.returncode == 0 and files, expected.stderr
    done, made = run(line, INPUT + RESULT + MESSAGES)
    assert (done.returncode, done.stdout, made) == (0, b"", files)


@pytest.mark.parametrize("line", READ)
def test_input_that_is_closed_is_refused(line: str, run: Any) -> None:
    done, _ = run(line, INPUT)
    assert (done.returncode, done.stdout) == (2, b"") and b"or pipe one in" in done.stderr
    done, _ = run(line, INPUT + MESSAGES)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_name_for_standard_output_is_no_way_around(elbo: Elbo, trained: Path, tmp_path: Path) -> None:
    done = elbo("sample", trained, "-n", 1, "--steps", 1, "-o", "/dev/stdout", cwd=tmp_path, closed=RESULT)
    assert done.returncode in (1, 2) and b" error: " in done.stderr


@pytest.mark.parametrize("closed", ["2>&-", "0>&- 1>&- 2>&-"])
def test_a_process_of_its_own_does_the_same(closed: str, tmp_path: Path) -> None:
    shell = f'"$0" -m elbocli weights check sigmoid {closed}'
    done = subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, timeout=60, check=False)
    assert done.returncode == (1 if "1" in closed else 0) and b"Traceback" not in done.stderr
    assert (b"never rises" in done.stdout) == ("1" not in closed)


def test_a_shell_that_asks_gets_no_traceback() -> None:
    asked = {**os.environ, "_ELBO_COMPLETE": "bash_complete", "COMP_WORDS": "elbo pr", "COMP_CWORD": "1"}
    line = ["sh", "-c", '"$0" -m elbocli >&-', sys.executable]
    done = subprocess.run(line, env=asked, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1 and b"Traceback" not in done.stderr
