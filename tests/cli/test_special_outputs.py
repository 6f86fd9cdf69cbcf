"""Outputs that are named like a pipe or a device which is there: streamed into, or refused, never replaced."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

COMMANDS = {
    "sample h5": ("sample {run} -n 2 --steps 2 -o {out}", ".h5"),
    "sample npz": ("sample {run} -n 2 --steps 2 -o {out}", ".npz"),
    "sample png": ("sample {run} -n 2 --steps 2 -o {out}", ".png"),
    "bound curve": ("bound {run} -n 8 --curve {out}", ".tsv"),
    "bound plot": ("bound {run} -n 8 --plot {out}", ".svg"),
    "bound images": ("bound {run} -n 8 --per-image {out}", ".tsv"),
    "bound log": ("bound {run} -n 8 --log {out}", ".jsonl"),
    "eval card": ("eval {data} --ref {data} --card {out}", ".md"),
    "eval statistics": ("eval {data} --ref {data} --save-stats {out}", ".npz"),
    "eval features": ("eval {data} --ref {data} --save-features {out}", ".safetensors"),
    "optimum": ("optimum {data} -n 4 -o {out}", ".json"),
    "optimum plot": ("optimum {data} -n 4 --plot {out}", ".svg"),
    "report": ("report {run} -o {out}", ".html"),
    "adapt": ("adapt {run} -o {out}", ".yaml"),
    "grid": ("grid {run} -n 2 --steps 3 -o {out}", ".yaml"),
    "adapt plot": ("adapt {run} --plot {out}", ".svg"),
    "ema": ("ema {run} --std .1 -o {out}", ".safetensors"),
    "prep": ("prep {images} {out}", ".h5"),
    "merge": ("merge {out} {data}", ".h5"),
    "weights plot": ("weights plot -o {out}", ".svg"),
    "train": ("train {data} -o {out} --preset {preset}", ""),
}


@pytest.fixture(params=["pipe", "device"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """special(suffix): a pipe or a device of that name."""

    def make(suffix: str) -> Path:
        path = tmp_path / f"out{suffix}"
        if request.param == "pipe":
            os.mkfifo(path)
            return path
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null is
        except PermissionError:
            pytest.skip("making a device is not allowed here")
        return path

    return make


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_replaces_what_is_no_file(
    command: str, special: Any, elbo: Any, trained: Path, digits: Path, digits_folder: Path, preset: Path
) -> None:
    line, suffix = COMMANDS[command]
    out = special(suffix)
    places = {"run": trained, "data": digits, "images": digits_folder, "preset": preset, "out": out}
    overwrite = () if command == "train" else ("--overwrite",)
    before = out.lstat()
    for more in {(), overwrite}:
        result = elbo(*line.format(**places).split(), *more, timeout=60)
        said = result.stderr.decode()
        assert result.returncode == 2 and str(out) in said and "Traceback" not in said, said
        assert "choose another" in said and said.count("\n") == 1
        assert not result.stdout
    assert (out.lstat().st_ino, out.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize("suffix", ["", ".npy"])
def test_samples_are_streamed_into_it(suffix: str, special: Any, elbo: Any, trained: Path) -> None:
    out, line = special(suffix), ["sample", trained, "-n", 3, "--steps", 2]
    before = out.lstat()
    content = b""

    def read() -> None:
        nonlocal content
        content = out.read_bytes()

    reader = threading.Thread(target=read if stat.S_ISFIFO(before.st_mode) else lambda: None)
    reader.start()
    result = elbo(*line, "-o", out, timeout=60)
    reader.join(10)
    assert result.returncode == 0, result.stderr
    assert not result.stdout
    if stat.S_ISFIFO(before.st_mode):
        assert content == elbo(*line).stdout and len(np.load(io.BytesIO(content))) == 3
    assert (out.lstat().st_ino, out.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert os.listdir(out.parent) == [out.name]


def test_a_pipe_whose_reader_leaves_ends_quietly_as_standard_output_does(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    os.mkfifo(out)
    line = [sys.executable, "-m", "elbocli", "sample", trained, "-n", "100000", "--steps", "1", "-o", out]
    process = subprocess.Popen([*map(str, line)], stderr=subprocess.PIPE)
    with open(out, "rb") as reader:
        assert reader.read(6) == b"\x93NUMPY"
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 141 and b"Traceback" not in stderr and b"error" not in stderr


def test_a_terminal_is_refused_by_its_name(trained: Path) -> None:
    ours, its = os.openpty()
    line = [sys.executable, "-m", "elbocli", "sample", str(trained), "-n", "1", "-o", os.ttyname(its)]
    result = subprocess.run(line, capture_output=True, timeout=60, check=False)
    os.close(ours)
    os.close(its)
    assert result.returncode == 2 and b"is a terminal" in result.stderr
