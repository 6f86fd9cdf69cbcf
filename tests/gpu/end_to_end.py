"""The commands as people type them, on digits: train, ended by SIGTERM and gone on with, sample, eval."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import made_data
import numpy as np
from environment import has
from worker import Row, Session

FEW = 60.0
"""Seconds after which a command that says nothing is given up."""


def command(session: Session, *words: object) -> list[str]:
    """A command line of elbo."""
    return [os.environ.get("PYTHON", sys.executable), "-m", "elbocli", *map(str, words)]


def ended(session: Session, *words: object) -> subprocess.CompletedProcess[str]:
    """A command that has ended."""
    line = command(session, *words)
    return subprocess.run(line, cwd=session.folder, capture_output=True, text=True, timeout=4 * FEW, check=False)


def interrupted(session: Session, line: list[str], log: Path) -> tuple[int, str]:
    """(exit code, stderr) of a command that gets SIGTERM when its log has a line."""
    process = subprocess.Popen(line, cwd=session.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 2 * FEW
        while time.monotonic() < until and process.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=FEW)
    finally:
        process.kill()
    return process.returncode, said


def rows(session: Session) -> Iterator[Row]:
    """Each command's end, and what it left."""
    made_data.packed_digits(session.folder)
    run, device = session.folder / "run", ("--device", session.device)
    words = ("train", "digits.h5", "-o", "run", "--preset", "digits", "--save-every", 10**6, "--log-every", 5, *device)
    # It must not be over before it is interrupted: that start has steps without end, which a run may change.
    code, said = interrupted(session, command(session, *words, "--steps", 10**6), run / "metrics.jsonl")
    yield Row(
        "train, SIGTERM",
        f"exit {code}",
        ok=code == 143,
        note=said.strip().splitlines()[-1][:160] if said.strip() else "",
    )
    saved = json.loads((run / "status.json").read_text())["step"]
    yield Row("saved at", saved, "steps", ok=saved > 0)
    steps = saved + (60 if session.small else 1000)
    done = ended(session, *words, "--steps", steps)
    status = json.loads((run / "status.json").read_text())
    whole = done.returncode == 0 and (status["state"], status["step"]) == ("done", steps)
    yield Row("train, gone on with", f"exit {done.returncode}", ok=whole and "going on after step" in done.stderr)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [line["step"] for line in logged]
    yield Row("steps in the log, each once", f"{len(seen)} lines", ok=seen == sorted(set(seen)) and len(seen) > 1)
    yield Row(
        "loss, first and last",
        f"{logged[0]['loss']:.3f}, {logged[-1]['loss']:.3f}",
        ok=logged[-1]["loss"] < logged[0]["loss"],
    )
    done = ended(session, "sample", "run", "-n", 32, "--steps", 8, "-o", "drawn.npy", *device)
    fine = done.returncode == 0 and np.load(session.folder / "drawn.npy").shape == (32, 8, 8, 1)
    yield Row("sample", f"exit {done.returncode}", ok=fine, note=done.stderr[-200:].strip() if not fine else "")
    lacking = [
        package for module, package in (("scipy", "scipy"), ("torch_fidelity", "torch-fidelity")) if not has(module)
    ]
    if lacking:
        yield Row("eval", "skipped", note=f"{' and '.join(lacking)} not installed")
        return
    done = ended(session, "eval", "drawn.npy", "--ref", "digits.h5", "--extractor", "elbo-tiny", *device)
    yield Row("eval", f"exit {done.returncode}", ok=done.returncode == 0 and "frechet_distance" in done.stdout)
