"""Latents from packing to pictures: what is stored, what is drawn, what survives, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import torch
import yaml
from harness import heard
from PIL import Image
from typed_settings import typed

from elbocli.bound.measure import open_measurement
from elbocli.core.samplers import walk
from elbocli.core.sampling import Guidance
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.evaluate.scoring import run as evaluate
from elbocli.evaluate.settings import EvalSettings
from elbocli.files.checkpoint import latest, read_config
from elbocli.files.dataset import Dataset, DatasetWriter
from elbocli.files.grid import PLACES, layout_of
from elbocli.files.latents import CONVENTIONS, INPUTS
from elbocli.info import describe as info
from elbocli.nn.networks.diffusers import Autoencoder
from elbocli.prep import pack
from elbocli.prep.encode_latents import LatentEncoder
from elbocli.run import settings
from elbocli.sample import draw
from elbocli.train import loop, plan
from elbocli.train.batches import Batches

pytestmark = pytest.mark.usefixtures("short_previews")

CPU = torch.device("cpu")
Run = Callable[..., Any]


def small(dataset: Path, preset: Path, **options: object) -> settings.Resolved:
    return settings.resolve({"preset": str(preset), **options}, Dataset(dataset, latents=True))


def drain(dataset: Path, out: Path, resolved: settings.Resolved) -> list[str]:
    with heard() as lines:
        loop.run(Dataset(dataset, latents=True), out, resolved)
    return lines


def drawn(run: Path, out: Path, **options: Any) -> np.ndarray:
    draw.draw_samples(run, out, typed(**{"n": 6, "steps": 4, "sampler": "ddim", **options}))
    return np.load(out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, latents: Path, preset: Path) -> Path:
    """A run of 12 steps on latents, with previews."""
    out = tmp_path_factory.mktemp("latent-runs") / "run"
    drain(latents, out, small(latents, preset, steps=12, preview_every=6))
    return out


# --- packing ---


def test_rows_are_the_posterior_in_half_precision(autoencoder: Path, photos: np.ndarray) -> None:
    encoder = LatentEncoder(autoencoder, 16, device="cpu")
    rows = np.stack(encoder.rows(list(photos[:5])))
    mean, std = encoder.autoencoder.encode(photos[:5], encoder.space)
    assert rows.dtype == np.float16 and rows.shape[1:] == encoder.layout.row == (8, 8, 8)
    np.testing.assert_allclose(rows, torch.cat([mean, std], 1), rtol=1e-3, atol=1e-4)


def test_the_second_row_of_an_image_is_its_mirror_image(autoencoder: Path, photos: np.ndarray) -> None:
    plain, both = (LatentEncoder(autoencoder, 16, device="cpu", mirror=mirror) for mirror in (False, True))
    assert (plain.copies, both.copies) == (1, 2)
    rows = both.rows(list(photos[:3]))
    assert np.array_equal(rows[0::2], plain.rows(list(photos[:3])))
    assert np.array_equal(rows[1::2], plain.rows(list(photos[:3, :, ::-1])))
    assert not np.array_equal(rows[1::2], [row[:, :, ::-1] for row in rows[0::2]]), "what makes --flip wrong"


def test_the_same_images_give_the_same_rows_whoever_cuts_the_groups(autoencoder: Path, photos: np.ndarray) -> None:
    encoder = LatentEncoder(autoencoder, 16, device="cpu", mirror=True)
    encoder.batch = 8
    whole = encoder.rows(list(photos))
    assert len(whole) == 96
    assert np.array_equal(whole, [row for k in range(0, 48, 8) for row in encoder.rows(list(photos[k : k + 8]))])


def test_images_of_an_array_are_encoded_and_made_safe_batch_by_batch(
    autoencoder: Path, photos: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "photos.npy", photos)
    batches, safe = [], []
    monkeypatch.setattr("elbocli.prep.encode_latents.comfortable_batch", lambda size, cpu: 7)
    monkeypatch.setattr(
        LatentEncoder, "rows", noting(LatentEncoder.rows, lambda encoder, pixels: batches.append(len(pixels)))
    )
    monkeypatch.setattr(DatasetWriter, "append", noting(DatasetWriter.append, lambda *a: safe.append(a[2])))
    monkeypatch.setattr(pack, "SAFE_EVERY_S", 0)
    packing.pack(tmp_path / "photos.npy", tmp_path / "out.h5", size=16, channels=3, latents=autoencoder, device="cpu")
    assert batches == [7] * 6 + [6] and safe == [7, 14, 21, 28, 35, 42, 48]
    assert len(Dataset(tmp_path / "out.h5", latents=True)) == 48


def noting(method: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    """A method that tells how it is called."""

    def called(*given: Any) -> Any:
        note(*given)
        return method(*given)

    return called


def test_the_fingerprint_tells_what_decides_and_nothing_else(
    autoencoder: Path, make_autoencoder: Callable[..., Path], tmp_path: Path
) -> None:
    def fingerprint(folder: Path = autoencoder, size: int = 16, **options: Any) -> str:
        return json.dumps(LatentEncoder(folder, size, device="cpu", **options).fingerprint)

    moved = Path(shutil.copytree(autoencoder, tmp_path / "moved"))
    assert fingerprint() == fingerprint(moved)
    others = [fingerprint(make_autoencoder(1)), fingerprint(size=32), fingerprint(convention="edm2")]
    others += [fingerprint(mirror=True), fingerprint(precision="bf16")]
    assert len({fingerprint(), *others}) == 6


def test_sizes_and_numbers_that_do_not_fit_are_refused(
    autoencoder: Path, make_autoencoder: Callable[..., Path], photos: np.ndarray
) -> None:
    with pytest.raises(UsageError, match=r"--size 15: .* take a multiple of 2"):
        LatentEncoder(autoencoder, 15, device="cpu")
    with pytest.raises(UsageError, match="this autoencoder has 2"):
        LatentEncoder(make_autoencoder(latent_channels=2), 16, "edm2", device="cpu")
    wild = LatentEncoder(autoencoder, 16, device="cpu")
    wild.autoencoder.model.quant_conv.bias.fill_(1e6)
    with pytest.raises(DataError, match="not finite in float16"):
        wild.rows(list(photos[:2]))


# --- training ---


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_draws_have_the_posteriors_mean_and_deviation(
    convention: str, autoencoder: Path, pack_latents: Callable[..., Path], preset: Path
) -> None:
    path = pack_latents(autoencoder, convention=convention)
    data = Dataset(path, latents=True)
    space = data.latent_space
    assert space is not None and space.input == CONVENTIONS[convention].traits.input
    examples = Batches(data, small(path, preset, batch=48, label_dropout=0.0), CPU)
    moments = data.batch(np.arange(48)).astype(np.float64)
    shift, scale = (np.array(v).reshape(-1, 1, 1) for v in (space.shift, space.scale))
    standard = []
    for step in range(40):
        x, _, labels = examples.at(step)
        assert x.dtype == torch.float32 and x.shape == (48, 4, 8, 8)
        rows = examples.indices(step)
        assert labels is not None and np.array_equal(labels, data.labels[rows])
        standard.append((x.numpy() / scale + shift - moments[rows, :4]) / moments[rows, 4:])
    eta = np.stack(standard)
    assert abs(eta.mean()) < 5e-3 and abs(eta.std() - 1) < 5e-3
    assert np.abs(np.corrcoef(eta[:, :, 0].ravel(), eta[:, :, 1].ravel())[0, 1]) < 0.02


def test_draws_differ_between_epochs_and_are_equal_at_equal_positions(latents: Path, preset: Path) -> None:
    data = Dataset(latents, latents=True)

    def seen(batch: int, steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        examples = Batches(data, small(latents, preset, batch=batch, seed=seed), CPU)
        rows = np.concatenate([examples.indices(step) for step in range(steps)])
        return rows, np.concatenate([examples.at(step)[0].numpy() for step in range(steps)])

    rows, x = seen(16, 6)
    first, second = np.argsort(rows[:48]), 48 + np.argsort(rows[48:])
    assert np.array_equal(rows[first], rows[second])
    assert not (x[first] == x[second]).all(axis=(1, 2, 3)).any()
    assert np.array_equal(x, seen(32, 3)[1]), "the place in the run decides, not the batch"
    assert not np.array_equal(x, seen(16, 6, seed=1)[1])
    alone = Batches(data, small(latents, preset, batch=16), CPU).at(4)[0]
    assert np.array_equal(alone, x[64:80]), "a step needs none before it"


def test_stopping_and_going_on_changes_nothing(latents: Path, preset: Path, run: Path, tmp_path: Path) -> None:
    for steps in (5, 12):
        drain(latents, tmp_path / "pieces", small(latents, preset, steps=steps, preview_every=6))
    saved = [latest(path) for path in (run, tmp_path / "pieces")]
    assert saved[0] is not None and saved[1] is not None
    for name in saved[0].meta.files:
        if name.endswith(".safetensors"):
            assert (saved[0].path / name).read_bytes() == (saved[1].path / name).read_bytes()
    for name in ("losslog.jsonl", "previews/step-00000012.png"):
        assert (run / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes()


def test_the_run_records_the_space_and_the_log_its_dimensions(latents: Path, run: Path) -> None:
    space = Dataset(latents, latents=True).latent_space
    assert space is not None
    assert space.attributes().items() <= read_config(run).data.more.items()
    assert json.loads((run / "losslog.jsonl").read_text().splitlines()[0])["dimensions"] == 8 * 8 * 4


def test_a_changed_space_is_refused_and_a_moved_autoencoder_is_not(
    autoencoder: Path, pack_latents: Callable[..., Path], latents: Path, preset: Path, run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    moved = Path(shutil.copytree(autoencoder, tmp_path / "moved"))
    assert any(
        "done, 12 steps" in line
        for line in drain(pack_latents(moved), copy, small(pack_latents(moved), preset, steps=12, preview_every=6))
    )
    other = pack_latents(autoencoder, convention="edm2")
    with pytest.raises(UsageError, match=r"data latent_input: the run has \[-1,1\], asked for \[0,1\]"):
        drain(other, copy, small(other, preset, steps=12))


def test_flip_is_refused(latents: Path, preset: Path) -> None:
    with pytest.raises(UsageError, match=r"--flip: .*pack both with 'elbo prep --mirror'"):
        small(latents, preset, flip=True)


def test_presets_are_chosen_by_the_size_of_the_latents_and_planned(latents: Path) -> None:
    resolved = settings.resolve({}, Dataset(latents, latents=True))
    assert resolved.settings.preset == "digits"
    planned = plan.plan(resolved)
    assert planned["network"]["channels"] == 4 and planned["network"]["image_size"] == 8
    assert planned["latents"]["latent_convention"] == "diffusers" and planned["latents"]["pixel_size"] == 16


# --- pictures ---


def test_previews_are_decoded(run: Path) -> None:
    with Image.open(run / "previews" / "step-00000012.png") as picture:
        layout = layout_of(picture.info[PLACES], picture.size, run)
        assert (layout.height, layout.width, layout.scale, picture.mode) == (16, 16, 6, "RGB")
        assert np.asarray(picture).std() > 0


def test_without_the_autoencoder_training_asks_for_no_previews(
    autoencoder: Path, pack_latents: Callable[..., Path], preset: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(autoencoder, tmp_path / "moved"))
    path = pack_latents(moved)
    shutil.rmtree(moved)
    with pytest.raises(UsageError, match="--preview-every 0"):
        drain(path, tmp_path / "run", small(path, preset, steps=4, preview_every=1))
    drain(path, tmp_path / "run", small(path, preset, steps=4, preview_every=0))
    assert not (tmp_path / "run" / "previews").exists()


def test_samples_are_pixels_the_same_in_any_batch(run: Path, tmp_path: Path) -> None:
    whole = drawn(run, tmp_path / "a.npy")
    assert whole.dtype == np.uint8 and whole.shape == (6, 16, 16, 3)
    pieces = drawn(run, tmp_path / "b.npy", batch=4)
    assert np.abs(whole.astype(int) - pieces.astype(int)).max() <= 1
    assert (whole == pieces).mean() > 0.99


@pytest.mark.parametrize("clip", ["static", "dynamic"])
def test_latents_have_no_range_to_be_cut_to(clip: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--clip {clip}.*draws latents, which have no range"):
        drawn(run, tmp_path / "a.npy", clip=clip)


def test_latents_of_another_autoencoder_can_not_guide(
    run: Path, make_autoencoder: Callable[..., Path], pack_latents: Callable[..., Path], preset: Path, tmp_path: Path
) -> None:
    other = pack_latents(make_autoencoder(5))
    drain(other, tmp_path / "run", small(other, preset, steps=1))
    with pytest.raises(UsageError, match="knows other images"):
        drawn(run, tmp_path / "a.npy", guide=tmp_path / "run", guidance=Guidance(2.0))
    drawn(run, tmp_path / "a.npy", guide=run / "checkpoints" / "step-00000010", guidance=Guidance(2.0))


def test_samples_are_the_decoded_draws(run: Path, autoencoder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    kept: list[torch.Tensor] = []
    monkeypatch.setattr(draw, "walk", lambda *a: kept.append(walk(*a)) or kept[-1])
    got = drawn(run, tmp_path / "a.npy")
    opened = Autoencoder(autoencoder, CPU)
    with torch.no_grad():
        x = opened.model.decode(kept[-1] / 0.18215).sample
    expected = ((x + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1)
    assert np.abs(got - expected.numpy()).max() <= 0.51


def test_the_autoencoder_is_found_as_given_beside_the_dataset_or_where_it_is_said_to_be(
    run: Path, autoencoder: Path, make_autoencoder: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"] |= {"autoencoder": "vae", "path": str(tmp_path / "data" / "latents.h5"), "from_run": "gone.h5"}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    expected = drawn(run, tmp_path / "0.npy")
    with pytest.raises(UsageError, match=r"vae: the autoencoder .* not there; .* --autoencoder"):
        drawn(copy, tmp_path / "x.npy")
    assert np.array_equal(expected, drawn(copy, tmp_path / "1.npy", autoencoder=autoencoder))
    shutil.copytree(autoencoder, tmp_path / "data" / "vae")
    assert np.array_equal(expected, drawn(copy, tmp_path / "2.npy"))
    shutil.move(tmp_path / "data" / "vae", tmp_path / "here" / "vae")
    monkeypatch.chdir(tmp_path / "here")
    assert np.array_equal(expected, drawn(copy, tmp_path / "3.npy"))
    other = make_autoencoder(5)
    with pytest.raises(DataError) as caught:
        drawn(copy, tmp_path / "x.npy", autoencoder=other)
    assert str(other) in str(caught.value)
    assert not (tmp_path / "x.npy").exists()


def test_a_run_of_pixels_takes_no_autoencoder(trained: Path, autoencoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the run draws pixels"):
        drawn(trained, tmp_path / "x.npy", autoencoder=autoencoder)


def test_a_run_whose_space_is_damaged_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["pixel_size"] = 32
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(FormatError, match="make 32 pixels of the run's 4 channels"):
        drawn(copy, tmp_path / "x.npy")
    del config["data"]["latent_shift"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(FormatError, match=r"config\.yaml: .*latents.*shift"):
        drawn(copy, tmp_path / "x.npy")


# --- the other commands ---


def test_info_describes_latents(latents: Path) -> None:
    about = info.describe(latents)
    assert about["is"] == "elbo-dataset (latents)"
    assert (about["images"], about["size"], about["channels"], about["pixel_size"]) == (48, 8, 4, 16)
    assert about["latent_input"] in INPUTS and about["diffusers_version"]


def test_scores_need_pixels_and_bounds_what_the_run_was_trained_on(
    latents: Path, run: Path, trained: Path, digits: Path
) -> None:
    with pytest.raises(FormatError, match="holds latents, pixels are needed"):
        evaluate([digits], latents, EvalSettings(extractor="elbo-tiny"))
    for path, data in ((run, digits), (trained, latents)):
        with pytest.raises(UsageError, match=r"was not trained on (latents|pixels)"):
            open_measurement(path, data, device="cpu")
