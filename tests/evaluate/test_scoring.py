"""Scores: equal to torch-fidelity's own, and honest about what they are."""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch_fidelity
from msgspec import structs
from PIL import Image
from safetensors.torch import save_file

from elbocli.core.metrics import METRICS, asked
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.evaluate import scoring
from elbocli.evaluate.result import EvalResult, score_card
from elbocli.evaluate.settings import EvalSettings
from elbocli.files.dataset import Dataset
from elbocli.files.features import SavedFeatures, read_features, read_statistics, write_features, write_statistics
from elbocli.files.sample_files import npy_header
from elbocli.nn.extractors import make_extractor
from elbocli.nn.extractors.vit import Tiny
from elbocli.sample import draw as sample

TINY, SPREAD = "frechet_distance[elbo-tiny]", "frechet_distance_sd[elbo-tiny]"


METRIC_OPTIONS = {own.name for metric in METRICS.values() for own in metric.traits.options}


def found_of(samples: Any, ref: Path | None, save: Path | None = None, **settings: Any) -> EvalResult:
    """Of one or several. Options of metrics are told from other settings by their names."""
    options = {key: settings.pop(key) for key in list(settings) if key in METRIC_OPTIONS}
    metrics = asked(settings.pop("metrics", ("fid", "is")), settings.get("seed", 0), **options)
    chosen = EvalSettings(**{"extractor": "elbo-tiny", "save_stats": save, "metrics": metrics, **settings})
    found = scoring.run(samples if isinstance(samples, list) else [samples], ref, chosen)
    assert found is not None
    return found


def score(samples: Any, ref: Path | None, save: Path | None = None, **settings: Any) -> dict[str, Any]:
    """The same, as JSON; which reads back as it was."""
    found = found_of(samples, ref, save, **settings)
    text = json.dumps(found.json(), allow_nan=False)
    assert json.dumps(EvalResult.of(json.loads(text)).json()) == text
    return json.loads(text)  # type: ignore[no-any-return]


def save_npy(path: Path, images: np.ndarray) -> Path:
    np.save(path, images)
    return path


class Images(torch.utils.data.Dataset[torch.Tensor]):
    """What calculate_metrics takes: uint8 [3, H, W]."""

    def __init__(self, images: np.ndarray):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


