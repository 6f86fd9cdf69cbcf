"""FDr⁶ is the mean of six ratios of Fréchet distances, and refuses results that don't fit each other."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from calls import save
from peers.parts import draw
from safetensors.torch import save_file

from elbocli.core.moments import FeatureMoments
from elbocli.errors import DataError, UsageError
from elbocli.files.features import FeatureFacts, SavedFeatures, write_features
from elbocli.scoring import scoring
from elbocli.scoring.extractors import FDR6, make_extractor, vit
from elbocli.scoring.fdr6 import join
from elbocli.scoring.frechet import frechet_distance
from elbocli.scoring.metrics.distances import FID
from elbocli.scoring.result import EvalResult, Facts, Scores
from elbocli.scoring.settings import PROTOCOLS, EvalSettings, settings_of

SIX = PROTOCOLS["fdr6"].extractors
SIDES = ("samples", "val")


def test_fdr6_on_random_weights_is_the_mean_of_six_ratios(small_timm, tmp_path):
    """The test scores 12 samples and 12 validation images against 20 training images, by small networks and saved Inception features."""
    import timm

    random = np.random.default_rng(0)
    ratios = []
    images = {
        key: random.integers(0, top, (n, 40, 40, 3), np.uint8)
        for key, n, top in (("samples", 12, 256), ("val", 12, 200), ("train", 20, 220))
    }
    for name in SIX:
        if name in FDR6:
            weights = tmp_path / f"{name}.safetensors"
            suffix = "npy"
            save_file(draw(timm.create_model, name=vit.TABLES[name]["timm"]).state_dict(), weights)
            extractor = make_extractor(name, weights, "cpu")
            with torch.inference_mode():
                features = {key: extractor(torch.from_numpy(values).permute(0, 3, 1, 2))[0] for key, values in images.items()}
        else:
            weights = None
            suffix = "safetensors"
            features = {key: torch.from_numpy(random.normal(size=(len(values), 4))).float() for key, values in images.items()}
        paths = {key: tmp_path / f"{key}.{suffix}" for key in images}
        for key, path in paths.items():
            about = FeatureFacts(n=len(images[key]), extractor=name, weights_sha256="ab" * 32)
            save(path, images[key]) if weights else write_features(path, SavedFeatures(features[key], None, None, about))
        settings = EvalSettings(**settings_of("fdr6", {"extractor": name}), extractor_weights=weights, allow_mismatch=True)
        for side in SIDES:
            (tmp_path / side).mkdir(exist_ok=True)
            result: Any = scoring.run([paths[side]], paths["train"], settings)
            (tmp_path / side / f"{name}.json").write_text(json.dumps(result.json()))
        moments = {key: FeatureMoments.of(values.numpy()) for key, values in features.items()}
        ours, theirs = (frechet_distance(moments[side], moments["train"]) for side in SIDES)
        ratios.append(ours / theirs)
    found = join(tmp_path / "samples", tmp_path / "val", "")
    assert found.fdr6 == pytest.approx(np.mean(ratios), rel=1e-6) and np.std(ratios) > 0.01
    assert [row["extractor"] for row in found.ratios] == SIX
    assert [row["ratio"] for row in found.ratios] == pytest.approx(ratios, rel=1e-6)
    assert found.fdr6_se_at_most == pytest.approx(np.mean([row["se"] for row in found.ratios])) and found.fdr6_se_at_most > 0
    assert all(row["deviates"]["n"] == [12, 50_000] for row in found.ratios)


def written(folder, **change):
    """Write six results into a folder, and return the folder. The distances are 2, 4, 6 … for samples, and 1 for validation images.

    change: extractor → facts that differ; None: the extractor has no result.
    """
    folder.mkdir()
    for k, name in enumerate(SIX):
        facts = Facts(
            n_samples=50_000, n_ref=1000, samples=folder.name, samples_sha256=folder.name, ref=None, ref_sha256=name, extractor=name,
            extractor_sha256=name, preprocessing=None, ref_preprocessing=None, elbo_version=None, torch_fidelity_version=None,
            torch_version=None, command=None, protocol="fdr6",
        )  # fmt: skip
        scores = Scores(name, {FID: 2.0 * (k + 1) if folder.name == "samples" else 1.0, f"{FID}_se": 0.1 * k}, facts)
        if (of := change.get(name, {})) is not None:
            scores = replace(scores, values=scores.values | of.pop("values", {}))
            content = EvalResult([scores]).json() | of
            (folder / f"{k}.json").write_text(json.dumps(content))
    return folder


def test_the_command_prints_the_mean_and_a_bound_of_its_error(elbo, tmp_path):
    sides = [written(tmp_path / name) for name in SIDES]
    done = elbo("fdr6", *sides)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fdr6"] == 7 and found["fdr6_se_at_most"] == pytest.approx(0.25)
    assert {row["extractor_sha256"] for row in found["ratios"]} == {*SIX}


MAE = "fdr6-mae"
CLIP = "fdr6-clip"


@pytest.mark.parametrize(
    ("side", "change", "words"),
    [
        ("samples", {MAE: None}, rf"samples: no result of {MAE}"),
        ("val", {MAE: None}, rf"val: no result of {MAE}"),
        ("val", {MAE: {"extractor": CLIP, f"frechet_distance[{CLIP}]": 1.0}}, r"\.json: a second result of fdr6-clip"),
        ("val", {MAE: {"extractor_sha256": "b"}}, rf"samples: {MAE}: extractor_sha256 is {MAE}, but b"),
        ("val", {MAE: {"ref_sha256": "b"}}, rf"samples: {MAE}: ref_sha256 is {MAE}, but b"),
        ("val", {name: {"n_samples": 10_000} for name in SIX}, r"n_samples is 50000, but 10000"),
        ("samples", {MAE: {"samples_sha256": "b"}}, r"3\.json: samples_sha256 is b, but samples"),
        ("samples", {MAE: {"n_ref": 10}}, r"3\.json: n_ref is 10, but 1000"),
        ("samples", {MAE: {"protocol": "edm2"}}, r"3\.json: not a result of --protocol fdr6"),
        ("val", {MAE: {"values": {FID: 0.0}}}, rf"above 0 by {MAE}"),
        ("val", {MAE: {"made": {"run": "a"}}}, "val: results of drawn samples"),
    ],
)
def test_results_that_do_not_fit_are_refused(side, change, words, tmp_path):
    samples, validation = (written(tmp_path / name, **(change if name == side else {})) for name in SIDES)
    with pytest.raises(DataError, match=words):
        join(samples, validation, "")


def test_deviations_from_the_protocol_on_either_side_are_told(tmp_path):
    deviating = {MAE: {"deviates": {"n": [12, 50_000]}}}
    found = join(written(tmp_path / "samples"), written(tmp_path / "val", **deviating), "")
    assert [row["extractor"] for row in found.ratios if row["deviates"]] == [MAE]
    assert "[12, 50000]" in found.table().text(200)


@pytest.mark.parametrize("name", SIX)
def test_the_protocol_asks_for_weights_and_fetches_none(name, tmp_path):
    paths = [tmp_path / "samples.npy", tmp_path / "train.npy"]
    for path in paths:
        save(path, np.zeros((4, 8, 8, 3), np.uint8))
    settings = EvalSettings(**settings_of("fdr6", {"extractor": name}), allow_mismatch=True)
    with pytest.raises(UsageError, match=f"nothing; give {name}'s weights"):
        scoring.run([paths[0]], paths[1], settings)
