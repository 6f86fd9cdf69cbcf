"""`elbo bound` as a user types it, of pixels and of latents: one JSON object, tables by image, and lines that are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from elbocli.bound.measure import RunMeasurement, open_measurement
from elbocli.bound.settings import BoundSettings
from elbocli.errors import DataError
from elbocli.networks.diffusers import affine

Elbo = Callable[..., CompletedProcess[bytes]]
Found = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def latent_run(latents: Path, preset: Path, elbo: Elbo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on latents."""
    path = tmp_path_factory.mktemp("latent-runs") / "run"
    done = elbo("train", latents, "-o", path, "--preset", preset, "--steps", 8, "--preview-every", 0)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def bound(elbo: Elbo, tmp_path: Path) -> Found:
    """bound(*words): the JSON that it prints."""

    def call(*words: Any) -> dict[str, Any]:
        done = elbo("bound", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def test_the_bound_is_one_json_object_with_all_that_it_can_write(elbo, trained, digits, tmp_path):
    files = ("--curve", "curve.tsv", "--log", "log.jsonl")
    result = elbo("bound", trained, digits, "-n", 40, "--draws", 4, *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["n_images"] == 40 and found["draws_per_image"] == 4 and 0 < found["bpd_se"] < found["bpd"]
    assert found["weights"] == "ema-0.9" and found["checkpoint"] == "step-00000040" and found["conditional"]
    assert b"40 of 300 images" in result.stderr
    assert len((tmp_path / "curve.tsv").read_text().splitlines()) == 101
    fitted = elbo("adapt", tmp_path / "log.jsonl", "--weighting", "elbo")
    assert fitted.returncode == 0 and b"elbo-schedule" in fitted.stdout


def test_the_same_line_prints_the_same(elbo, trained):
    line = ("bound", trained, "-q", "-n", 20, "--draws", 2)
    first = elbo(*line)
    second = elbo(*line)
    other = elbo(*line, "--seed", 1)
    assert first.stdout == second.stdout != other.stdout and first.stderr == b""


def test_the_likelihood_by_the_ode_is_on_the_page(bound, elbo, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    found = bound("run", "-n", 20, "--estimator", "ode:steps=4")
    assert found["estimator"].startswith("ode:steps=4,draws=2") and found["nats_se"] >= found["nats_se_noise"]
    (tmp_path / "run/likelihood.json").write_text(json.dumps(found))
    assert "ode:steps=4,draws=2" in elbo("report", "run", cwd=tmp_path).stdout.decode()


# Latents


def test_of_latents_all_is_in_nats_per_latent_dimension(bound, elbo, latent_run, tmp_path):
    shutil.copytree(latent_run, tmp_path / "run")
    for name, words in (("one", ()), ("two", ("--estimator", "ode:steps=4"))):
        found = bound("run", "-n", 24, "--draws", 4, *words)
        assert found["nats"] == pytest.approx(found["nats_per_latent_dimension"] * 8 * 8 * 4)
        assert "bpd" not in json.dumps(found)
        (tmp_path / "run" / f"{name}.json").write_text(json.dumps(found))
    page = elbo("report", "run", cwd=tmp_path).stdout.decode()
    assert "nats per latent dimension" in page and "bits per" not in page


def test_the_other_questions_are_answered_for_latents(bound, latent_run, tmp_path):
    some = (latent_run, "-n", 24, "--draws", 4)
    assert bound(*some, "--check", "--draws", 8, "--weighting", "sigmoid:bias=2")["agree"]
    bound(*some, "--curve", "curve.tsv", "--log", "log.jsonl")
    assert len(list(tmp_path.iterdir())) == 2


def test_latents_are_drawn_once_as_training_draws_them(latent_run, latents):
    """From mean and std, by the image's number and the seed, whatever images come with it."""

    def drawn(batch: int, seed: int) -> tuple[RunMeasurement, torch.Tensor]:
        asked = open_measurement(latent_run, latents, BoundSettings(images=48, batch_size=batch, seed=seed))
        each = {row: x for some in asked.images for row, x in zip(some.rows, some.content, strict=True)}
        return asked, torch.stack([each[row] for row in range(48)])

    (asked, x) = drawn(64, 0)
    (_, same) = drawn(256, 0)
    (_, other) = drawn(256, 1)
    assert torch.equal(x, same) and float((x == other).double().mean()) < 0.01
    with h5py.File(latents, "r", locking=False) as file:
        mean, std = (torch.from_numpy(half).float() for half in np.split(file["latents"][:], 2, 1))
    assert asked.dataset.latent_space is not None
    shift, scale = affine(asked.dataset.latent_space, torch.device("cpu"))
    eta = (x / scale + shift - mean) / std
    assert abs(float(eta.mean())) < 0.05 and float(eta.std()) == pytest.approx(1, abs=0.05)


# Datasets


@pytest.mark.parametrize(
    ("run", "data", "word"),
    [
        ("trained", "latents", "latents"),
        ("trained", "larger", "image_size is 16, "),
        ("trained", "classes", "11 classes"),
        ("latent_run", "digits", "latents is False"),
        ("latent_run", "space", "autoencoder_sha256"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(run, data, word, elbo, latents, pack, images, request, tmp_path):
    if data == "larger":
        path = pack(rows=images(12, 16, 1))
    elif data == "classes":
        path = pack(rows=images(11, 8, 1), labels=np.arange(11), names="abcdefghijk")
    elif data == "space":
        path = Path(shutil.copy(latents, tmp_path))
        with h5py.File(path, "r+") as file:
            file.attrs["autoencoder_sha256"] = "0" * 64
    else:
        path = request.getfixturevalue(data)
    result = elbo("bound", request.getfixturevalue(run), path)
    assert (result.returncode, result.stdout) == (2, b"") and word in result.stderr.decode(), result.stderr


def test_a_run_is_found_again_from_elsewhere_and_a_changed_dataset_is_not_its_own(bound, trained, digits, tmp_path):
    """Trained as `elbo train data.h5 -o run` in one folder, asked about from another."""
    shutil.copytree(trained, tmp_path / "work/run")
    shutil.copy(digits, tmp_path / "work/data.h5")
    config = tmp_path / "work/run/config.yaml"
    content = yaml.safe_load(config.read_text())
    content["data"] |= {"path": "data.h5", "from_run": "../data.h5"}
    config.write_text(yaml.safe_dump(content))
    assert Path(bound("work/run", "-n", 20, "--draws", 2)["dataset"]) == Path("work/data.h5")
    content["data"] |= {"payload_sha256": "abc"}
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError):
        open_measurement(tmp_path / "work/run", None)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("--draws 3", "even"),
        ("--check --curve x.tsv", "--curve"),
        ("--weighting elbo", "--weighting"),
        ("--logsnr-min 5 --logsnr-max 2", "5 to 2"),
        ("--check --weighting edm:mean=-200,std=0.1", "largest w"),
        ("--estimator ode:steps=5", "even"),
        ("--estimator ode --curve c.tsv", "--curve"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(line, word, elbo, trained, tmp_path):
    result = elbo("bound", trained, *line.split(), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, b"") and word in result.stderr.decode(), result.stderr
    assert not any(tmp_path.iterdir())


def test_it_is_one_process(elbo, trained):
    result = elbo("bound", trained, env={"WORLD_SIZE": "2"})
    assert result.returncode == 2 and b"torchrun" in result.stderr
