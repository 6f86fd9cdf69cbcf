"""The least error of any denoiser: exact, within its memory, below every network's error; and the commands that read it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from elbocli.bound import optimum as find
from elbocli.bound.optimum import Search, open_search
from elbocli.core.adaptive import ErrorMoments
from elbocli.core.optimum import excess_by_bin
from elbocli.files.dataset import Dataset, DatasetAttributes
from elbocli.files.losslog import Optimum, read_logs

Elbo = Callable[..., CompletedProcess[bytes]]
SETTINGS: dict[str, Any] = {"logsnr_min": -8, "logsnr_max": 8, "bins": 16, "sources": 300}


def searched(dataset: Any, **settings: Any) -> Optimum:
    return find.find_optimum(Search(dataset, np.arange(len(dataset)), **{**SETTINGS, **settings}))


class Images:
    """A dataset in memory: levels [N, H, W, C]."""

    path = Path("images.h5")

    def __init__(self, levels: np.ndarray, labels: np.ndarray | None = None):
        self.levels = levels
        self.shape = levels.shape
        self.labels = np.zeros(len(levels), np.int64) if labels is None else labels
        self.attributes = DatasetAttributes()
        self.payload_sha256 = ""
        self.largest = 0

    def __len__(self) -> int:
        return len(self.levels)

    def read(self, rows: np.ndarray) -> np.ndarray:
        self.largest = max(self.largest, len(rows))
        return self.levels[rows]


def random_images(count: int, side: int = 2) -> Images:
    return Images(np.random.default_rng(0).integers(0, 256, (count, side, side, 1), np.uint8))


@pytest.mark.parametrize("conditional", [False, True])
def test_half_the_integral_is_the_entropy_of_the_images(conditional):
    """I-MMSE, on a range that holds all of it: log N, or what the classes leave open."""
    images = random_images(60)
    images.labels = np.arange(60) % 4
    found = searched(images, logsnr_min=-16, logsnr_max=12, bins=140, sources=60, conditional=conditional)
    assert found.log_images == pytest.approx(math.log(15 if conditional else 60))
    assert abs(found.nats - found.log_images) < 4 * found.nats_se and 0 < found.nats_se < 0.3


def repeated(dataset: Any, seeds: range, **settings: Any) -> tuple[list[Optimum], np.ndarray, np.ndarray]:
    """Results of several seeds, and their errors and standard errors in each bin."""
    results = [searched(dataset, seed=seed, **settings) for seed in seeds]
    return results, np.array([each.eps_mse for each in results]), np.array([each.eps_mse_se for each in results])


def mean_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def test_intervals_hold_the_least_error_in_every_bin():
    """60 seeds, also where one draw in a thousand, or none, confuses two images: there the sample shows no error."""
    images = random_images(60)
    truth, truth_se = mean_of(repeated(images, range(1000, 1200), sources=60)[1])
    _, found, errors = repeated(images, range(60), sources=60)
    inside = np.abs(found - truth) < 1.96 * np.hypot(errors, truth_se)
    assert inside.mean(0).min() > 0.85
    assert errors[:, -1].max() < 0.01 * errors.max(), "where no images are confused it is next to nothing"


def test_mirror_images_count(digits):
    """With flip, the search finds what it finds among images and their mirror images."""
    levels = Dataset(digits).read(range(40))
    both = Images(np.concatenate([levels, levels[:, :, ::-1]]))
    flipped = searched(Images(levels), flip=True, sources=40)
    packed = searched(both, sources=80)
    assert flipped.images == packed.images == 80 and flipped.log_images == packed.log_images
    error = np.hypot(flipped.eps_mse_se, packed.eps_mse_se) + 1e-12
    assert np.abs((np.array(flipped.eps_mse) - packed.eps_mse) / error).max() < 4.5


def test_the_size_of_blocks_changes_nothing_but_the_memory(monkeypatch):
    images = random_images(300, 3)
    whole = searched(images, sources=20)
    monkeypatch.setattr(find, "MOST_IMAGES", 64)
    monkeypatch.setattr(find, "NUMBERS", 2**10)
    images.largest = 0
    bounded = searched(images, sources=20)
    assert images.largest <= 64
    np.testing.assert_allclose(whole.eps_mse, bounded.eps_mse, rtol=1e-10, atol=1e-14)


@pytest.mark.long
def test_no_network_is_better_than_the_optimum(elbo, digits, preset, tmp_path):
    """The loss log of a run, in every bin, down to three standard errors."""
    run = tmp_path / "run"
    small = ("--set", "network.levels=[1]", "--set", "network.attention=[]")
    how = ("--steps", 150, "--batch-size", 32, "--val-split", 100, "--flip", *small)
    done = elbo("train", digits, "-o", run, "--preset", preset, *how)
    assert done.returncode == 0, done.stderr
    found = find.find_optimum(open_search(None, run, device="cpu", sources=300))
    assert found.images == 400 and found.classes == 10
    log = read_logs([run])
    moments = ErrorMoments.of_sums(log.edges, log.sums)
    value, se = excess_by_bin(moments, *found.least(log.edges, training=True))
    seen = moments.count > 30
    assert int(seen.sum()) > 40 and float((value / se)[seen].min()) > -3


# Commands


@pytest.fixture(scope="module")
def validated(elbo: Elbo, digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held images out, with its optimum."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    assert elbo("train", digits, "-o", folder, "--preset", preset, "--val-split", 100).returncode == 0
    done = elbo("optimum", "--like", folder, "-n", 100, "-o", folder / "optimum.json")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def told(elbo: Elbo, tmp_path: Path) -> Callable[..., Any]:
    """told(*words): the JSON that a command prints."""

    def call(*words: Any) -> Any:
        done = elbo(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def test_the_result_is_one_json_object(told, digits):
    found = told("optimum", digits, "-n", 20, "--bins", 10)
    assert found["format"] == "elbo-optimum" and len(found["eps_mse"]) == 10 and found["edges"][::10] == [-15, 15]
    assert (found["images"], found["classes"], found["dimensions"]) == (300, 0, 64)


def test_bound_has_the_excess(told, validated, tmp_path):
    optimum = validated / "optimum.json"
    found = told("bound", validated, "-n", 40, "--optimum", optimum, "--curve", "c.tsv")["excess"]
    assert found["own"]["nats_per_dimension"] > 0 and found["n_own"] == 40
    assert (tmp_path / "c.tsv").read_text().splitlines()[0].endswith("\texcess\texcess_se")


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        ("optimum", 2, "dataset"),
        ("optimum other --like run", 1, "other images"),
        ("bound run -n 4 --optimum strange", 2, "--like"),
    ],
)
def test_a_line_that_does_not_fit_is_refused(line, code, word, elbo, validated, digits, pack, tmp_path):
    places = {"data": digits, "run": validated, "other": pack()}
    places["strange"] = tmp_path / "strange.json"
    places["strange"].write_text(json.dumps({**json.loads((validated / "optimum.json").read_text()), "payload_sha256": "0"}))
    result = elbo(*(places.get(each, each) for each in line.split()))
    assert (result.returncode, result.stdout) == (code, b"") and word in result.stderr.decode(), result.stderr
