"""Estimators of −log p on a run that `elbo import` made of somebody else's network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

Elbo = Callable[..., CompletedProcess[bytes]]
NORMAL = """
import torch

class Normal(torch.nn.Module):
    def __init__(self, image_channels):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(image_channels, 8, 8))
        self.std = torch.nn.Parameter(torch.ones(image_channels, 8, 8))
    def forward(self, z, logsnr):
        alpha, sigma = (each.double().sigmoid().sqrt()[:, None, None, None] for each in (logsnr, -logsnr))
        return (sigma * (z - alpha * self.mean) / (sigma**2 + (alpha * self.std) ** 2)).float()
"""
LOW, HIGH = -12, 8
SAID = ("--network", "mine.py:Normal", "--prediction", "eps", "--size", 8, "--channels", 1)
SPECS = ("variational", "information", "ode:steps=96")


@pytest.fixture(scope="module")
def imported(elbo: Elbo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is exact for one normal of each pixel, as a stranger's weights. In its folder are mine.py, `run`, and
    images of that distribution, data.h5: none is at the first or the last level, where rounding would know more.
    """
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "mine.py").write_text(NORMAL)
    draw = torch.Generator().manual_seed(0)
    mean, std = 0.4 * torch.rand(1, 8, 8, generator=draw) - 0.2, 0.1 + 0.1 * torch.rand(1, 8, 8, generator=draw)
    images = mean + std * torch.randn(40, 8, 8, generator=draw)
    np.save(folder / "x.npy", ((images + 1) * 127.5).round().byte().numpy())
    save_file({"mean": mean, "std": std}, folder / "w.safetensors")
    ends = ("--logsnr-min", LOW, "--logsnr-max", HIGH)
    for words in (("import", "w.safetensors", "run", *SAID, *ends), ("prep", "x.npy", "data.h5")):
        done = elbo(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_three_estimates_of_an_imported_exact_denoiser_agree(elbo: Elbo, imported: Path) -> None:
    specs = [word for spec in SPECS for word in ("--estimator", spec)]
    done = elbo("bound", "run", "data.h5", "--draws", 64, *specs, "--plugin", "mine.py", cwd=imported)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each["estimator"].partition(":")[0] for each in found["estimates"]] == ["variational", "information", "ode"]
    assert all(each["nats_se_noise"] < 0.01 * each["nats"] for each in found["estimates"])
    assert len(found["differences"]) == 3 and all(abs(pair["in_se"]) < 4 for pair in found["differences"])
    assert found["imported_file"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, b"has no dataset of its own; name one, DATA.h5, after the run"),
        (("data.h5", "--classify"), 2, b"was trained without classes"),
    ],
)
def test_what_an_imported_run_cannot_say_is_refused_with_a_sentence(
    words: tuple[Any, ...], code: int, said: bytes, elbo: Elbo, imported: Path
) -> None:
    specs = () if "--classify" in words else ("--estimator", "ode")
    done = elbo("bound", "run", *words, *specs, "--plugin", "mine.py", cwd=imported)
    assert (done.returncode, done.stdout) == (code, b"") and said in done.stderr, done.stderr
