"""`elbo sample` as people type it: what is said, what is left, and how it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import quick

ELBO = [quick(), "-m", "elbocli"]
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
    said = re.search(
        rb"elbo sample: %s: (\d+) of 2000 images are safe in x\.npz\.partial; the same command" % name, stderr
    )
    assert said and int(said[1]) >= 2, stderr
    assert sorted(os.listdir(tmp_path)) == ["x.npz.partial", "x.npz.partial.json"]
    if number == signal.SIGTERM:
        return
    changed = (*line, "--seed", 1, "--steps", 2, "--classes", "3")
    check(
        elbo(*changed, cwd=tmp_path),
        2,
        "x.npz.partial: unfinished, with other settings",
        "--overwrite to start afresh",
        "classes: balanced there, 3 asked for",
        "seed: 0 there, 1 asked for",
        "steps: 50 there, 2 asked for",
    )
    check(elbo(*changed, "-n", 4, "--overwrite", cwd=tmp_path), 0, "4 images")
    with np.load(tmp_path / "x.npz") as made:
        assert made["arr_1"].tolist() == [3] * 4
    assert os.listdir(tmp_path) == ["x.npz"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("name", ["x.h5", "folder"])
def test_a_disk_too_small_is_told_before_the_first_image(
    name: str, elbo: Callable[..., Any], trained: Path, small_disk: Path
) -> None:
    result = elbo("sample", trained, "-n", 10**6, *LONG, "-o", small_disk / name)
    check(result, 1, f"{name}: could not claim", "No space left on device")
    assert b"Traceback" not in result.stderr and os.listdir(small_disk) == []
    full = Path("/dev/full")
    with open(full, "wb") as out:
        line = [*ELBO, "sample", str(trained), "-n", "3", "--steps", "1"]
        told = subprocess.run(line, stdout=out, stderr=subprocess.PIPE, timeout=60, check=False)
    check(told, 1, "standard output: could not write: No space left on device")


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


def test_without_a_terminal_a_line_now_and_then_says_it(trained: Path, tmp_path: Path) -> None:
    """Evaluations are counted within a batch, which may take minutes."""
    code = "from elbocli.cli import progress_bar as progress; progress.LINE_EVERY_S = progress.FIRST_S = 0.1; from elbocli.main import main; main()"
    line = [
        quick(),
        "-c",
        code,
        "sample",
        str(trained),
        "-n",
        "40",
        *LONG,
        "--batch",
        "40",
        "-o",
        str(tmp_path / "x.npy"),
    ]
    result = subprocess.run(line, capture_output=True, timeout=100, check=False)
    assert result.returncode == 0
    assert re.search(rb"elbo sample: \d+/2000 evaluation, [\d.e+]+ evaluation/s, \d+ s left\n", result.stderr), (
        result.stderr
    )


def test_a_reader_that_leaves_ends_it_quietly(trained: Path) -> None:
    line = f"{' '.join(ELBO)} sample {trained} -n 100000 --steps 2 --batch 500 | head -c 10"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, timeout=100, check=False)
    assert result.returncode == 141
    lines = [row for row in result.stderr.splitlines() if b" evaluation" not in row]
    assert [row for row in lines if not row.startswith(b"elbo sample: " + bytes(trained))] == []


def test_a_reader_that_never_reads_can_be_left(trained: Path) -> None:
    """The write that waits in a thread keeps nobody."""
    out, into = os.pipe()
    line = [*ELBO, "sample", str(trained), "-n", "100000", "--steps", "1", "--batch", "2000"]
    process = subprocess.Popen(line, stdout=into, stderr=subprocess.PIPE)
    os.close(into)
    os.read(out, 1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=30)[1]
    os.close(out)
    assert process.returncode == 143, stderr
    assert b"0 of 100000 images were written; into a file (-o FILE) the same command would go on" in stderr
    assert b"Traceback" not in stderr and b"Fatal" not in stderr
