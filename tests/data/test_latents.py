"""Latents from packing to pictures: which rows are stored, which are drawn, how images are decoded, and refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from calls import encoder_of, pack
from harness import heard
from PIL import Image

from elbocli.data import pack as prep
from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import Dataset, DatasetWriter
from elbocli.files.latents import CONVENTIONS
from elbocli.networks.diffusers import Autoencoder
from elbocli.runs import settings
from elbocli.runs.config import read_config
from elbocli.sampling import draw, plan
from elbocli.sampling.samplers import walk
from elbocli.sampling.settings import SampleSettings
from elbocli.training import loop
from elbocli.training.batches import Batches

pytestmark = pytest.mark.usefixtures("short_previews")

CPU = torch.device("cpu")
Make = Callable[..., Path]


def small(dataset: Path, preset: Path, **options: object) -> settings.Resolved:
    return settings.resolve({"preset": str(preset), **options}, Dataset(dataset, latents=True))


def train(dataset: Path, out: Path, preset: Path, **options: Any) -> list[str]:
    with heard() as lines:
        loop.run(Dataset(dataset, latents=True), out, small(dataset, preset, **options))
    return lines


def drawn(run: Path, out: Path, **options: Any) -> np.ndarray:
    draw.draw_samples(run, out, SampleSettings(**{"n": 6, "steps": 4, "sampler": "ddim", **options}))
    return np.load(out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, latents: Path, preset: Path) -> Path:
    """A run of 12 steps on latents, with previews."""
    out = tmp_path_factory.mktemp("latent-runs") / "run"
    train(latents, out, preset, steps=12, preview_every=6, save_every=10)
    return out


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """changed(**data): a copy of the run whose config says this of its data; None removes a key."""

    def change(**data: Any) -> Path:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        config = yaml.safe_load((copy / "config.yaml").read_text())
        config["data"] = {key: value for key, value in {**config["data"], **data}.items() if value is not None}
        (copy / "config.yaml").write_text(yaml.safe_dump(config))
        return copy

    return change


# --- packing ---


def test_rows_are_the_posterior_in_half_precision(autoencoder, photos):
    encoder = encoder_of(autoencoder)
    model = Autoencoder(autoencoder, CPU)
    rows = np.stack(encoder.rows(list(photos[:5])))
    mean, std = model.encode(photos[:5], model.space("diffusers", 16, False))
    assert rows.dtype == np.float16 and rows.shape[1:] == encoder.layout.row == (8, 8, 8)
    np.testing.assert_allclose(rows, torch.cat([mean, std], 1), rtol=1e-3, atol=1e-4)


def test_the_second_row_of_an_image_is_its_mirror_image(autoencoder, photos):
    plain, both = (encoder_of(autoencoder, mirror=mirror) for mirror in (False, True))
    assert (plain.copies, both.copies) == (1, 2)
    rows = both.rows(list(photos[:8]))
    assert np.array_equal(rows[0::2], plain.rows(list(photos[:8])))
    assert np.array_equal(rows[1::2], plain.rows(list(photos[:8, :, ::-1])))
    assert not np.array_equal(rows[1::2], [row[:, :, ::-1] for row in rows[0::2]]), "what makes --flip wrong"


def test_images_are_encoded_and_made_safe_batch_by_batch(autoencoder, photos, tmp_path, monkeypatch):
    np.save(tmp_path / "photos.npy", photos[..., :1])  # grey, and made colour
    batches = []
    safe = []

    def noting(owner: Any, name: str, note: Callable[..., None]) -> None:
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: (note(*given), method(*given))[1])

    monkeypatch.setattr(Autoencoder, "comfortable_batch", lambda self, size: 7)
    noting(Autoencoder, "encode", lambda model, pixels, space: batches.append(len(pixels)))
    noting(DatasetWriter, "append", lambda *given: safe.append(given[2]))
    monkeypatch.setattr(prep, "SAFE_EVERY_S", 0)
    pack(tmp_path / "photos.npy", tmp_path / "out.h5", latents=autoencoder, device="cpu")
    assert batches == [7] * 6 + [6] and safe == [7, 14, 21, 28, 35, 42, 48]
    data = Dataset(tmp_path / "out.h5", latents=True)
    assert len(data) == 48 and data.attributes.image_size == 16


def test_the_fingerprint_tells_what_decides_and_nothing_else(autoencoder, make_autoencoder, tmp_path):
    def fingerprint(folder: Path = autoencoder, **settings: Any) -> str:
        return json.dumps(encoder_of(folder, **settings).fingerprint)

    assert fingerprint() == fingerprint(Path(shutil.copytree(autoencoder, tmp_path / "moved")))
    others = [fingerprint(make_autoencoder(1)), fingerprint(size=32), fingerprint(latent_convention="edm2")]
    others += [fingerprint(mirror=True), fingerprint(precision="bf16")]
    assert len({fingerprint(), *others}) == 6


def test_latents_beyond_half_precision_are_refused(autoencoder, photos, monkeypatch):
    monkeypatch.setattr(Autoencoder, "encode", lambda *_: (torch.full((2, 4, 8, 8), 1e6),) * 2)
    with pytest.raises(DataError, match="not finite"):
        encoder_of(autoencoder).rows(list(photos[:2]))


# --- training ---


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_draws_have_the_posteriors_mean_and_deviation(convention, autoencoder, pack_latents, preset):
    path = pack_latents(autoencoder, latent_convention=convention)
    data = Dataset(path, latents=True)
    space = data.latent_space
    assert space is not None and space.latent_input == CONVENTIONS[convention].input
    examples = Batches(data, small(path, preset, batch_size=48, label_dropout=0.0), CPU)
    moments = data.read(np.arange(48)).astype(np.float64)
    shift, scale = (np.array(v).reshape(-1, 1, 1) for v in (space.latent_shift, space.latent_scale))
    standard = []
    for step in range(40):
        x, _, labels = examples.at(step)
        rows = examples.indices(step)
        assert x.dtype == torch.float32 and labels is not None and np.array_equal(labels, data.labels[rows])
        standard.append((x.numpy() / scale + shift - moments[rows, :4]) / moments[rows, 4:])
    eta = np.stack(standard)
    assert abs(eta.mean()) < 5e-3 and abs(eta.std() - 1) < 5e-3
    assert np.abs(np.corrcoef(eta[:, :, 0].ravel(), eta[:, :, 1].ravel())[0, 1]) < 0.02


def test_draws_differ_between_epochs_and_are_equal_at_equal_positions(latents, preset):
    def seen(batch: int, steps: range, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        examples = Batches(Dataset(latents, latents=True), small(latents, preset, batch_size=batch, seed=seed), CPU)
        rows = np.concatenate([examples.indices(step) for step in steps])
        return rows, np.concatenate([examples.at(step)[0].numpy() for step in steps])

    rows, x = seen(16, range(6))
    first = np.argsort(rows[:48])
    second = 48 + np.argsort(rows[48:])
    assert np.array_equal(rows[first], rows[second])
    assert not (x[first] == x[second]).all(axis=(1, 2, 3)).any()
    assert np.array_equal(x, seen(32, range(3))[1]), "the place in the run decides, not the batch"
    assert not np.array_equal(x, seen(16, range(6), seed=1)[1])
    assert np.array_equal(x[64:80], seen(16, range(4, 5))[1]), "a step needs none before it"


def test_a_run_records_its_space_and_its_log_the_dimensions(latents, run):
    space = Dataset(latents, latents=True).latent_space
    assert space is not None and asdict(space).items() <= read_config(run).data.more.items()
    assert json.loads((run / "losslog.jsonl").read_text().splitlines()[0])["dimensions"] == 8 * 8 * 4


def test_a_changed_space_is_refused_and_a_moved_autoencoder_is_not(autoencoder, pack_latents, preset, changed, tmp_path):
    copy = changed()
    moved = pack_latents(Path(shutil.copytree(autoencoder, tmp_path / "moved")))
    assert any("done, 12 steps" in line for line in train(moved, copy, preset, steps=12, preview_every=6))
    with pytest.raises(UsageError):
        train(pack_latents(autoencoder, latent_convention="edm2"), copy, preset, steps=12)


def test_without_the_autoencoder_training_asks_for_no_previews_and_flips_never(autoencoder, pack_latents, preset, tmp_path):
    moved = Path(shutil.copytree(autoencoder, tmp_path / "moved"))
    path = pack_latents(moved)
    shutil.rmtree(moved)
    with pytest.raises(UsageError):
        train(path, tmp_path / "run", preset, steps=2, preview_every=1)
    train(path, tmp_path / "run", preset, steps=2, preview_every=0)
    assert not (tmp_path / "run" / "previews").exists()
    with pytest.raises(UsageError):
        small(path, preset, flip=True)


# --- pictures ---


def test_previews_are_decoded(run):
    with Image.open(run / "previews" / "step-00000012.png") as picture:
        assert picture.mode == "RGB" and picture.height > 16 * 6
        assert np.asarray(picture).std() > 0


def test_samples_are_the_decoded_draws_the_same_in_any_batch(run, autoencoder, tmp_path, monkeypatch):
    kept: list[torch.Tensor] = []
    monkeypatch.setattr(plan, "walk", lambda *a: kept.append(walk(*a)) or kept[-1])  # type: ignore[func-returns-value]
    whole = drawn(run, tmp_path / "a.npy")
    pieces = drawn(run, tmp_path / "b.npy", batch_size=4)
    with torch.no_grad():
        first = next(each for each in kept if each.dim() == 4)  # another walk finds the levels that are evaluated
        x = Autoencoder(autoencoder, CPU).model.decode(first / 0.18215).sample
    expected = ((x + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1)
    assert whole.dtype == np.uint8 and np.abs(whole - expected.numpy()).max() <= 0.51
    assert np.abs(whole.astype(int) - pieces.astype(int)).max() <= 1 and (whole == pieces).mean() > 0.99


def test_the_autoencoder_is_found_as_given_beside_the_dataset_or_at_its_path(
    run, autoencoder, make_autoencoder, changed, tmp_path, monkeypatch
):
    copy = changed(autoencoder="vae", path=str(tmp_path / "data" / "latents.h5"), from_run="gone.h5")
    expected = drawn(run, tmp_path / "0.npy")
    with pytest.raises(UsageError):
        drawn(copy, tmp_path / "x.npy")
    assert np.array_equal(expected, drawn(copy, tmp_path / "1.npy", autoencoder=autoencoder))
    shutil.copytree(autoencoder, tmp_path / "data" / "vae")
    assert np.array_equal(expected, drawn(copy, tmp_path / "2.npy"))
    shutil.move(tmp_path / "data" / "vae", tmp_path / "here" / "vae")
    monkeypatch.chdir(tmp_path / "here")
    assert np.array_equal(expected, drawn(copy, tmp_path / "3.npy"))
    other = make_autoencoder(5)
    with pytest.raises(DataError):
        drawn(copy, tmp_path / "x.npy", autoencoder=other)
    assert not (tmp_path / "x.npy").exists()


def test_options_for_other_latents_and_pixels_are_refused(
    run, trained, autoencoder, make_autoencoder, pack_latents, preset, tmp_path
):
    other = tmp_path / "other"
    train(pack_latents(make_autoencoder(5)), other, preset, steps=1)
    refused: list[tuple[Path, dict[str, Any]]] = [
        *((run, {"threshold": name}) for name in ("static", "dynamic")),
        (run, {"guide": other, "guidance_scale": 2.0}),
        (trained, {"autoencoder": autoencoder}),
    ]
    for drawing, options in refused:
        with pytest.raises(UsageError):
            drawn(drawing, tmp_path / "a.npy", **options)
    drawn(run, tmp_path / "a.npy", guide=run / "checkpoints" / "step-00000010", guidance_scale=2.0)
