"""The bound of latents: that of a density, exact for the exact denoiser, and in nats wherever it is told."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from elbocli.bound import estimate
from elbocli.bound.measure import Images, MeasuredNetwork, open_measurement
from elbocli.bound.result import Bound
from elbocli.core.elbo import reconstruction_of_numbers
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.errors import UsageError
from elbocli.files.losslog import read_table
from elbocli.nn.networks.diffusers import affine

SHAPE = (4, 3, 3)
LOW, HIGH = -14, 16


def denoiser_of(mean: float, std: float) -> MeasuredNetwork:
    """The exact ε prediction for independent N(mean, std²) numbers."""

    def network(z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = (signed.double().sigmoid().sqrt()[:, None, None, None] for signed in (logsnr, -logsnr))
        return (sigma * (z - alpha * mean) / (sigma**2 + (alpha * std) ** 2)).float()

    return MeasuredNetwork(network, Prediction("eps"), LOW, HIGH)


def bound_of(measured: MeasuredNetwork, x: Tensor, draws: int = 64) -> Bound:
    measured = replace(measured, draws=draws, population=len(x))
    images = [Images(x, None, range(len(x)))]
    return estimate.estimate_bound(measured, images, parse_schedule("uniform", LOW, HIGH)).bound


@pytest.mark.parametrize(("mean", "std"), [(0.4, 0.6), (-1.0, 2.5), (0.0, 0.05)])
def test_the_bound_is_the_cross_entropy_with_the_density_of_an_exact_denoiser(mean: float, std: float) -> None:
    """Latents of N(0.4, 0.36), the density that the network is exact for, and of others: −log p(x) for every x."""
    x = 0.4 + 0.6 * torch.randn(150, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = bound_of(denoiser_of(mean, std), x)
    exact = float(-torch.distributions.Normal(mean, std).log_prob(x.double()).mean())
    assert abs(found.nats_per_latent_dimension - exact) < 4 * found.nats_per_latent_dimension_se + 1e-3 * abs(exact)
    assert found.nats_per_latent_dimension_se < 0.05 * abs(exact)
    assert found.nats == pytest.approx(found.nats_per_latent_dimension * math.prod(SHAPE))


def test_of_concentrated_latents_it_is_negative() -> None:
    """A density may exceed 1: the differential entropy of N(0, 0.05²) is below zero."""
    x = 0.05 * torch.randn(150, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = bound_of(denoiser_of(0.0, 0.05), x)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.05**2)
    assert entropy < 0 and found.nats_per_latent_dimension == pytest.approx(entropy, abs=0.05)


def test_the_parts_are_what_they_are_called() -> None:
    x = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = bound_of(denoiser_of(0.0, 1.0), x, draws=4)
    parts = [found.prior, found.reconstruction, found.diffusion]
    assert sum(part.nats for part in parts) == pytest.approx(found.nats)
    assert found.reconstruction.nats == pytest.approx(36 * 0.5 * math.log(2 * math.pi * math.e * math.exp(-HIGH)))
    assert found.reconstruction.nats == 36 * reconstruction_of_numbers(HIGH) and found.reconstruction.nats_se == 0
    told = found.json()
    assert Bound.of(json.loads(json.dumps(told))) == found
    assert "bpd" not in json.dumps(told)


# A run


@pytest.fixture(scope="module")
def run(latents: Path, preset: Path, elbo: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on latents."""
    path = tmp_path_factory.mktemp("latent-runs") / "run"
    done = elbo("train", latents, "-o", path, "--preset", preset, "--steps", 8, "--preview-every", 0)
    assert done.returncode == 0, done.stderr
    return path


def test_latents_are_drawn_once_as_training_draws_them(run: Path, latents: Path) -> None:
    """From mean and std, by the image's number and the seed, whatever images come with it."""
    asked = [
        open_measurement(run, latents, images=count, batch=batch, seed=seed)
        for count, batch, seed in ((48, 64, 0), (48, 256, 0), (48, 256, 1))
    ]
    each = [
        {row: x for some in measurement for row, x in zip(some.rows, some.content, strict=True)}
        for measurement in asked
    ]
    assert all(torch.equal(each[0][row], each[1][row]) for row in range(48))
    assert not any(torch.equal(each[0][row], each[2][row]) for row in range(48))
    with h5py.File(latents, "r", locking=False) as file:
        mean, std = (torch.from_numpy(half).float() for half in np.split(file["latents"][:], 2, 1))
    space = asked[0].dataset.latent_space
    assert space is not None
    shift, scale = affine(space, torch.device("cpu"))
    eta = (torch.stack([each[0][row] for row in range(48)]) / scale + shift - mean) / std
    assert abs(float(eta.mean())) < 0.05 and float(eta.std()) == pytest.approx(1, abs=0.05)


