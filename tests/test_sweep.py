"""The sweep of biases, shifts and schedules: tiny, through its own shell and make; and what its tables say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from example_scripts import Classifier, load
from scipy import stats

from elbocli.core.monotone import likeness
from elbocli.core.weighting import parse_weighting

ROOT = Path(__file__).parent.parent
SWEEP = ROOT / "examples" / "sweep"


@pytest.fixture(scope="module")
def tabulate() -> ModuleType:
    return load(SWEEP / "tabulate.py")


def row(bias: float, schedule: str, seed: int, distance: float, shift: float = 0.0, **more: Any) -> dict[str, Any]:
    told = {"bias": bias, "shift": shift, "schedule": schedule, "seed": seed, "distance": distance}
    return {**told, "accuracy": 0.5, "bpd": 4.0, "steps": 7, "seconds": 60, "machine": "a", **more}


def test_differences_are_of_pairs_and_their_intervals_over_seeds(tabulate: ModuleType) -> None:
    """Bias −1 doubles every distance; the adaptive schedule multiplies it by 1, 2, 4. All else differs, and drops out."""
    rows = []
    for seed, size in enumerate((3.0, 7.0, 50.0)):
        for bias, factor in ((2.0, 1.0), (-1.0, 2.0)):
            rows += [row(bias, "cosine", seed, size * factor), row(bias, "cosine", seed, 9 * size * factor, shift=1.65)]
            rows.append(row(bias, "adaptive", seed, size * factor * (1, 2, 4)[seed], bpd=3.9))
    lines = dict(
        line.strip("| ").split(" | ", 1) for line in tabulate.differences_table(tabulate.grouped(rows)).splitlines()
    )
    assert lines["bias -1"] == "2 | **2.00 (2.00 to 2.00)** | 0.0 (0.0 to 0.0) | 0.000 (0.000 to 0.000) | 3"
    assert lines["shift 1.65"].startswith("0 | **9.00 (9.00 to 9.00)** |")
    half = stats.t.ppf(0.975, 2) * np.std(np.log([1, 2, 4]), ddof=1) / 3**0.5
    low, high = 2 * np.exp(-half), 2 * np.exp(half)
    expected = f"cosine | 2.00 ({low:.2f} to {high:.2f}) | 0.0 (0.0 to 0.0) | **-0.100 (-0.100 to -0.100)** | 3"
    assert lines["schedule adaptive"] == expected and low < 1


def test_intervals_hold_the_truth_as_often_as_they_say(tabulate: ModuleType) -> None:
    draws = np.random.default_rng(0).normal(0.3, 1.0, (4000, 3))
    inside = [low <= 0.3 <= high for _, low, high in map(tabulate.interval, draws)]
    assert 0.94 < np.mean(inside) < 0.96


def test_a_shift_of_the_weighting_is_another_bias_so_the_sweep_shifts_schedules(tabulate: ModuleType) -> None:
    assert (
        likeness(parse_weighting("sigmoid:bias=2,shift=1.65"), parse_weighting("sigmoid:bias=3.65"), -12, 12).deviation
        < 1e-9
    )


@pytest.mark.slow
def test_one_training_of_digits_through_shell_and_make(tabulate: ModuleType, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for part in ("train", "test"):
        (folder / f"{part}.h5").symlink_to(digits)
    shape = (torch.zeros(2, 1, 8, 8, dtype=torch.uint8),)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=1 << 20)},)
    torch.export.save(torch.export.export(Classifier(), shape, dynamic_shapes=dynamic), folder / "classifier.pt2")
    command = tmp_path / "bin" / "elbo"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m elbocli "$@"\n')
    command.chmod(0o755)
    given = {"BIASES": "-1", "SHIFTS": "1.65", "SCHEDULES": "laplace:mean=0,scale=1.5", "SEEDS": "3", "STEPS": "2"}
    given |= {
        "SAMPLES": "20",
        "WALK": "3",
        "IMAGES": "4",
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
        "JOBS": "1",
    }
    environment = {**os.environ, **given, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    line = ["sh", str(SWEEP / "sweep.sh"), str(folder)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((folder / "runs" / "-1_1.65_laplace+mean=0^scale=1.5_3" / "config.yaml").read_text())[
        "settings"
    ]
    assert config["weighting"] == "sigmoid:bias=-1" and config["schedule"] == "laplace:mean=0,scale=1.5,shift=1.65"
    assert config["seed"] == 3 and config["steps"] == 2
    (result,) = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert result["distance"] > 0 and 0 <= result["accuracy"] <= 1 and result["bpd"] > 1
    assert "| -1 | laplace:mean=0,scale=1.5, shift 1.65 |" in done.stdout
    assert (folder / "sweep.md").read_text() == done.stdout
    for name in ("sweep.png", "samples.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    again = subprocess.run(line, env={**environment, "PYTHON": "false"}, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and not again.stdout, "all is done"


def test_the_quick_sweep_pairs_every_choice() -> None:
    """make is asked what it would do."""
    given = {"HERE": str(SWEEP), "BIASES": "-1 2", "SHIFTS": "0 1.65", "SCHEDULES": "cosine adaptive", "SEEDS": "0 1 2"}
    words = [f"{key}={value}" for key, value in given.items()]
    done = subprocess.run(
        ["make", "-n", "-f", str(SWEEP / "Makefile"), *words], capture_output=True, text=True, check=True
    )
    cells = {line.split()[-1] for line in done.stdout.splitlines() if "cell.sh" in line}
    places = ("0_cosine", "1.65_cosine", "0_adaptive")
    assert cells == {f"{bias}_{place}_{seed}" for bias in (-1, 2) for place in places for seed in (0, 1, 2)}


def test_shellcheck_finds_nothing() -> None:
    scripts = [str(SWEEP / name) for name in ("sweep.sh", "cell.sh")]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["shellcheck", *scripts], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_page_shows_what_was_measured(tabulate: ModuleType) -> None:
    """`make docs` writes it: nothing there is typed by hand."""
    page = (ROOT / "docs" / "sweep.md").read_text()
    assert page.endswith(f"\n## Measured\n\n{tabulate.summary(tabulate.read(SWEEP / 'results.jsonl'))}\n")
