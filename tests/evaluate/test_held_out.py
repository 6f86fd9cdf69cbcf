"""Held-out images: opened, checked, named in the result and on the card."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from feature_sets import features
from scored import found_of, score

from elbocli.errors import DataError, UsageError
from elbocli.evaluate.by_class import class_scores
from elbocli.evaluate.card import render
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
    card = render(caught)
    assert "95 % interval -" in card and "- held-out images: `" in card and "how many these are: 100" in card
    assert "held-out images:" not in render(found_of(sets / "copies.npy", sets / "training.npy", ("fid",)))


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
        match=r"small\.npy: 2 images; --metrics copying needs at least 3, or fewer with a smaller --copying-cells",
    ):
        score(*pair, held_out=sets / "small.npy")
    np.save(sets / "large.npy", np.zeros((9, 16, 16, 1), np.uint8))
    with pytest.raises(DataError, match=r"large\.npy: image_size is 16, that of .*samples\.npy 8"):
        score(*pair, held_out=sets / "large.npy")
    assert "copying_ct[elbo-tiny]" in score(*pair, held_out=sets / "large.npy", allow_mismatch=True)


def test_by_class_needs_labels_and_the_option_goes_with_its_metric(sets, digits, elbo):
    result = elbo("eval", digits, "--ref", digits, "--metrics", "fid", "--held-out", digits, "--extractor", "elbo-tiny")
    assert result.returncode == 2 and b"--held-out goes with --metrics copying" in result.stderr
    with pytest.raises(UsageError, match=r"training\.npy: --by-class needs labels"):
        score(digits, sets / "training.npy", ("fid",), by_class=True)
    with pytest.raises(UsageError, match=r"samples\.npy: --by-class needs labels"):
        score(sets / "samples.npy", digits, ("fid",), by_class=True)


def labelled(path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    np.savez(path, images, labels)
    return path


def test_numbers_of_each_class_are_those_of_its_images_alone(digits, tmp_path):
    data = Dataset(digits)
    images, labels = data.batch(np.arange(300)), data.labels
    samples = labelled(tmp_path / "s.npz", images[::2], labels[::2])
    result = found_of(samples, digits, ("fid", "accuracy"), by_class=True)
    rows = result.json()["by_class"]
    assert [row["label"] for row in rows] == list(range(10))
    for row in (rows[0], rows[7]):
        mine, theirs = (images[::2][labels[::2] == row["label"]], images[labels == row["label"]])
        assert (row["n"], row["n_ref"]) == (len(mine), len(theirs))
        np.save(tmp_path / "mine.npy", mine), np.save(tmp_path / "theirs.npy", theirs)
        alone = score(tmp_path / "mine.npy", tmp_path / "theirs.npy", ("fid",))
        for end in ("", "_se"):
            assert row["frechet_distance" + end] == pytest.approx(alone[f"frechet_distance{end}[elbo-tiny]"], rel=1e-6)
        path = labelled(tmp_path / "one.npz", mine, np.full(len(mine), row["label"]))
        whole = score(path, None, ("accuracy",))
        assert (row["accuracy"], row["accuracy_interval"]) == (whole["accuracy"], whole["accuracy_interval"])
    card = render(result)
    assert "## Classes\n" in card
    assert (
        f"- 7 `7`: Fréchet distance {rows[7]['frechet_distance']:.5g} ± {rows[7]['frechet_distance_se']:.5g}, accuracy"
        in card
    )
    assert "## Classes" not in render(found_of(samples, digits, ("fid",)))


def test_the_accuracy_of_a_class_is_that_of_its_samples():
    draw, labels, told = np.random.default_rng(0), np.array([0, 0, 1, 1, 1, 2]), [0, 1, 1, 1, 0, 2]
    samples = replace(features(draw.normal(size=(6, 3))), labels=labels, logits=torch.eye(3)[told])
    rows = class_scores(samples, samples, accuracy=True)
    assert [row.accuracy for row in rows] == pytest.approx([1 / 2, 2 / 3, 1])


def test_a_class_of_one_image_or_none_has_no_distance(digits, tmp_path):
    data = Dataset(digits)
    chosen = np.flatnonzero(data.labels == 3)[:5].tolist() + np.flatnonzero(data.labels == 8)[:1].tolist()
    samples = labelled(tmp_path / "s.npz", data.batch(np.array(chosen)), data.labels[chosen])
    rows = {row["label"]: row for row in score(samples, digits, ("is",), by_class=True, splits=2)["by_class"]}
    assert rows[3]["frechet_distance"] > 0 and rows[8]["frechet_distance"] is None and rows[0]["n"] == 0
    assert all(row["accuracy"] is None for row in rows.values()), "accuracy is no metric here"


def test_a_stream_has_the_classes_that_it_was_drawn_with(digits, tmp_path):
    np.save(tmp_path / "a.npy", Dataset(digits).batch(np.arange(40)))
    rows = score(tmp_path / "a.npy", digits, ("fid",), by_class=True, classes="2,5")["by_class"]
    assert {row["label"]: row["n"] for row in rows if row["n"]} == {2: 20, 5: 20}


def test_repeats_have_their_classes_each_and_the_card_their_means(digits, tmp_path):
    data = Dataset(digits)
    parts = [labelled(tmp_path / f"{k}.npz", data.batch(np.arange(k, 300, 3)), data.labels[k::3]) for k in range(2)]
    result = found_of(parts, digits, ("fid",), by_class=True)
    each = [one["by_class"] for one in result.json()["repeats"]]
    mean = np.mean([rows[4]["frechet_distance"] for rows in each])
    assert f"- 4 `4`: Fréchet distance {mean:.5g}, n = {each[0][4]['n']}, {each[1][4]['n']}, " in render(result)


def test_a_name_of_a_class_means_nothing_on_the_card(digits, tmp_path):
    path = tmp_path / "named.h5"
    path.write_bytes(digits.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["class_names"]
        file["class_names"] = ["<b>x</b> | `y`", *"123456789"]
    assert "- 0 `` <b>x</b> | `y` ``: " in render(found_of(digits, path, ("fid",), by_class=True))
