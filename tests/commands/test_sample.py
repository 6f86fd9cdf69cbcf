"""`elbo sample` as it is typed: EDM's own images by elbo's line for them, presets with options, and lines that are refused."""

import json
import math
from pathlib import Path

import h5py
import identities
import numpy as np
import pytest
import torch

from elbocli.core.prediction import alpha_sigma
from elbocli.runs.open import open_run
from elbocli.sampling.denoiser import Denoiser

N = 12
SEEDS = range(40, 40 + N)
CHURN = (40.0, 0.05, 50.0, 1.003)


def by_edm(run: Path, later: torch.dtype, *churn: float) -> tuple[np.ndarray, list[int]]:
    """Images [N,H,W,C] and labels by EDM's sampler for λ from −10 to 10. later: dtype of noise after the start."""
    trained = open_run(run, torch.device("cpu"))
    random = identities.Stacked(SEEDS)
    first = [random.normal((1, 8, 8)).double()]
    labels = random.label(10)
    network = trained.network.double()
    denoiser = Denoiser(lambda z, *rest: network(z.double(), *rest), trained.prediction, labels=labels)

    def draw() -> torch.Tensor:
        return first.pop() if first else random.normal((1, 8, 8), later)

    def d(y: torch.Tensor, sigma: float) -> torch.Tensor:
        logsnr = -2 * math.log(sigma)
        with torch.no_grad():
            return denoiser(y * alpha_sigma(logsnr)[0], logsnr)

    x = identities.algorithm_2(d, draw, 18, *churn, sigma_min=math.exp(-5), edm2=later == torch.float32)
    pixels = (x * 127.5 + 128).clip(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy(), labels.tolist()


@pytest.mark.parametrize(
    ("noise", "later", "sampler", "churn"),
    [
        ("edm", torch.float64, "heun", ()),
        ("edm", torch.float64, "edm-imagenet64", CHURN),
        ("edm2", torch.float32, "edm-imagenet64", CHURN),
    ],
    ids=["plain", "churn", "edm2"],
)
def test_elbo_draws_what_edm_draws(noise, later, sampler, churn, trained, elbo, tmp_path):
    walk = ("--sampler", sampler, "--schedule", "edm-sample:rho=7,sigma_min=0.002,sigma_max=80", "--steps", 18)
    random = ("--noise", noise, "--classes", "random", "--seed", 40, "--start", "edm", "--rounding", "edm")
    done = elbo("sample", trained, "-n", N, *walk, *random, "--batch-size", 5, "-o", tmp_path / "x.h5")
    assert done.returncode == 0, done.stderr
    wanted, labels = by_edm(trained, later, *churn)
    with h5py.File(tmp_path / "x.h5") as file:
        images = file["images"][()]
        about = json.loads(str(file.attrs["samples"]))
        assert file["labels"][()].tolist() == labels and file["seeds"][()].tolist() == list(SEEDS)
    told = {"start": "edm", "noise": noise, "noise_device": "cpu", "rounding": "half-up", "classes": "random"}
    assert {key: about[key] for key in told} == told
    apart = np.abs(images.astype(int) - wanted)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.005 and images.std() > 20


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--start", "zero"], "unit, edm"),
        (["--guidance-scale", "2", "--guidance-channels", "2"], "1 channels"),
        (["--spacing", "timesteps"], "no timesteps"),
        (["--threshold", "dynamic:percentile=101"], "101"),
        (["--guide", "RUN"], "--guidance-scale 1"),
    ],
    ids=str,
)
def test_a_line_that_makes_no_sense_is_refused(given, word, elbo, trained, tmp_path):
    words = [trained if each == "RUN" else each for each in given]
    done = elbo("sample", trained, *words, "-o", tmp_path / "x.npy")
    assert done.returncode == 2 and word in done.stderr.decode() and not (tmp_path / "x.npy").exists()


def test_only_options_that_take_files_are_tried_as_files(elbo, trained, tmp_path):
    labels = ",".join(["1"] * 300)
    for more in ((), ("--overwrite",)):
        done = elbo(
            "sample", trained, "-n", 300, "--steps", 1, "--classes", labels, "--weights=model", "-o", "model", *more, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "model").iterdir())) == 300
