"""The tests that are marked `cuda`, by pytest, where it is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from environment import has
from record import Row, Skipped
from worker import Session

ROOT = Path(__file__).resolve().parents[2]
FILE = "tests/train/test_cuda.py"
"""Its fixtures are its own: those that tests share need packages that a bare machine lacks."""


def rows(session: Session) -> Iterator[Row]:
    """Count the tests that pass, and name those that do not. On a CPU they are only collected: the suite runs them there."""
    if not has("pytest"):
        raise Skipped("pytest is not installed")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    line = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q", "-m", "cuda", FILE]
    line += ["--collect-only"] if session.device == "cpu" else []
    done = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=session.left, check=False
    )
    print(done.stdout, done.stderr)
    for name, reason in re.findall(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$", done.stdout, re.M):
        yield Row(name.rpartition("::")[2], "failed", ok=False, note=reason[:200])
    last = (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    yield Row("pytest", last, ok=done.returncode == 0, note="" if done.returncode == 0 else f"exit {done.returncode}")
