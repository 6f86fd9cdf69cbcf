"""Features in bf16: as autocast computes them, said wherever features are, and never taken for those of fp32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scored import score

from elbocli.compare.result import compare_results
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import FeatureSource, naming_network
from elbocli.evaluate.result import EvalResult
from elbocli.evaluate.scoring import deviations
from elbocli.evaluate.settings import PROTOCOLS, EvalSettings, settings_of
from elbocli.files.features import FeatureFacts, SavedFeatures, read_features, read_statistics, write_features
from elbocli.nn.extractors import DEFAULT, PUBLISHED_INCEPTION, make_extractor

FID = "frechet_distance[elbo-tiny]"
KEY = "feature_precision"


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two files of images."""
    draw, paths = np.random.default_rng(0), [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path in paths:
        np.save(path, draw.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8))
    return paths


def test_features_are_those_of_autocast_and_every_file_says_so(pair: list[Path], tmp_path: Path) -> None:
    saving = {"save_features": tmp_path / "f.safetensors", "save_stats": tmp_path / "s.npz"}
    found = score(pair[0], None, ("fid",), precision="bf16", **saving)
    kept, images = read_features(saving["save_features"]), torch.from_numpy(np.load(pair[0])).permute(0, 3, 1, 2)
    network = make_extractor("elbo-tiny", None, "cpu").module
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        parts = [network(part)[0] for part in images.split(64)]
    assert torch.equal(kept.features, torch.cat(parts).float())
    strict = network(images)[0]
    off = (kept.features - strict).norm() / (strict - strict.mean(0)).norm()
    assert 1e-4 < off < 0.05
    said = [found[KEY], kept.about.feature_precision, read_statistics(saving["save_stats"]).about.feature_precision]
    assert said == ["bf16"] * 3
    assert score(pair[0], pair[1], ("fid",))[KEY] == "fp32"


@pytest.mark.parametrize("kind", ["save_features", "save_stats"])
def test_a_reference_of_another_precision_is_refused_unless_that_is_allowed(
    kind: str, pair: list[Path], tmp_path: Path
) -> None:
    ref = tmp_path / {"save_features": "f.safetensors", "save_stats": "s.npz"}[kind]
    score(pair[1], None, ("fid",), precision="bf16", **{kind: ref})
    assert score(pair[0], ref, ("fid",), precision="bf16")[KEY] == "bf16"
    with pytest.raises(DataError, match=rf"{ref.name}: {KEY} is bf16, .*--allow-mismatch"):
        score(pair[0], ref, ("fid",))
    assert score(pair[0], ref, ("fid",), allow_mismatch=True)["mismatch"] == {KEY: ["fp32", "bf16"]}


def test_features_that_do_not_say_are_of_fp32_if_elbo_made_them(pair: list[Path], tmp_path: Path) -> None:
    about = FeatureFacts(n=70, extractor="elbo-tiny", preprocessing={"image_size": 8, "channels": 3})
    write_features(tmp_path / "old.safetensors", SavedFeatures(torch.rand(70, 64), about=about))
    assert score(pair[0], tmp_path / "old.safetensors", ("fid",))[KEY] == "fp32"
    with pytest.raises(DataError, match=f"{KEY} is fp32"):
        score(pair[0], tmp_path / "old.safetensors", ("fid",), precision="bf16")


def test_only_fp32_has_published_names() -> None:
    for precision, network in {None: None, "fp32": None, "bf16": DEFAULT}.items():
        about = FeatureFacts(extractor=DEFAULT, weights_sha256=PUBLISHED_INCEPTION, feature_precision=precision)
        assert naming_network(about) == network


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_refuse_it_before_and_after_extraction(name: str) -> None:
    chosen = settings_of(name, {}, 0)
    with pytest.raises(UsageError, match=f"{KEY} is bf16, .*--protocol {name}"):
        deviations(EvalSettings(**chosen, precision="bf16"))
    about = FeatureFacts(
        extractor=str(chosen["extractor"]), weights_sha256=PUBLISHED_INCEPTION, feature_precision="bf16"
    )
    source = FeatureSource("a.safetensors", 50_000, about, labels=np.arange(50_000) % 1000)
    with pytest.raises(DataError, match=f"a.safetensors: .*{KEY} is bf16"):
        deviations(EvalSettings(**chosen), source)
    found = deviations(EvalSettings(**chosen, allow_mismatch=True), source)
    assert found[KEY] == ["bf16", "fp32"]


def test_results_of_another_precision_do_not_compare(pair: list[Path]) -> None:
    strict, other = (score(*pair, ("fid",), precision=each) for each in ("fp32", "bf16"))
    old = {key: value for key, value in strict.items() if key != KEY}
    strict_one, other_one, old_one = (EvalResult.of(each) for each in (strict, other, old))
    assert compare_results([("a", strict_one), ("b", old_one)])[0][0].scores[0].difference == 0
    for first in (strict_one, old_one):
        with pytest.raises(DataError, match=f"{KEY} is bf16"):
            compare_results([("a", first), ("b", other_one)])


def test_the_command_takes_it(elbo: Callable[..., Any], pair: list[Path], tmp_path: Path) -> None:
    line = ("eval", "a.npy", "--ref", "b.npy", "--extractor", "elbo-tiny", "--metrics", "fid", "--precision", "bf16")
    done = elbo(*line, "--card", "a.md", cwd=tmp_path)
    assert done.returncode == 0 and b"cpu, bf16" in done.stderr, done.stderr
    assert (
        json.loads(done.stdout)[KEY] == "bf16"
        and "precision of its features: `bf16`" in (tmp_path / "a.md").read_text()
    )
    assert elbo(*line[:-1], "fp16", cwd=tmp_path).returncode == 2
