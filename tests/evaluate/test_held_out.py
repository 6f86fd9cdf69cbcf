"""Held-out images: opened, checked, named in the result and on the card."""

import numpy as np
import pytest
from scored import found_of, score

from elbocli.errors import DataError, UsageError
from elbocli.evaluate.result import score_card
from elbocli.files.dataset import Dataset


@pytest.fixture
def sets(digits, tmp_path):
    """Samples, training and held-out images, of 80, 120 and 100 digits."""
    order = np.random.default_rng(0).permutation(300)
    images = Dataset(digits).batch(np.arange(300))[order]
    parts = {"samples": images[:80], "training": images[80:200], "held": images[200:]}
    for name, each in parts.items():
        np.save(tmp_path / f"{name}.npy", each)
    memorised = parts["samples"].copy()
    memorised[::2] = parts["training"][:40]
    np.save(tmp_path / "copies.npy", memorised)
    return tmp_path


def test_a_model_that_copies_is_caught_with_an_interval_on_the_card(sets):
    line = {"held_out": sets / "held.npy", "copying_cells": 1}
    honest = found_of(sets / "samples.npy", sets / "training.npy", ("copying", "authenticity"), **line)
    caught = found_of(sets / "copies.npy", sets / "training.npy", ("copying", "authenticity"), **line)
    low, high = honest.named()["copying_ct_interval[elbo-tiny]"]
    assert low < 0 < high and caught.named()["copying_ct_interval[elbo-tiny]"][1] < 0
    found = caught.json()
    assert found["n_held_out"] == 100 and found["held_out"].endswith("held.npy") and len(found["held_out_sha256"]) == 64
    card = score_card(caught)
    assert "95 % interval -" in card and "- held-out images: `" in card and "how many these are: 100" in card
    assert "held-out images:" not in score_card(found_of(sets / "copies.npy", sets / "training.npy", ("fid",)))


def test_saved_features_serve_as_held_out_images(sets):
    score(sets / "held.npy", None, ("fid",), save_features=sets / "held.safetensors")
    pair = (sets / "samples.npy", sets / "training.npy", ("copying",))
    key = "copying_ct[elbo-tiny]"
    assert score(*pair, held_out=sets / "held.safetensors")[key] == score(*pair, held_out=sets / "held.npy")[key]


def test_what_does_not_go_together_is_refused(sets, digits):
    pair = (sets / "samples.npy", sets / "training.npy", ("copying",))
    with pytest.raises(UsageError, match="copying needs --held-out: images like those of --ref"):
        score(*pair)
    np.save(sets / "small.npy", np.zeros((2, 8, 8, 1), np.uint8))
    with pytest.raises(
        DataError,
        match=r"small\.npy: 2 images; --metrics copying needs at least 3",
    ):
        score(*pair, held_out=sets / "small.npy")
    np.save(sets / "large.npy", np.zeros((9, 16, 16, 1), np.uint8))
    with pytest.raises(DataError, match=r"large\.npy: image_size is 16, .*samples\.npy 8"):
        score(*pair, held_out=sets / "large.npy")
    assert "copying_ct[elbo-tiny]" in score(*pair, held_out=sets / "large.npy", allow_mismatch=True)


def test_the_option_goes_with_its_metric(digits, elbo):
    result = elbo("eval", digits, "--ref", digits, "--metrics", "fid", "--held-out", digits, "--extractor", "elbo-tiny")
    assert result.returncode == 2 and b"--held-out goes with --metrics copying" in result.stderr
