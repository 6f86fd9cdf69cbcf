"""Progress on a terminal of 80 columns, and the first word where there is none."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from elbocli.cli import progress_bar
from elbocli.cli.commands import Command
from elbocli.runtime.progress import log, progress

LOOP = """
import time
from elbocli.cli.commands import Command
from elbocli.cli.progress_bar import shown_on_stderr
from elbocli.runtime.progress import progress
Command.path = "elbo train"
values = {"loss": 0.123456, "eps_mse": 0.0712, "lr": 2e-4, "grad_norm": 0.3123, "images_per_s": 1234.5}
with shown_on_stderr():
    progress(199_990, 400_000, "step")
    for step in range(199_991, 200_004):
        time.sleep(0.12)
        then = "validating" if step == 199_996 else ""
        said = values if step % 4 == 0 else {"val_loss": 2.0} if step % 4 == 2 else {}
        progress(step, 400_000, "step", then, **said)
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
    assert ["elbo train, validating:" in line for line in shown].count(True) in (1, 2) and "validating" not in last
    assert ("images_per_s=1234" in last) == whole


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"path": "elbo train", "quiet": False, "silent": False, "verbose": False}.items():
        monkeypatch.setattr(Command, name, value)  # whatever an earlier test asked for
    monkeypatch.setattr(progress_bar, "FIRST_S", 0.0)


def test_without_a_terminal_a_line_has_count_rate_and_each_value_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: None
) -> None:
    clock = itertools.count(0.0, 5.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress_bar.shown_on_stderr():
        for done in range(1, 6):
            progress(done, 10, "step", **({"loss": 0.5} if done == 2 else {}))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == ["1/10", "3/10", "5/10"]
    assert "5.00s/step" in lines[1] and "00:35 left" in lines[1]
    assert ["loss" in line for line in lines] == [False, True, False]


@pytest.mark.parametrize(("quiet", "silent", "said"), [(False, False, 2), (True, False, 1), (False, True, 0)])
def test_quiet_keeps_warnings_and_another_rank_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shown: None,
    quiet: bool,
    silent: bool,
    said: int,
) -> None:
    monkeypatch.setattr(Command, "quiet", quiet)
    monkeypatch.setattr(Command, "silent", silent)
    with progress_bar.shown_on_stderr():
        log.info("one")
        log.debug("detail")
        log.warning("two")
    assert len(capsys.readouterr().err.splitlines()) == said