@pytest.mark.slow
def test_fid_and_is_equal_torch_fidelitys_own(inception_weights: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    base = draw.integers(0, 256, (2, 24, 4, 4, 3), np.uint8)
    images = np.kron(base, np.ones((1, 1, 4, 4, 1), np.uint8))
    images[1] = images[1] // 2 + 40
    ours = score(
        save_npy(tmp_path / "a.npy", images[0]),
        save_stats(tmp_path, images[1], inception_weights),
        extractor="inception-v3-compat",
        extractor_weights=inception_weights,
        batch=16,
    )
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(images[0]),
        input2=Images(images[1]),
        fid=True,
        isc=True,
        feature_extractor_weights_path=str(inception_weights),
        batch_size=16,
        cuda=False,
        verbose=False,
        cache=False,
        save_cpu_ram=True,
    )
    name = "inception-v3-compat"
    assert ours[f"frechet_distance[{name}]"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours[f"inception_score_mean[{name}]"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert ours[f"inception_score_std[{name}]"] == pytest.approx(theirs["inception_score_std"], rel=1e-3, abs=1e-6)
    assert theirs["inception_score_mean"] > 1.0001
    assert "frechet_inception_distance" not in ours and "fid" not in ours


def save_stats(folder: Path, images: np.ndarray, weights: Path) -> Path:
    path = folder / "ref.npz"
    score(
        save_npy(folder / "ref.npy", images),
        None,
        path,
        metrics=("fid",),
        extractor="inception-v3-compat",
        extractor_weights=weights,
        batch=8,
    )
    return path


def test_a_set_is_at_no_distance_from_itself_and_far_from_noise(digits: Path, tmp_path: Path) -> None:
    assert abs(score(digits, digits)[TINY]) < 1e-6
    noise = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
    assert score(save_npy(tmp_path / "n.npy", noise), digits)[TINY] > 1


@pytest.mark.parametrize("batch", [1, 7, 300])
def test_the_batch_changes_nothing(batch: int, digits: Path, tmp_path: Path) -> None:
    images = Dataset(digits).batch(np.arange(100))
    path = save_npy(tmp_path / "a.npy", images)
    assert score(path, digits, batch=batch)[TINY] == pytest.approx(score(path, digits)[TINY], rel=1e-6)


def test_saved_statistics_stand_for_their_dataset(digits: Path, tmp_path: Path) -> None:
    images = save_npy(tmp_path / "a.npy", Dataset(digits).batch(np.arange(100)))
    saved = score(digits, None, tmp_path / "ref.npz", metrics=("fid",))
    assert saved["n_samples"] == 300
    assert score(images, tmp_path / "ref.npz")[TINY] == pytest.approx(score(images, digits)[TINY], rel=1e-9)
    with np.load(tmp_path / "ref.npz") as archive:
        np.savez(tmp_path / "adm.npz", mu=archive["mu"], sigma=archive["sigma"])
    assert score(images, tmp_path / "adm.npz")[TINY] == pytest.approx(score(images, digits)[TINY], rel=1e-9)


def test_a_reference_that_does_not_fit_is_refused(digits: Path, tmp_path: Path) -> None:
    score(digits, None, tmp_path / "ref.npz", metrics=("fid",))
    large = save_npy(tmp_path / "large.npy", np.zeros((20, 16, 16, 1), np.uint8))
    for ref in (tmp_path / "ref.npz", digits):
        with pytest.raises(DataError, match=f"{ref.name}: image_size is 8, .*large.npy 16.*--allow-mismatch"):
            score(large, ref)
    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(DataError, match="64 features an image"):
        score(digits, tmp_path / "other.npz")


def test_without_a_reference_there_is_no_fid(digits: Path) -> None:
    with pytest.raises(UsageError, match="fid needs --ref"):
        score(digits, None)


def test_a_stream_that_ends_early_says_how_far_it_came(digits: Path) -> None:
    whole = npy_header((50, 8, 8, 1)) + bytes(64 * 50)
    with pytest.raises(DataError, match="ended after 31 of 50 images"):
        score(io.BytesIO(whole[: -64 * 19 + 5]), digits)


def test_accuracy_needs_labels_and_counts_them(digits: Path, tmp_path: Path) -> None:
    path = save_npy(tmp_path / "a.npy", Dataset(digits).batch(np.arange(40)))
    with pytest.raises(UsageError, match="needs labels"):
        score(path, None, metrics=("accuracy",))
    by_class = [score(path, None, metrics=("accuracy",), classes=str(c))["accuracy"] for c in range(10)]
    assert sum(by_class) == pytest.approx(1)


@pytest.mark.parametrize("name", ["u.h5", "u.npz"])
def test_samples_of_a_run_without_classes_have_no_accuracy(
    name: str, digits: Path, preset: Path, tmp_path: Path, elbo: Any
) -> None:
    line = ("train", "-q", digits, "-o", tmp_path / "run", "--preset", preset, "--steps", 2, "--unconditional")
    assert elbo(*line).returncode == 0
    sample.draw_samples(tmp_path / "run", tmp_path / name, sample.SampleSettings(n=12, steps=2))
    with pytest.raises(UsageError, match="accuracy needs labels: samples of several classes"):
        score(tmp_path / name, digits, metrics=("accuracy",))
    assert "classes" not in score(tmp_path / name, digits, metrics=("is",))


@pytest.mark.parametrize("labels", [np.arange(40), np.arange(40) % 10 - 1, np.full(40, 10)])
def test_labels_of_classes_that_the_network_does_not_know_are_refused(
    labels: np.ndarray, digits: Path, tmp_path: Path
) -> None:
    images, saved = Dataset(digits).batch(np.arange(40)), tmp_path / "s.safetensors"
    np.savez(tmp_path / "s.npz", images, labels)
    score(tmp_path / "s.npz", None, metrics=("is",), save_features=saved)
    for path in (tmp_path / "s.npz", saved):
        told = rf"{path.name}: labels from {labels.min()} to {labels.max()}, but the network tells classes 0 to 9"
        with pytest.raises(DataError, match=told):
            score(path, None, metrics=("accuracy",), extractor="elbo-tiny" if path != saved else "")


def named(folder: Path, digits: Path, names: list[str]) -> Path:
    """The digits under other names of classes."""
    path = Path(shutil.copy(digits, folder / "named.h5"))
    with h5py.File(path, "r+") as file:
        del file["class_names"]
        file["class_names"] = names
    return path


def test_a_stream_is_scored_by_the_classes_that_it_was_drawn_with(digits: Path, tmp_path: Path) -> None:
    """By names, and by the number of classes of the reference rather than of the network."""
    ref = named(tmp_path, digits, ["zero", "one", "two", *"3456789"])
    path = save_npy(tmp_path / "a.npy", Dataset(digits).batch(np.arange(40)))
    np.savez(tmp_path / "a.npz", Dataset(digits).batch(np.arange(40)), np.resize([2, 0, 7], 40))
    expected = score(tmp_path / "a.npz", ref, metrics=("accuracy", "fid"))
    found = score(path, ref, metrics=("accuracy", "fid"), classes="two,0,7")
    assert found["accuracy"] == expected["accuracy"] > 0
    assert (found["classes"], found["most_of_a_class"]) == (3, 14) == (expected["classes"], expected["most_of_a_class"])
    assert score(path, named(tmp_path, digits, [*"abcdefghijkl"]), metrics=("accuracy",), classes="3")["accuracy"] >= 0
    with pytest.raises(DataError, match="labels from 0 to 11, but the network tells classes 0 to 9"):
        score(path, named(tmp_path, digits, [*"abcdefghijkl"]), metrics=("accuracy",), classes="balanced")


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        ("two", None, "two"),
        ("10", [*"0123456789"], "10"),
        ("Cats", ["cat", *"123456789"], "did you mean cat"),
        ("1", [*"1023456789"], "2 of 10 classes; write 01"),
    ],
)
def test_classes_that_mean_nothing_are_refused(
    classes: str, names: list[str] | None, message: str, digits: Path, tmp_path: Path
) -> None:
    path = save_npy(tmp_path / "a.npy", Dataset(digits).batch(np.arange(40)))
    with pytest.raises(UsageError, match=message):
        score(path, names and named(tmp_path, digits, names), metrics=("accuracy",), classes=classes)


