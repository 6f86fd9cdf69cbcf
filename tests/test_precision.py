"""Networks of every command: each runs in a precision that one place switches on, and that the command names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import torch
from harness import heard
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from typed_settings import typed

import elbocli
from elbocli.bound import estimate, judge
from elbocli.bound.measure import open_measurement
from elbocli.evaluate import scoring
from elbocli.evaluate.settings import EvalSettings
from elbocli.files.dataset import Dataset
from elbocli.images.samples import about_samples
from elbocli.run.settings import resolve
from elbocli.runtime.device import Precision
from elbocli.sample import draw
from elbocli.train import loop

pytestmark = pytest.mark.usefixtures("short_previews")

CPU = torch.device("cpu")


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the precisions under which convolutions were computed, forward and backward; "" is none."""
    under, seen = list[str](), set[str]()
    conv2d = F.conv2d

    @contextmanager
    def applied(self: Precision, benchmark: bool = False) -> Iterator[None]:
        under.append(self.name)
        yield
        under.pop()

    def note(_: object = None) -> None:
        seen.add(under[-1] if under else "")

    def noted(*args: Any, **how: Any) -> Tensor:
        note()
        out = conv2d(*args, **how)
        if out.requires_grad:
            out.register_hook(note)
        return out

    monkeypatch.setattr(Precision, "applied", applied)
    monkeypatch.setattr(F, "conv2d", noted)
    return seen


def images(folder: Path, photos: np.ndarray) -> Path:
    """A folder of pictures."""
    folder.mkdir()
    for index, photo in enumerate(photos[:4]):
        Image.fromarray(photo).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_training_and_what_it_validates_and_draws(
    precision: str, latents: Path, preset: Path, tmp_path: Path, switched: set[str]
) -> None:
    """The decoder of previews too."""
    options = {"preset": str(preset), "steps": 2, "preview_every": 2, "val_split": 8, "val_every": 16}
    resolved = resolve({**options, "precision": precision, "device": "cpu"}, Dataset(latents, latents=True))
    with heard() as lines:
        loop.run(Dataset(latents, latents=True), tmp_path / "run", resolved)
    assert switched == {precision}
    assert any(f" cpu, {Precision(precision, CPU)}; weighting" in line for line in lines)


@pytest.fixture(scope="module")
def latent_run(latents: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("latent") / "run"
    resolved = resolve({"preset": str(preset), "steps": 1, "device": "cpu"}, Dataset(latents, latents=True))
    loop.run(Dataset(latents, latents=True), run, resolved)
    return run


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_sampling_and_decoding(precision: str, latent_run: Path, tmp_path: Path, switched: set[str]) -> None:
    target = tmp_path / "images.h5"
    with heard() as lines:
        draw.draw_samples(latent_run, target, typed(n=2, steps=2, precision=precision, device="cpu"))
    assert switched == {precision}
    used = str(Precision(precision, CPU))
    assert (
        f"; cpu, {used}" in "\n".join(lines)
        and about_samples(Dataset(target).attributes.samples, "").more["precision"] == used
    )


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(
    "question",
    [estimate.measure_bound, lambda asked: judge.check_theorem(asked, asked.weightings(()))],
    ids=["bound", "theorem"],
)
def test_every_question_of_bound(question: Any, precision: str, trained: Path, switched: set[str]) -> None:
    settings: Any = {"images": 4, "draws": 2, "device": "cpu", "precision": precision}
    with heard() as lines:
        asked = open_measurement(trained, None, **settings)
        question(asked)
    assert switched == {precision}
    used = str(Precision(precision, CPU))
    assert lines[0].endswith(f"; cpu, {used}") and asked.about()["precision"] == used


def test_features_are_always_extracted_in_strict_fp32(
    photos: np.ndarray, tmp_path: Path, switched: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "photos.npy"
    np.save(path, photos)
    settings = EvalSettings(metrics={}, extractor="elbo-tiny", save_stats=tmp_path / "stats.npz")
    caplog.set_level("INFO", "elbo")
    scoring.run([path], None, settings)
    assert "features of elbo-tiny; cpu, fp32" in caplog.text
    assert switched == {"fp32"}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_encoding(precision: str, autoencoder: Path, photos: np.ndarray, tmp_path: Path, switched: set[str]) -> None:
    out = tmp_path / "latents.h5"
    source = images(tmp_path / "photos", photos)
    lines = packing.pack(source, out, size=16, latents=autoencoder, precision=precision, device="cpu")
    assert switched == {precision}
    used = str(Precision(precision, CPU))
    assert f"latents of {autoencoder}; cpu, {used}" in lines
    assert Dataset(out, latents=True).attributes.more["latent_precision"] == used


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_api(precision: str, trained: Path, digits: Path, switched: set[str]) -> None:
    run, data = elbocli.open_run(trained), elbocli.open_dataset(digits)
    how: dict[str, Any] = {"labels": torch.tensor([1, 2]), "precision": precision}
    made = elbocli.draw(run.network, run.prediction, (1, 8, 8), 2, steps=2, **how)
    assert made.dtype == torch.float32 and switched == {precision}
    switched.clear()
    elbocli.variational_bound(run.network, run.prediction, data.batch(np.arange(2)), draws=2, **how)
    assert switched == {precision}


def test_half_precision_is_used_by_the_api(trained: Path) -> None:
    run = elbocli.open_run(trained)
    make: Callable[[str], Tensor] = lambda precision: elbocli.draw(  # noqa: E731
        run.network, run.prediction, (1, 8, 8), 2, steps=2, precision=precision
    )
    exact, half = make("fp32"), make("bf16")
    assert not torch.equal(exact, half) and torch.allclose(exact, half, atol=0.3)
    assert torch.equal(exact, make("tf32"))
