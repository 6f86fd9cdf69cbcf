"""`elbo sample` as people type it: what is said, what is left, and how it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ELBO = [sys.executable, "-m", "elbocli"]
LONG = ("--steps", "50", "--batch", "2", "--sampler", "ddim")
"""A batch takes a moment, the whole a minute."""


def check(result: Any, code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
    for word in words:
        assert word.encode() in result.stderr, result.stderr


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("waited for a minute")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_was_drawn_and_other_settings_are_refused(
    number: int, elbo: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    line = ("sample", str(trained), "-n", "2000", *LONG, "-o", "x.npz")
    process = subprocess.Popen([*ELBO, *line], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: (tmp_path / "x.npz.partial.json").exists(), process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number and stdout == b"", stderr
    name = signal.Signals(number).name.encode()
    said = re.search(rb"elbo sample: %s: (\d+) of 2000 images are written; .* the same command" % name, stderr)
    assert said and int(said[1]) >= 2, stderr
    assert sorted(os.listdir(tmp_path)) == ["x.npz.partial", "x.npz.partial.json"]
    if number == signal.SIGTERM:
        return
    changed = (*line, "--seed", 1, "--steps", 2, "--classes", "3")
    check(
        elbo(*changed, cwd=tmp_path),
        2,
        "x.npz.partial: unfinished",
        "--overwrite to start afresh",
        "classes",
        "seed",
        "steps",
    )
    check(elbo(*changed, "-n", 4, "--overwrite", cwd=tmp_path), 0, "4 images")
    with np.load(tmp_path / "x.npz") as made:
        assert made["arr_1"].tolist() == [3] * 4
    assert os.listdir(tmp_path) == ["x.npz"]


def test_a_terminal_is_told_the_rate_and_the_time_left(trained: Path, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [*ELBO, "sample", str(trained), "-n", "40", *LONG, "-o", str(tmp_path / "x.npy")],
        stdout=subprocess.PIPE,
        stderr=child,
    )
    os.close(child)
    seen = b""
    while True:
        try:
            seen += os.read(parent, 4096)
        except OSError:
            break
    process.communicate(timeout=60)
    os.close(parent)
    assert process.returncode == 0
    assert re.search(rb"\d+/2000 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+evaluation/s\]", seen), seen


def test_a_reader_that_leaves_ends_it_quietly(trained: Path) -> None:
    line = f"{' '.join(ELBO)} sample {trained} -n 100000 --steps 2 --batch 500 | head -c 10"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, timeout=100, check=False)
    assert result.returncode == 141
    lines = [row for row in result.stderr.splitlines() if b" evaluation" not in row]
    assert [row for row in lines if not row.startswith(b"elbo sample: " + bytes(trained))] == []
