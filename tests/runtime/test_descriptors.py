"""All bytes come through, however few a system call takes: short writes, and real pipes that don't block."""

import ast
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from forks import quick

from elbocli.runtime.descriptors import Whole, write_all

PACKAGE = Path(__file__).parents[2] / "elbocli"


def slowly(handle: int, into: list[bytes]) -> None:
    """Read a pipe to its end, a little at a time."""
    while content := os.read(handle, 8192):
        into.append(content)
        time.sleep(0.001)


def patient(reader: int) -> tuple[threading.Thread, list[bytes]]:
    got: list[bytes] = []
    thread = threading.Thread(target=slowly, args=(reader, got))
    thread.start()
    return thread, got


def test_every_byte_of_a_short_write_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: whole(handle, data[:7], at))
    handle = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    write_all(handle, bytes(range(100)), 3)
    write_all(handle, b"", 200)
    os.close(handle)
    assert (tmp_path / "x").read_bytes() == b"\0\0\0" + bytes(range(100))


def test_a_full_pipe_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread, got = patient(reader)
    content = os.urandom(300_000)
    assert Whole(writer).write(content) == len(content)
    os.close(writer)
    thread.join()
    assert b"".join(got) == content


def test_an_empty_pipe_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    threading.Timer(0.2, lambda: (os.write(writer, b"late"), os.close(writer))).start()
    assert Whole(reader).readall() == b"late"


def test_a_reader_that_leaves_ends_the_wait() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Timer(0.2, os.close, (reader,)).start()
    with pytest.raises(BrokenPipeError):
        Whole(writer).write(bytes(300_000))


@pytest.mark.parametrize(
    "line",
    [
        ("report", "RUN"),
        ("sample", "RUN", "-q", "-n", "2000", "--steps", "1"),
        ("weights", "show", "sigmoid", "--points", "5000"),
        ("prep", "--help"),
    ],
    ids=lambda line: line[0],
)
def test_a_command_writes_all_of_it_into_a_pipe_that_does_not_block(line: Any, elbo: Any, trained: Path) -> None:
    line = [str(trained) if word == "RUN" else word for word in line]
    expected = elbo(*line)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen([quick(), "-m", "elbocli", *line], stdout=writer) as process:
        os.close(writer)
        time.sleep(1)
        thread, got = patient(reader)
        thread.join()
    assert (process.returncode, len(b"".join(got))) == (0, len(expected.stdout))
    assert b"".join(got) == expected.stdout or line[0] == "report"  # which says when it was made


def test_a_command_reads_all_of_a_pipe_that_does_not_block(elbo: Any, trained: Path) -> None:
    log = (trained / "losslog.jsonl").read_bytes()
    half = log.index(b"\n", len(log) // 2) + 1
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    line = [quick(), "-m", "elbocli", "adapt", "-"]
    with subprocess.Popen(line, stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        os.close(reader)
        os.write(writer, log[:half])
        threading.Timer(4, lambda: (os.write(writer, log[half:]), os.close(writer))).start()
        assert process.communicate()[0] == elbo("adapt", "-", stdin=log).stdout != b""
    assert process.returncode == 0


def test_nobody_else_writes_to_a_descriptor() -> None:
    """`os.write` and `os.pwrite` may take less than all; so may a file without a buffer."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            raw = isinstance(node, ast.keyword) and node.arg == "buffering"
            if raw or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.write", "os.pwrite", "os.writev")):
                found.add(path.relative_to(PACKAGE).as_posix())
    # The logs of a run count what was taken, because the rest is kept for later; a pipe for samples is opened so, and
    # written to by `write_all`; what a process that decodes has not taken is sent again until time is up.
    others = {"train/recorder.py", "files/sample_writers/__init__.py"}
    assert found == {"runtime/descriptors.py", *others}
