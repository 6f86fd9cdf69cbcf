"""Progress on a terminal of 80 columns, and the first word where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from elbocli.cli import progress_bar
from elbocli.cli.commands import Command
from elbocli.runtime.progress import Progress

LOOP = """
import time
from elbocli.cli.commands import Command
from elbocli.cli.progress_bar import show
from elbocli.runtime.progress import Progress
Command.path = "elbo train"
values = {"loss": 0.123456, "eps_mse": 0.0712, "lr": 2e-4, "grad_norm": 0.3123, "images_per_s": 1234.5}
def reports():
    yield Progress(199_990, 400_000, "step", "run: new run")
    for step in range(199_991, 200_004):
        time.sleep(0.12)
        then = "validating" if step == 199_996 else ""
        said = values if step % 4 == 0 else {"val_loss": 2.0} if step % 4 == 2 else {}
        yield Progress(step, 400_000, "step", values=said, then=then)
show(reports())
"""


def on_terminal(code: str, columns: int) -> list[str]:
    """Return the states of the line that a program shows on stderr."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=child)
    os.close(child)
    seen = b""
    while True:
        try:
            seen += os.read(parent, 4096)
        except OSError:
            break
    process.communicate(timeout=60)
    os.close(parent)
    assert process.returncode == 0, seen
    return [line for line in re.split(r"[\r\n]+", seen.decode()) if line.strip()]


@pytest.mark.parametrize(("columns", "whole"), [(80, False), (200, True)])
def test_the_bar_keeps_its_time_and_its_loss(columns: int, whole: bool) -> None:
    shown = [line for line in on_terminal(LOOP, columns) if "step/s" in line or "s/step" in line]
    last = shown[-1]
    assert all(len(line) <= columns for line in shown), shown
    assert re.search(r"\| 20000\d/400000 \[00:0\d<\d+:\d\d:\d\d, ", last), last
    assert "loss=0.1235" in last, "a validation's numbers push out no loss"
    assert last.rstrip().endswith("]")
    assert ["elbo train, validating:" in line for line in shown].count(True) in (1, 2) and "validating" not in last
    assert ("images_per_s=1234" in last) == ("grad_norm" in last) == whole


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reports: Iterator[Progress]) -> list[str]:
    monkeypatch.setattr(Command, "path", "elbo train")
    monkeypatch.setattr(Command, "quiet", False)
    monkeypatch.setattr(progress_bar, "FIRST_S", 0.1)
    progress_bar.show(reports)
    return capsys.readouterr().err.splitlines()


def test_a_slow_start_and_a_slow_preview_are_not_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reports() -> Iterator[Progress]:
        time.sleep(0.3)
        yield Progress(0, 400_000, "step", "run: new run")
        yield Progress(1, 400_000, "step", then="drawing a preview")
        time.sleep(0.3)

    lines = told(monkeypatch, capsys, reports())
    assert lines[0] == "elbo train: getting ready"
    assert lines[1] == "elbo train: run: new run"
    assert lines[-1] == "elbo train: step 1 of 400000 is done; drawing a preview"


def test_a_quick_loop_says_nothing_of_the_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reports() -> Iterator[Progress]:
        for done in range(4):
            yield Progress(done, 4, "step", then="validating")
            yield Progress(done, 4, "step")
        time.sleep(0.3)

    lines = told(monkeypatch, capsys, reports())
    assert not [line for line in lines if "ready" in line or "validating" in line]


def test_without_a_terminal_a_number_is_shown_once_and_none_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines come at steps 1, 5, 9 and 13; losses are reported at 1, 2 and 9."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress_bar, "LINE_EVERY_S", 4.0)

    def reports() -> Iterator[Progress]:
        for done in range(14):
            values = {"loss": done / 10} if done in (1, 2, 9) else {"val_loss": 0.5} if done == 3 else {}
            yield Progress(done, 100, "step", values=values)
            clock[0] += 1

    lines = [line for line in told(monkeypatch, capsys, reports()) if "/100 step" in line]
    shown = [" ".join(word for word in line.split() if "=" in word) for line in lines]
    assert shown == ["loss=0.1", "loss=0.2 val_loss=0.5", "loss=0.9", ""]
