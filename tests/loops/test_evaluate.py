"""Scores: equal to torch-fidelity's own, and honest about what they are."""

import io
import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.sample_writer import npy_header
from elbocli.loops import evaluate
from elbocli.loops.evaluate import Settings

TINY = "frechet_distance[elbo-tiny]"


def result(reports: Generator[Any, None, dict[str, Any]]) -> dict[str, Any]:
    while True:
        try:
            next(reports)
        except StopIteration as end:
            return end.value


def score(samples: Any, ref: Path | None, save: Path | None = None, **settings: Any) -> dict[str, Any]:
    return result(evaluate.run(samples, ref, Settings(**{"extractor": "elbo-tiny", **settings}), save))


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


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of the Inception network, at random."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.manual_seed(0)
    module = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    try:
        FeatureExtractorInceptionV3.__init__(
            module, "inception-v3-compat", ["2048"], feature_extractor_weights_path=io.BytesIO(b"no weights")
        )
    except Exception:
        # Its layers exist before it fails to load them: that is all that is needed here.
        assert hasattr(module, "fc")
    state = module.state_dict()
    for name, value in state.items():
        if value.dtype.is_floating_point and value.dim() > 1:
            state[name] = torch.randn_like(value) * math.sqrt(2 / value[0].numel())
    state["fc.weight"] *= 8
    torch.save(state, path)
    return path


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
    )
    name = "inception-v3-compat"
    assert ours[f"frechet_distance[{name}]"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours[f"inception_score_mean[{name}]"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours[f"inception_score_std[{name}]"] == pytest.approx(theirs["inception_score_std"], rel=1e-6, abs=1e-9)
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
        batch=16,
    )
    return path


def test_a_set_is_at_no_distance_from_itself_and_far_from_noise(digits: Path, tmp_path: Path) -> None:
    assert abs(score(digits, digits)[TINY]) < 1e-6
    noise = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
    assert score(save_npy(tmp_path / "n.npy", noise), digits)[TINY] > 1


def test_the_distance_of_known_gaussians() -> None:
    draw = np.random.default_rng(0)
    from elbocli.files.statistics import Statistics

    a = draw.standard_normal((5, 5))
    sigma = a @ a.T
    mu = draw.standard_normal(5)
    assert evaluate._frechet(mu, sigma, Statistics(mu + 2, 4 * sigma)) == pytest.approx(20 + np.trace(sigma), rel=1e-9)


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
    with pytest.raises(DataError, match="8 pixels, the samples have 16"):
        score(large, tmp_path / "ref.npz")
    with pytest.raises(DataError, match="same --size"):
        score(large, digits)
    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(DataError, match="7 features, but elbo-tiny has 64"):
        score(digits, tmp_path / "other.npz")


def test_too_few_images_are_refused_by_metric(digits: Path, tmp_path: Path) -> None:
    for count, metrics in ((1, ("fid",)), (9, ("is",))):
        path = save_npy(tmp_path / f"{count}.npy", np.zeros((count, 8, 8, 1), np.uint8))
        with pytest.raises(DataError, match="needs at least"):
            score(path, digits, metrics=metrics)
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


def test_memory_does_not_grow_with_the_stream(digits: Path) -> None:
    import tracemalloc

    class Zeros(io.RawIOBase):
        """An endless stream of images after a header."""

        def __init__(self, count: int):
            self.header = io.BytesIO(npy_header((count, 64, 64, 3)))

        def read(self, size: int = -1) -> bytes:
            return self.header.read(size)

        def readinto(self, buffer: Any) -> int:
            return len(buffer)

    def peak(count: int) -> int:
        tracemalloc.start()
        score(Zeros(count), None, metrics=("is",))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(2000) < peak(200) + 8_000_000
