"""Commands that must work on every imported run, through the shell: draw and score, bound with the theorem, adapt, report;
and training it further.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

Elbo = Callable[..., CompletedProcess[bytes]]


def works(elbo: Elbo, run: Path, data: Path, *more: Any) -> dict[str, Any]:
    """Go through all commands in the run's folder's folder; return what the bound said. more: options of every command."""

    def do(*words: Any) -> bytes:
        result = elbo(*words, cwd=run.parent)
        assert result.returncode == 0 and b"Traceback" not in result.stderr, (words, result.stderr.decode())
        return result.stdout

    do("sample", run.name, *more, "-n", 20, "--steps", 2, "-o", "s.npz")
    scored = json.loads(do("eval", "s.npz", "--ref", data, "--extractor", "elbo-tiny", *more))
    assert any(key.startswith("frechet_distance") for key in scored)
    measure = ("-n", 20, "--draws", 4, *more)
    bound = json.loads(do("bound", run.name, data, *measure, "--log", "log.jsonl"))
    checked = json.loads(do("bound", run.name, data, *measure, "--check", "--weighting", "sigmoid:bias=2"))
    assert checked["agree"] is True
    specs = [word for spec in ("variational", "information", "ode:steps=4") for word in ("--estimator", spec)]
    several = json.loads(do("bound", run.name, data, "-n", 2, "--draws", 2, *more, *specs))
    assert len(several["differences"]) == 3 and all(isfinite(each["nats"]) for each in several["estimates"])
    assert b"knots:" in do("adapt", "log.jsonl", "--weighting", "sigmoid:bias=2", *more)
    assert b"imported from" in do("report", run.name, *more)
    assert json.loads(do("info", run.name, "--json"))["imported_file"]
    do("info", run.name, "--verify")
    return bound


def trains(elbo: Elbo, run: Path, data: Path, *more: Any) -> None:
    """Train it further, on images of ten classes, in a new run; and draw from that. more: options of every command."""
    options = {"init": run.name, "steps": 20, "batch": 8, "preview-every": 0, "log-every": 5, "label-dropout": 0.1}
    words = ("train", data, "-o", "further", "--conditional", *(f"--{key}={value}" for key, value in options.items()))
    for command in (words, ("sample", "further", "-n", 2, "--steps", 2, "--guidance", 2, "-o", "further.npz")):
        result = elbo(*command, *more, cwd=run.parent)
        assert result.returncode == 0 and b"Traceback" not in result.stderr, (command, result.stderr.decode())
    losses = [json.loads(line)["loss"] for line in (run.parent / "further" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] < 10
