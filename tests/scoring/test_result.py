"""Results of repeats, with their mean and spread."""

import numpy as np
import pytest
import yaml
from calls import TINY, result, save, score

from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import Dataset

MADE = yaml.safe_load("""{
run: runs/a, step: 40, weights: ema-0.999, images_trained: 640,
init_run: runs/c, init_weights: ema-0.5, init_step: 1200, init_images: 768,
crop: center, filter: "box, bicubic", trained_weighting: "sigmoid:bias=2", trained_schedule: adaptive, prediction: v,
sampler: "heun:s_churn=40", schedule: "edm-sample:rho=7", steps: 8, nfe: 15,
guidance: 1.5, guidance_low: -2.0, guidance_high: 4.0, guidance_channels: 3, guide: runs/b,
spacing: even, start: edm, rounding: truncate, threshold: none, classes: balanced, seed: 0, noise: edm, noise_device: cuda,
imported_format: edm, imported_file: net.pkl, command: elbo sample
}""")
MADE |= {"weights_sha256": "ab" * 32, "trained_on": "cd" * 32, "init_sha256": "ef" * 32, "imported_sha256": "ef" * 32}


@pytest.fixture(scope="module")
def paths(digits, tmp_path_factory):
    """Three files of 100 digits, drawn alike with other seeds."""
    folder = tmp_path_factory.mktemp("repeats")
    images = Dataset(digits).read(np.arange(300))
    return [save(folder / f"{k}.npz", images[k::3], np.arange(100) % 10, **{**MADE, "seed": k}) for k in range(3)]


def test_of_repeats_the_mean_and_the_spread_are_told_never_the_best(paths, digits):
    alone = [score(path, digits, ("fid", "is")) for path in paths]
    found = score(paths, digits, ("fid", "is"))
    column = [one[TINY] for one in alone]
    assert found[TINY] == pytest.approx(np.mean(column), rel=1e-12)
    spread = found["scores"][TINY]["sd"]
    assert spread == pytest.approx(np.std(column, ddof=1), rel=1e-12) and spread > 0
    assert [one[TINY] for one in found["repeats"]] == column
    assert found["made"] == {key: value for key, value in MADE.items() if key != "seed"}
    assert [one["made"]["seed"] for one in found["repeats"]] == [0, 1, 2]
    assert found["n_samples"] == 100 and "samples" not in found and found["repeats"][2]["samples"] == str(paths[2])
    assert "samples_sha256" in found["repeats"][0] and found["scores"][TINY]["n"] == 3


def test_files_that_are_no_repeats_are_refused_or_warned_of(paths, digits, tmp_path, caplog):
    images = Dataset(digits).read(np.arange(300))
    fewer = save(tmp_path / "b.npz", images[:30])
    cropped = save(tmp_path / "c.npz", images[200:], **{**MADE, "crop": "none"})
    for last, words in ((paths[0], "same images"), (fewer, r"b\.npz: n is 30"), (cropped, r"c\.npz: crop is none")):
        with pytest.raises(DataError, match=words):
            score([paths[0], last], digits, allow_mismatch=True)
    with pytest.raises(UsageError, match="1 set"):
        score(paths, digits, save_stats=tmp_path / "s.npz")
    caplog.clear()
    score(paths[:2], digits)
    assert "seed" not in caplog.text
    score([paths[0], save(tmp_path / "d.npz", images[200:], **{**MADE, "steps": 9})], digits)
    assert "steps" in caplog.text


def test_a_mismatch_of_any_repeat_stands_at_the_top(digits, tmp_path):
    """One that knows its crop, after one that doesn't: the mean bears no published name, and the result says so."""
    images = Dataset(digits).read(np.arange(200))
    paths = [save(tmp_path / "0.npy", images[:100]), save(tmp_path / "1.npz", images[100:], np.arange(100) % 10, crop="none")]
    found = result(paths, digits, allow_mismatch=True)
    assert found.json()["mismatch"] == {"crop": ["none", "center"]} and TINY in found.scores


def test_few_images_are_warned_of_and_why(paths, digits, caplog):
    for metrics, word in ((("fid",), "FID"), (("fid", "is"), "Inception score"), (("kid",), "")):
        caplog.clear()
        score(paths[0], digits, metrics, kid_subset_size=50) if "kid" in metrics else score(paths[0], digits, metrics)
        assert word in caplog.text and bool(word) == ("100 images" in caplog.text)