def test_memory_does_not_grow_with_the_stream(digits: Path) -> None:
    import tracemalloc

    class Zeros(io.RawIOBase):
        """An endless stream of images after a header."""

        def __init__(self, count: int):
            self.header = io.BytesIO(npy_header((count, 64, 64, 3)))

        def read(self, size: int = -1) -> bytes:
            return self.header.read(size) or bytes(size)

        def readinto(self, buffer: Any) -> int:
            return len(buffer)

    def peak(count: int) -> int:
        tracemalloc.start()
        score(Zeros(count), None, metrics=("is",))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(2000) < peak(200) + 8_000_000


# Saved features


def test_saved_features_stand_for_their_images(digits: Path, tmp_path: Path) -> None:
    """Every metric, with no network: on both sides, and for labels and facts."""
    images = tmp_path / "a.npz"
    about = {"sampler": "heun", "steps": 4, "seed": 7}
    labels = np.arange(120) % 10
    np.savez(images, Dataset(digits).batch(np.arange(100, 220)), labels, about=np.array(json.dumps(about)))
    metrics = ("fid", "is", "kid", "prc", "accuracy")
    options = {"metrics": metrics, "kid_subset_size": 50, "fid_infinity": True}
    saved, other = tmp_path / "a.safetensors", tmp_path / "ref.safetensors"
    plain = score(images, digits, save_features=saved, **options)
    score(digits, None, metrics=("fid",), save_features=other)
    assert plain["made"] == about and (plain["classes"], plain["fewest_of_a_class"], plain["most_of_a_class"]) == (
        10,
        12,
        12,
    )
    again = score(saved, other, extractor="", **options)
    assert set(again) == set(plain)
    for key in set(plain) - {"samples", "ref"}:
        assert again[key] == (pytest.approx(plain[key], rel=1e-9) if isinstance(plain[key], float) else plain[key]), key
    mixed = score(images, other, extractor="", **options)
    assert mixed[TINY] == pytest.approx(plain[TINY], rel=1e-9), "images take the network that saved features are of"


