"""EDM's own command beside elbo's line for it: the same classes, and the same images to rounding."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edm
import h5py
import numpy as np
import pytest
import torch

from elbocli.core.prediction import alpha_sigma
from elbocli.nn.denoiser import Denoiser
from elbocli.run.open import open_run

LINE = ("--start", "edm", "--rounding", "edm", "--classes", "random", "--steps", 18, "--seed", 40)
N = 12
LATER = {"edm": torch.float64, "edm2": torch.float32}
"""The type in which a sampler draws after the start."""
CHURN = (40.0, 0.05, 50.0, 1.003)


def by_edm(run: Path, noise: str, *churn: float) -> tuple[np.ndarray, list[int]]:
    """Images [N,H,W,C] and labels that EDM's sampler makes of a run, in float64. The run was trained on λ from −10 to 10."""
    trained, random = open_run(run, torch.device("cpu")), edm.Stacked(range(40, 40 + N))
    latents = random.normal((1, 8, 8))
    labels = random.label(10)
    denoiser = Denoiser(trained.network.double(), trained.prediction, labels=labels)
    first = iter([latents.double()])

    def draw() -> torch.Tensor:
        found = next(first, None)
        return random.normal((1, 8, 8), LATER[noise]) if found is None else found

    def d(y: torch.Tensor, sigma: float) -> torch.Tensor:
        logsnr = -2 * math.log(sigma)
        with torch.no_grad():
            return denoiser(y * alpha_sigma(logsnr)[0], logsnr)

    x = edm.algorithm_2(d, draw, 18, *churn, sigma_min=math.exp(-5), edm2=noise == "edm2")
    pixels = (x * 127.5 + 128).clip(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy(), labels.tolist()


@pytest.mark.parametrize(
    ("noise", "sampler", "churn"),
    [("edm", "heun", ()), ("edm", "heun:edm-imagenet64", CHURN), ("edm2", "heun:edm-imagenet64", CHURN)],
    ids=["plain", "churn", "edm2"],
)
def test_elbo_draws_what_edm_draws(
    noise: str, sampler: str, churn: tuple[float, ...], trained: Path, elbo: Callable[..., Any], tmp_path: Path
) -> None:
    schedule = "edm-sample:rho=7,sigma_min=0.002,sigma_max=80"
    line = (
        "sample",
        trained,
        "-n",
        N,
        "--sampler",
        sampler,
        "--schedule",
        schedule,
        *LINE,
        "--noise",
        noise,
        "--batch",
        5,
    )
    done = elbo(*line, "-o", tmp_path / "x.h5")
    assert done.returncode == 0, done.stderr
    wanted, labels = by_edm(trained, noise, *churn)
    with h5py.File(tmp_path / "x.h5") as file:
        images, about = file["images"][()], json.loads(str(file.attrs["samples"]))
        assert file["labels"][()].tolist() == labels and file["seeds"][()].tolist() == list(range(40, 40 + N))
    told = {"start": "edm", "noise": noise, "noise_device": "cpu", "rounding": "half-up", "classes": "random"}
    assert {key: about[key] for key in told} == told
    apart = np.abs(images.astype(int) - wanted)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.005 and images.std() > 20
