"""Training in a real terminal that is closed, and what nohup and a reader that goes away make of it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elbocli.files.checkpoint import checkpoints

STEPS = 4000
"""More than are ever done."""
LINE = [sys.executable, "-m", "elbocli"]


def in_terminal(line: list[Any], hears: bool = True) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command on a new terminal; the other end of it. hears: it is told when the terminal is closed."""
    ours, its = os.openpty()

    def control() -> None:
        if hears:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), its)
    process = subprocess.Popen([*map(str, line)], **streams, start_new_session=True, preexec_fn=control)
    os.close(its)
    return process, ours


def read_until(terminal: int, there: Callable[[], bool]) -> None:
    """Read what a command says until something is there."""
    os.set_blocking(terminal, False)
    until = time.monotonic() + 120
    while not there() and time.monotonic() < until:
        try:
            os.read(terminal, 1 << 16)
        except BlockingIOError:
            time.sleep(0.01)
    assert there()


def status_of(run: Path) -> Any:
    return json.loads((run / "status.json").read_text())


def trained(digits: Path, preset: Path, run: Path, steps: int) -> list[Any]:
    """The command line. It says something after each checkpoint."""
    options = f"--steps {steps} --save-every 20 --keep 999 -v".split()
    return [*LINE, "train", digits, "-o", run, "--preset", preset, *options]


def test_a_terminal_that_is_closed_loses_nothing(digits: Path, preset: Path, tmp_path: Path) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    process, terminal = in_terminal(trained(digits, preset, run, STEPS))
    read_until(terminal, lambda: bool(checkpoints(run)))
    os.close(terminal)
    assert process.wait(60) == 128 + signal.SIGHUP
    status = status_of(run)
    assert status["state"] == "interrupted" and "SIGHUP" in status["message"], status
    assert checkpoints(run)[-1].name == f"step-{status['step']:08d}" and status["step"] < STEPS
    end = status["step"] + 5
    for out in (run, straight):
        subprocess.run(
            [sys.executable, *map(str, trained(digits, preset, out, end)[1:])], check=True, capture_output=True
        )
    for name in ("model.safetensors", "ema-0.9.safetensors"):
        ends = [checkpoints(out)[-1] / name for out in (run, straight)]
        assert ends[0].read_bytes() == ends[1].read_bytes()
    assert (run / "losslog.jsonl").read_bytes() == (straight / "losslog.jsonl").read_bytes()


@pytest.mark.parametrize("hears", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_hangup_that_is_ignored_or_not_heard_ends_no_training(
    hears: bool, digits: Path, preset: Path, tmp_path: Path
) -> None:
    run, line = tmp_path / "run", trained(digits, preset, tmp_path / "run", 120)
    nohup = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    process, terminal = in_terminal([sys.executable, "-c", nohup, *line] if hears else line, hears)
    read_until(terminal, lambda: bool(checkpoints(run)))
    os.close(terminal)
    assert process.wait(60) == 1, "the run's path could not be printed"
    assert status_of(run)["state"] == "done" and status_of(run)["step"] == 120


def test_messages_that_nobody_reads_end_no_training(digits: Path, preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = [*map(str, trained(digits, preset, run, 120))]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None and process.stderr.readline()
    process.stderr.close()
    assert process.wait(60) == 0
    assert status_of(run)["state"] == "done"
