"""Real files for the tests: digits packed by elbo itself, and a small trained run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

# As the commands do: several processes share the cores. Before anything imports torch.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

ROOT = Path(__file__).parent.parent
Result = subprocess.CompletedProcess[bytes]

PRESET = """
network: {channels: 8, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.1}
train: {prediction: v, schedule: cosine, logsnr_min: -10, logsnr_max: 10, steps: 40, batch: 16, lr: 2.0e-3,
        warmup: 5, ema: 0.9, label_dropout: 0.1, save_every: 10, preview_every: 0, log_every: 5}
"""


def run_elbo(
    *args: Any,
    cwd: Path | None = None,
    stdin: Any = subprocess.DEVNULL,
    env: dict[str, str] | None = None,
    timeout: float = 240,
) -> Result:
    """Run a command line in its own process; bytes of both streams and the exit code."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ELBO_")} | (env or {})
    line = [sys.executable, "-m", "elbocli", *map(str, args)]
    if isinstance(stdin, bytes):
        return subprocess.run(
            line, cwd=cwd, input=stdin, env=environment, capture_output=True, timeout=timeout, check=False
        )
    return subprocess.run(
        line, cwd=cwd, stdin=stdin, env=environment, capture_output=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="session")
def elbo() -> Callable[..., Result]:
    return run_elbo


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 real digits as PNG class folders."""
    folder = tmp_path_factory.mktemp("images") / "digits"
    digits = load_digits()
    for index in range(300):
        path = folder / str(digits.target[index]) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """The same, packed at 8 pixels with one channel."""
    path = tmp_path_factory.mktemp("packed") / "digits.h5"
    result = run_elbo("prep", digits_folder, path, "--size", 8, "--channels", 1)
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="session")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network so small that a step takes milliseconds."""
    path = tmp_path_factory.mktemp("preset") / "test.yaml"
    path.write_text(PRESET)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path, preset: Path) -> Path:
    """A run of 40 steps."""
    run = tmp_path_factory.mktemp("runs") / "run"
    result = run_elbo("train", digits, "-o", run, "--preset", preset, "--preview-every", 20)
    assert result.returncode == 0, result.stderr
    return run
