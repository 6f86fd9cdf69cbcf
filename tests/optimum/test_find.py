"""The search over a dataset's images: exact, by a sample, within its memory, and below every network's error."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from elbocli.core.adaptive import ErrorMoments
from elbocli.core.optimum import excess_by_bin
from elbocli.files.dataset import Dataset, DatasetAttributes
from elbocli.files.losslog import Optimum, read_logs
from elbocli.optimum import find
from elbocli.optimum.find import Search, open_search

SETTINGS: dict[str, Any] = {"logsnr_min": -8, "logsnr_max": 8, "bins": 16, "sources": 300, "sample": 0}


def searched(dataset: Any, **settings: Any) -> Optimum:
    return find.find_optimum(Search(dataset, np.arange(len(dataset)), **{**SETTINGS, **settings}))


class Images:
    """A dataset in memory: levels [N, H, W, C]."""

    path = Path("images.h5")

    def __init__(self, levels: np.ndarray, labels: np.ndarray | None = None):
        self.levels, self.shape = levels, levels.shape
        self.labels = np.zeros(len(levels), np.int64) if labels is None else labels
        self.attributes = DatasetAttributes()
        self.largest = 0

    def __len__(self) -> int:
        return len(self.levels)

    def batch(self, rows: np.ndarray) -> np.ndarray:
        self.largest = max(self.largest, len(rows))
        return self.levels[rows]


def random_images(count: int, side: int = 2, seed: int = 0) -> Images:
    return Images(np.random.default_rng(seed).integers(0, 256, (count, side, side, 1), np.uint8))


@pytest.mark.parametrize("conditional", [False, True])
def test_half_the_integral_is_the_entropy_of_the_images(conditional: bool) -> None:
    """I-MMSE, on a range that holds all of it: log N, or what the classes leave open."""
    images = random_images(60)
    images.labels = np.arange(60) % 4
    found = searched(images, logsnr_min=-16, logsnr_max=12, bins=140, sources=60, conditional=conditional)
    assert found.log_images == pytest.approx(math.log(15 if conditional else 60))
    assert abs(found.nats - found.log_images) < 4 * found.nats_se and 0 < found.nats_se < 0.3


def test_the_sample_is_unbiased_within_its_error(digits: Path) -> None:
    """40 seeds against all images and many draws: their mean, and how far each is off in its own errors."""
    dataset = Dataset(digits)
    exact = np.array([searched(dataset, seed=100 + seed).eps_mse for seed in range(12)])
    truth, truth_se = exact.mean(0), exact.std(0, ddof=1) / math.sqrt(12)
    results = [searched(dataset, seed=seed, sources=64, sample=60) for seed in range(40)]
    checks = [each.sample for each in results if each.sample is not None]
    assert [(each.images, each.sources) for each in checks] == [(60, 32)] * 40
    found, errors = (np.array([getattr(each, key) for each in results]) for key in ("eps_mse", "eps_mse_se"))
    shown = truth > 1e-3  # beyond, a draw in a hundred makes all of it
    mean_se = np.hypot(found.std(0, ddof=1) / math.sqrt(40), truth_se)
    assert (np.abs(found.mean(0) - truth)[shown] / mean_se[shown]).max() < 3.5
    spread = found.std(0, ddof=1)[shown] / np.sqrt((errors[:, shown] ** 2).mean(0))
    assert spread.min() > 0.3 and spread.max() < 1.3, "the error that each says is the one that they have"
    assert np.mean([each.bias for each in checks], 0).min() < -3e-3, "without the check it would be too small"


def test_intervals_hold_the_least_error_in_every_bin() -> None:
    """60 seeds, also where one draw in a thousand, or none, confuses two images: there the sample shows no error."""
    images = random_images(60)
    exact = np.array([searched(images, sources=60, seed=1000 + seed).eps_mse for seed in range(200)])
    truth, truth_se = exact.mean(0), exact.std(0, ddof=1) / math.sqrt(200)
    results = [searched(images, sources=60, seed=seed) for seed in range(60)]
    found, errors = (np.array([getattr(each, key) for each in results]) for key in ("eps_mse", "eps_mse_se"))
    inside = np.abs(found - truth) < 1.96 * np.hypot(errors, truth_se)
    assert inside.mean(0).min() > 0.85
    assert errors[:, -1].max() < 0.01 * errors.max(), "where no images are confused it is next to nothing"


def test_mirror_images_count(digits: Path) -> None:
    """As if they had been packed, too."""
    levels = Dataset(digits).batch(range(40))
    both = Images(np.concatenate([levels, levels[:, :, ::-1]]))
    flipped = searched(Images(levels), flip=True, sources=40)
    packed = searched(both, sources=80)
    assert flipped.images == packed.images == 80 and flipped.log_images == packed.log_images
    error = np.hypot(flipped.eps_mse_se, packed.eps_mse_se) + 1e-12
    assert np.abs((np.array(flipped.eps_mse) - packed.eps_mse) / error).max() < 4.5


def test_the_size_of_blocks_changes_nothing_but_the_memory() -> None:
    images = random_images(100, 3)
    whole, small = (searched(images, sources=20, batch=batch) for batch in (100, 7))
    np.testing.assert_allclose(whole.eps_mse, small.eps_mse, rtol=1e-10, atol=1e-14)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had which was made meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_memory_is_bounded_however_many_images_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "NUMBERS", 2**11)
    monkeypatch.setattr(find, "MOST_IMAGES", 64)
    most = []
    for count in (300, 3000):
        images = random_images(count, 4)
        with Largest() as seen:
            searched(images, bins=4, sources=90)
        assert images.largest <= 64
        most.append(max(seen.numbers, 3000))  # labels and places: a number for each image
    assert most[0] <= most[1] <= 2 * 64 * 64


@pytest.mark.parametrize(
    "options",
    [
        ("--val-split", 100, "--flip"),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("--weighting", "edm", "--schedule", "edm"), marks=pytest.mark.slow),
    ],
)
def test_no_network_is_better_than_the_optimum(
    options: tuple[Any, ...], elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    """The loss log of a run, in every bin, down to three standard errors."""
    run = tmp_path / "run"
    done = elbo("train", digits, "-o", run, "--preset", preset, "--steps", 150, "--batch", 32, *options)
    assert done.returncode == 0, done.stderr
    found = find.find_optimum(open_search(None, run, device="cpu", sources=300, sample=0))
    assert found.images == (400 if "--flip" in options else 300) and found.classes == 10
    log = read_logs([run])
    moments = ErrorMoments.of_sums(log.edges, log.sums)
    value, se = excess_by_bin(moments, *found.least(log.edges, training=True))
    seen = moments.count > 30
    assert int(seen.sum()) > 40 and float((value / se)[seen].min()) > -3