def test_features_of_another_network_or_size_are_refused(digits: Path, tmp_path: Path) -> None:
    saved = tmp_path / "f.safetensors"
    score(digits, None, metrics=("fid",), save_features=saved)
    read = read_features(saved)
    write_features(saved, read._replace(about=structs.replace(read.about, weights_sha256="0" * 64)))
    with pytest.raises(DataError, match=r"f\.safetensors: weights_sha256 is 0+, that of .*--allow-mismatch"):
        score(digits, saved)


# References


def features_of(images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        extractor = make_extractor("elbo-tiny", None, "cpu")
        return extractor(torch.from_numpy(images).permute(0, 3, 1, 2))[0].numpy().astype(np.float64)


def adm(path: Path, images: np.ndarray, features: np.ndarray) -> Path:
    """As guided-diffusion's reference batches: statistics by numpy.cov, spatial ones, and images beside them."""
    mu, sigma = features.mean(0), np.cov(features, rowvar=False)
    np.savez(path, images, mu=mu, sigma=sigma, mu_s=np.zeros(9), sigma_s=np.eye(9))
    return path


def edm(path: Path, images: np.ndarray, features: np.ndarray) -> Path:
    """As EDM's: sums in double precision, the covariance over n - 1."""
    mu = features.sum(0) / len(features)
    sigma = (features.T @ features - np.outer(mu, mu) * len(features)) / (len(features) - 1)
    np.savez(path, mu=mu, sigma=sigma)
    return path


@pytest.mark.parametrize("layout", [adm, edm])
def test_statistics_of_adm_and_edm_give_the_fid_of_their_images(layout: Any, digits: Path, tmp_path: Path) -> None:
    images = Dataset(digits).batch(np.arange(300))
    rgb = np.repeat(images, 3, 3)
    ref = layout(tmp_path / "ref.npz", rgb, features_of(rgb))
    half = save_npy(tmp_path / "half.npy", rgb[:150] // 2)
    found = score(half, ref)
    assert (
        found[TINY] == pytest.approx(score(half, save_npy(tmp_path / "rgb.npy", rgb))[TINY], abs=1e-4)
        and found[TINY] > 1
    )
    assert found["ref_sha256"] == hashlib.sha256(ref.read_bytes()).hexdigest()


def test_images_beside_statistics_serve_what_needs_features(digits: Path, tmp_path: Path) -> None:
    """As in ADM's reference batches: FID by the statistics, precision by the images."""
    rgb = np.repeat(Dataset(digits).batch(np.arange(300)), 3, 3)
    ref = adm(tmp_path / "adm.npz", rgb[:100], features_of(rgb))
    half = save_npy(tmp_path / "half.npy", rgb[100:] // 2)
    metrics = {"metrics": ("fid", "prc")}
    both = score(half, ref, **metrics)
    whole, part = save_npy(tmp_path / "w.npy", rgb), save_npy(tmp_path / "p.npy", rgb[:100])
    assert both[TINY] == pytest.approx(score(half, whole, **metrics)[TINY], rel=1e-9)
    assert (both["n_ref"], both["n_ref_images"]) == (None, 100)
    assert both["ref_preprocessing"] == {"image_size": 8, "channels": 3}
    assert "images for KID, precision and recall: 100\n" in score_card(EvalResult.of(both))
    for key in ("precision[elbo-tiny]", "recall[elbo-tiny]"):
        assert both[key] == score(half, part, **metrics)[key]
    with pytest.raises(UsageError, match="kid needs the reference's images"):
        score(half, edm(tmp_path / "edm.npz", rgb, features_of(rgb)), metrics=("fid", "kid"))


def test_a_mismatch_passes_when_allowed_and_is_named(digits: Path, tmp_path: Path) -> None:
    score(digits, None, tmp_path / "ref.npz", metrics=("fid",))
    statistics = read_statistics(tmp_path / "ref.npz")
    assert statistics.about.preprocessing == {
        "image_size": 8,
        "channels": 1,
        "crop": "center",
        "filter": "box, bicubic",
    }
    other = {**statistics.about.preprocessing, "crop": "none", "filter": "lanczos"}
    write_statistics(
        tmp_path / "ref.npz", statistics._replace(about=structs.replace(statistics.about, preprocessing=other))
    )
    with pytest.raises(DataError, match=r"crop is none, .*filter is lanczos"):
        score(digits, tmp_path / "ref.npz")
    allowed = score(digits, tmp_path / "ref.npz", allow_mismatch=True)
    assert allowed["mismatch"] == {"crop": ["center", "none"], "filter": ["box, bicubic", "lanczos"]}
    assert "mismatch" not in score(
        save_npy(tmp_path / "a.npy", Dataset(digits).batch(np.arange(20))), tmp_path / "ref.npz"
    )


@pytest.mark.parametrize("name", ["s.h5", "s.npz"])
def test_samples_know_how_the_images_were_made_that_their_run_has_seen(
    name: str, trained: Path, digits: Path, digits_folder: Path, tmp_path: Path, elbo: Any
) -> None:
    assert elbo("sample", "-q", trained, "-n", 12, "--steps", 2, "-o", tmp_path / name).returncode == 0
    assert "mismatch" not in score(tmp_path / name, digits)
    other = ("--size", 8, "--channels", 1, "--crop", "resize", "--limit", 20)
    assert elbo("prep", "-q", digits_folder, tmp_path / "ref.h5", *other).returncode == 0
    with pytest.raises(DataError, match=rf"ref\.h5: crop is resize, that of .*{name} center"):
        score(tmp_path / name, tmp_path / "ref.h5")


def test_merged_samples_know_how_all_of_them_were_drawn(
    trained: Path, digits: Path, digits_folder: Path, tmp_path: Path, elbo: Any
) -> None:
    for seed in (4, 2):
        settings = sample.SampleSettings(n=12, steps=2, seed=seed, command=f"elbo sample --seed {seed}")
        sample.draw_samples(trained, tmp_path / f"{seed}.h5", settings)
    assert elbo("merge", "-q", tmp_path / "s.h5", tmp_path / "4.h5", tmp_path / "2.h5").returncode == 0
    found = score(tmp_path / "s.h5", digits)
    assert (found["made"]["seed"], found["made"]["steps"], found["made"]["crop"]) == ([4, 2], 2, "center")
    card = score_card(EvalResult.of(found))
    assert "- seed: 4, 2\n" in card and "- samples: `elbo sample --seed 4`, `elbo sample --seed 2`\n" in card
    other = ("--size", 8, "--channels", 1, "--crop", "resize", "--limit", 20)
    assert elbo("prep", "-q", digits_folder, tmp_path / "ref.h5", *other).returncode == 0
    with pytest.raises(DataError, match=r"ref\.h5: crop is resize, that of .*s\.h5 center"):
        score(tmp_path / "s.h5", tmp_path / "ref.h5")


@pytest.mark.parametrize("text", ['{"crop": "center", "cl …', '{"seed": 1} + {"seed": 2}', "[1]", "3"])
def test_samples_whose_description_is_unreadable_are_refused(text: str, digits: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(digits, tmp_path / "s.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["samples"] = text
    with pytest.raises(FormatError, match=r"s\.h5: "):
        score(path, digits)


def test_samples_of_a_long_list_of_classes_know_it_whole(trained: Path, tmp_path: Path) -> None:
    classes = ",".join(str(k % 10) for k in range(40_000))
    settings = sample.SampleSettings(n=12, steps=2, classes=classes, command=f"elbo sample --classes {classes}")
    sample.draw_samples(trained, tmp_path / "s.h5", settings)
    made = score(tmp_path / "s.h5", None, metrics=("accuracy",))["made"]
    assert (made["classes"], made["command"]) == (classes, settings.command)


def test_only_the_published_network_on_a_like_reference_has_the_published_names(digits: Path, tmp_path: Path) -> None:
    saved = tmp_path / "f.safetensors"
    score(digits, None, metrics=("fid",), save_features=saved)
    read = read_features(saved)
    published = structs.replace(read.about, extractor="inception-v3-compat", weights_sha256="6726825d" + "0" * 56)
    write_features(saved, read._replace(about=published))
    found = score(saved, saved, metrics=("fid", "prc"), extractor="")
    assert found["fid"] == found["frechet_inception_distance"] and found["fid_se"] >= 0 and found["precision"] == 1
    write_features(
        tmp_path / "g.safetensors", read._replace(about=structs.replace(published, preprocessing={"image_size": 9}))
    )
    with pytest.raises(DataError, match="image_size is 9"):
        score(saved, tmp_path / "g.safetensors", extractor="")
    unlike = score(saved, tmp_path / "g.safetensors", metrics=("fid",), extractor="", allow_mismatch=True)
    assert "fid" not in unlike and "frechet_distance[inception-v3-compat]" in unlike


def test_what_features_do_not_say_is_not_known_and_what_they_say_wrongly_is_refused(
    digits: Path, tmp_path: Path
) -> None:
    path, held = tmp_path / "f.safetensors", {"features": torch.randn(30, 64), "logits": torch.randn(30, 10)}
    write_features(path, SavedFeatures(**held))
    found = score(path, digits, metrics=("fid", "is"), allow_mismatch=True)
    assert found["n_samples"] == 30 and found["made"] == {}
    assert "not known" in score_card(EvalResult.of(found))
    for key, value in {"n": "many", "preprocessing": 3, "made": ["x"], "extractor": ["y"]}.items():
        save_file(held, path, {"format": "elbo-features", "version": "1", "about": json.dumps({key: value})})
        with pytest.raises(FormatError, match=rf"f\.safetensors: about: .*{key}"):
            score(path, digits, metrics=("fid", "is"), allow_mismatch=True)


# What can't be scored


def test_too_few_images_are_refused_by_every_metric(digits: Path, tmp_path: Path) -> None:
    many = save_npy(tmp_path / "many.npy", Dataset(digits).batch(np.arange(70)))
    options = {"kid_subset_size": 50, "splits": 4}
    for name, metric in METRICS.items():
        for side, needed in enumerate(metric.traits.least(asked([name], **options)[name])):
            if needed > 1:
                few = save_npy(tmp_path / f"few-{name}-{side}.npy", np.zeros((needed - 1, 8, 8, 1), np.uint8))
                sets = [few if at == side else many for at in range(3)]
                with pytest.raises(
                    DataError, match=rf"{few.name}: {needed - 1} images; --metrics {name} needs at least {needed}"
                ):
                    score(*sets[:2], metrics=(name,), held_out=sets[2], **options)
    with pytest.raises(DataError, match="19 images; --metrics fid needs at least 20"):
        score(save_npy(tmp_path / "19.npy", np.zeros((19, 8, 8, 1), np.uint8)), many, fid_infinity=True)
    with pytest.raises(DataError, match="--metrics is needs at least 10"):
        score(save_npy(tmp_path / "9.npy", np.zeros((9, 8, 8, 1), np.uint8)), many, metrics=("is",))
    with pytest.raises(DataError, match="one image is no distribution"):
        score(
            save_npy(tmp_path / "1.npy", np.zeros((1, 8, 8, 1), np.uint8)), None, tmp_path / "s.npz", metrics=("fid",)
        )


def test_features_that_are_not_finite_name_the_image(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Tiny.forward

    def nan_for_black(self: Tiny, images: torch.Tensor) -> Any:
        values, logits = whole(self, images)
        return torch.where((images > 0).flatten(1).any(1)[:, None], values, torch.nan), logits

    monkeypatch.setattr(Tiny, "forward", nan_for_black)
    images = Dataset(digits).batch(np.arange(50))
    images[17] = 0
    with pytest.raises(DataError, match=r"a\.npy: features of image 17 are not finite"):
        score(save_npy(tmp_path / "a.npy", images), digits, batch=8)


def test_what_is_no_images_is_refused(digits: Path, tmp_path: Path) -> None:
    for stream, what in ((b"", "not an NPY stream"), (npy_header((0, 8, 8, 1)), "N > 0")):
        with pytest.raises(FormatError, match=f"standard input: .*{what}"):
            score(io.BytesIO(stream), digits)
    for dtype in (np.float32, np.uint16):
        with pytest.raises(FormatError, match=rf"a\.npy: holds {np.dtype(dtype)} .*expected uint8"):
            score(save_npy(tmp_path / "a.npy", np.zeros((20, 8, 8, 3), dtype)), digits)


def test_the_first_image_of_another_size_is_named(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for k, size in enumerate([8] * 15 + [9, 8, 10]):
        Image.fromarray(np.zeros((size, size), np.uint8)).save(folder / f"{k:02d}.png")
    with pytest.raises(DataError, match=r"15\.png: .*00\.png.*elbo prep"):
        score(folder, digits, batch=4)


def test_a_network_without_logits_has_no_inception_score(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "f.safetensors"
    score(digits, None, metrics=("fid",), save_features=saved)
    write_features(saved, read_features(saved)._replace(logits=None))
    with pytest.raises(UsageError, match="no logits, which is needs"):
        score(saved, saved, extractor="")
    monkeypatch.setattr(Tiny, "forward", lambda self, images: images.float().flatten(1)[:, :64])
    with pytest.raises(UsageError, match="no logits, which is needs"):
        score(digits, digits, batch=1)
    with pytest.raises(UsageError, match="is defined for --extractor inception-v3-compat"):
        score(digits, digits, metrics=("prc",), prc_protocol="adm")


def test_few_images_are_warned_of_and_why(digits: Path, caplog: pytest.LogCaptureFixture) -> None:
    def warned(metrics: tuple[str, ...], **options: Any) -> str:
        settings = EvalSettings(metrics=asked(metrics, kid_subset_size=50, **options), extractor="elbo-tiny")
        caplog.clear()
        scoring.run([digits], digits, settings)
        return " ".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")

    assert "300 images, below 10000: FID is biased upwards" in warned(("fid",))
    assert "Inception score is biased downwards" in warned(("fid", "is"))
    assert warned(("kid",)) == ""
    assert "no interval" not in warned(("fid",), fid_infinity=True), "300 images, 64 features"


# Repeats


def repeats(folder: Path, digits: Path, **about: Any) -> list[Path]:
    paths = []
    for seed in range(3):
        paths.append(folder / f"{seed}.npz")
        facts = {"sampler": "heun", "seed": seed, **{key: values[seed] for key, values in about.items()}}
        np.savez(paths[-1], Dataset(digits).batch(np.arange(seed, 300, 3)), about=np.array(json.dumps(facts)))
    return paths


def test_of_repeats_the_mean_and_the_spread_are_told_never_the_best(digits: Path, tmp_path: Path) -> None:
    paths = repeats(tmp_path, digits)
    alone = [score(path, digits) for path in paths]
    found = score(paths, digits)
    column = [one[TINY] for one in alone]
    assert found[TINY] == pytest.approx(np.mean(column), rel=1e-12)
    assert found[SPREAD] == pytest.approx(np.std(column, ddof=1), rel=1e-12) and found[SPREAD] > 0
    assert [one[TINY] for one in found["repeats"]] == column
    assert found["made"] == {"sampler": "heun"} and [one["made"]["seed"] for one in found["repeats"]] == [0, 1, 2]
    assert found["n_samples"] == 100 and "samples" not in found and found["repeats"][2]["samples"] == str(paths[2])
    assert "command" in found and "samples_sha256" in found["repeats"][0]


def test_what_are_no_repeats_is_refused_or_warned_of(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = repeats(tmp_path, digits, steps=[8, 8, 9])
    with pytest.raises(DataError, match="the same images; repeats must be drawn with other seeds"):
        score([paths[0], paths[1], paths[0]], digits)
    fewer = save_npy(tmp_path / "b.npy", Dataset(digits).batch(np.arange(30)))
    with pytest.raises(DataError, match=r"b\.npy: n is 30, that of .*0\.npz 100"):
        score([paths[0], fewer], digits)
    with pytest.raises(UsageError, match="take one set of samples"):
        score(paths, digits, tmp_path / "s.npz")
    settings = EvalSettings(extractor="elbo-tiny")
    scoring.run(paths, digits, settings)
    assert "differ in more than the seed: steps" in caplog.text
    caplog.clear()
    scoring.run(paths[:2], digits, settings)
    assert "seed" not in caplog.text
    cropped = repeats(tmp_path, digits, crop=["center", "none", "center"])
    with pytest.raises(DataError, match=r"1\.npz: crop is none, .*such scores have no common mean"):
        score(cropped, digits, allow_mismatch=True)


def test_a_mismatch_of_any_repeat_stands_at_the_top(digits: Path, tmp_path: Path) -> None:
    """One that knows its crop, after one that doesn't: the mean bears no published name, and all that is shown says so."""
    images = Dataset(digits).batch(np.arange(200))
    paths = [save_npy(tmp_path / "0.npy", images[:100]), tmp_path / "1.npz"]
    np.savez(paths[1], images[100:], np.arange(100) % 10, about=np.array(json.dumps({"crop": "none"})))
    found = score(paths, digits, allow_mismatch=True)
    assert found["mismatch"] == {"crop": ["none", "center"]} and found[TINY] > 0
    card = score_card(EvalResult.of(found))
    assert "compare with no others**: `crop` `none` against `center`" in card
    assert "- classes: 10, each with 10 to 10 images\n" in card, "of the repeat that knows"


def test_the_network_of_saved_features_has_to_be_named_where_it_is_a_file(digits: Path, tmp_path: Path) -> None:
    saved = tmp_path / "f.safetensors"
    score(digits, None, metrics=("fid",), save_features=saved)
    write_features(
        saved, read_features(saved)._replace(about=structs.replace(read_features(saved).about, extractor="mine.pt2"))
    )
    with pytest.raises(UsageError, match=r"f\.safetensors is of mine\.pt2: name it with --extractor"):
        score(digits, saved, extractor="")


def test_what_is_drawn_by_a_seed_names_it(digits: Path) -> None:
    assert score(digits, digits, fid_infinity=True, metrics=("fid",), seed=3)["seed"] == 3
    assert "seed" not in score(digits, digits, metrics=("fid",), seed=3)