def test_the_command_speaks_of_nats_per_latent_dimension(run: Path, elbo: Callable[..., Any], tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.{end}" for name, end in (("curve", "tsv"), ("plot", "svg"), ("log", "jsonl"))}
    outputs = [word for name, path in files.items() for word in (f"--{name}", path)]
    done = elbo("bound", run, "-n", 24, "--draws", 4, *outputs)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["nats"] == pytest.approx(found["nats_per_latent_dimension"] * 8 * 8 * 4)
    assert found["dimensions"] == 256 and found["n_images"] == 24
    assert b"bpd" not in done.stdout + done.stderr and b"bits" not in done.stdout + done.stderr
    assert all(path.stat().st_size > 0 for path in files.values())
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "bound.json").write_bytes(done.stdout)
    page = elbo("report", tmp_path / "run", "-o", tmp_path / "page.html")
    assert page.returncode == 0, page.stderr
    text = (tmp_path / "page.html").read_text()
    assert '<th class="n">nats per latent dimension</th>' in text and '"detail">nats per latent dimension' in text
    assert "bits" not in text


def test_the_other_questions_are_answered_for_latents(run: Path, elbo: Callable[..., Any]) -> None:
    check = elbo("bound", run, "--check", "-n", 24, "--draws", 8, "--weighting", "sigmoid:bias=2")
    assert check.returncode == 0 and json.loads(check.stdout)["agree"], check.stderr
    specs = [word for spec in ("variational", "information", "ode:steps=4") for word in ("--estimator", spec)]
    several = elbo("bound", run, "-n", 24, "--draws", 4, *specs)
    assert several.returncode == 0, several.stderr
    for each in json.loads(several.stdout)["estimates"]:
        assert each["nats"] == pytest.approx(each["nats_per_latent_dimension"] * 256) and "bpd" not in each
    classes = elbo("bound", run, "-n", 24, "--draws", 4, "--classify")
    assert json.loads(classes.stdout)["classes"] == 3, classes.stderr
    few = elbo("bound", run, "--target-se", 0.5, "--draws", 4)
    assert json.loads(few.stdout)["nats_per_latent_dimension_se"] < 0.5, few.stderr


def test_each_latent_has_its_number_and_the_page_says_why_it_has_no_picture(
    run: Path, elbo: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    specs = [word for spec in ("variational", "information") for word in ("--estimator", spec)]
    for name, words in (("one", ()), ("two", specs)):
        table = tmp_path / "run" / f"{name}.tsv"
        done = elbo("bound", "run", "-n", 24, "--draws", 4, *words, "--per-image", table, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found, numbers = json.loads(done.stdout), read_table(table)
        for column, value in numbers.items():
            if column.startswith("nats_per_latent_dimension"):
                nats = numbers[column.replace("_per_latent_dimension", "")]
                assert value == pytest.approx(nats / 256, rel=1e-6)
        first = found["estimates"][0] if words else found
        assert list(numbers.values())[2].mean() == pytest.approx(first["nats"], rel=1e-6)
        assert not any("bpd" in column for column in numbers)
        (tmp_path / "run" / f"{name}.json").write_bytes(done.stdout)
    page = elbo("report", "run", "-o", "page.html", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    text = (tmp_path / "page.html").read_text()
    assert text.count("shows nats of pixels alone") == 2 and "likeliest images" not in text
    named = elbo("report", "run", "--scores", "run/one.tsv", "-o", "other.html", cwd=tmp_path)
    assert named.returncode == 1 and b"of pixels alone" in named.stderr


def test_latents_of_another_space_and_pixels_are_refused(
    run: Path, latents: Path, digits: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copy(latents, tmp_path / "other.h5"))
    with h5py.File(other, "r+") as file:
        file.attrs["autoencoder_sha256"] = "0" * 64
    for data, words in (
        (other, "another space: autoencoder_sha256"),
        (digits, r"holds pixels, and .* not trained on pixels"),
    ):
        with pytest.raises(UsageError, match=words):
            open_measurement(run, data)
