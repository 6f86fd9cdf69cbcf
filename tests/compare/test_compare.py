"""`elbo compare`: differences with their intervals, by seeds, by images, or each by itself; what doesn't compare is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from elbocli.compare.result import compare_features, compare_results
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.evaluate.result import EvalResult, result_of
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, write_features, write_statistics

Elbo = Callable[..., Any]
FID = "frechet_distance[a.pt2]"
BASE: dict[str, Any] = {
    FID: 1.5,
    "frechet_distance_se[a.pt2]": 0.1,
    "precision[a.pt2]": 0.5,
    "n_samples": 900,
    "n_ref": 100,
    "ref_sha256": "ab" * 32,
    "extractor": "a.pt2",
    "extractor_sha256": "cd" * 32,
    "preprocessing": {"image_size": 8, "crop": "center"},
    "ref_preprocessing": {"image_size": 8},
    "protocol": "adm",
    "splits": 10,
    "made": {"sampler": "ddim", "seed": 0},
}


def result(values: dict[str, Any] | None = None, **facts: Any) -> EvalResult:
    return EvalResult.of({**BASE, **(values or {}), **facts})


def repeats(values: list[float], seeds: list[Any], **facts: Any) -> EvalResult:
    """Several sets of samples with these distances and seeds."""
    common = {key: value for key, value in BASE.items() if not key.startswith(("frechet", "precision", "made"))}
    each = [{FID: value, "made": {"sampler": "ddim", "seed": seed}} for value, seed in zip(values, seeds, strict=True)]
    return EvalResult.of({**common, **facts, "repeats": [{**common, **facts, **one} for one in each]})


def only(first: EvalResult, other: EvalResult, score: str = FID) -> Any:
    (compared,), _ = compare_results([("a", first), ("b", other)])
    (found,) = (each for each in compared.scores if each.score == score)
    return found


A, B = [1.0, 2.0, 3.0], [1.2, 2.1, 3.3]


def test_repeats_of_the_same_seeds_are_paired_whatever_their_order() -> None:
    found = only(repeats(A, [0, 1, 2]), repeats(B[::-1], [2, 1, 0]))
    wanted = stats.ttest_rel(B, A).confidence_interval()
    assert found.interval == pytest.approx([*wanted]) and found.difference == pytest.approx(0.2)
    assert found.how == "paired by 3 seeds" and found.apart == (wanted[0] > 0)
    alone = only(repeats(A, [0, 1, 2]), repeats(B, [3, 4, 5]))
    assert alone.interval == pytest.approx([*stats.ttest_ind(B, A, equal_var=False).confidence_interval()])
    assert alone.how == "unpaired" and alone.apart is False


@pytest.mark.parametrize("seeds", [[None, None, None], [0, 0, 1]])
def test_repeats_whose_seeds_say_nothing_are_not_paired(seeds: list[Any]) -> None:
    assert only(repeats(A, seeds), repeats(B, seeds)).how == "unpaired"


def test_single_results_differ_by_their_standard_errors() -> None:
    other = {FID: 1.0, "frechet_distance_se[a.pt2]": 0.1}
    found = only(result(), result(other))
    assert found.se == pytest.approx(0.1 * 2**0.5) and found.apart
    assert found.interval == pytest.approx([-0.7772, -0.2228], abs=1e-4)
    found = only(result(), result({FID: 1.4}))
    assert found.apart is False and found.interval[0] < 0 < found.interval[1]


def test_a_number_without_an_error_is_never_told_apart() -> None:
    found = only(result(), result({"precision[a.pt2]": 0.9}), "precision[a.pt2]")
    assert (found.se, found.interval, found.apart) == (None, None, None)
    assert "no standard error" in found.how


def test_the_limit_has_the_error_of_its_interval() -> None:
    limit = {"frechet_distance_infinity[a.pt2]": 1.0, "frechet_distance_infinity_interval[a.pt2]": [0.9, 1.1]}
    found = only(result(limit), result(limit), "frechet_distance_infinity[a.pt2]")
    assert found.interval == pytest.approx([-0.1 * 2**0.5, 0.1 * 2**0.5])


UNLIKE = {
    "n_samples": 901,
    "n_ref": 99,
    "ref_sha256": "00" * 32,
    "extractor": "b.pt2",
    "extractor_sha256": "00" * 32,
    "protocol": "edm",
    "splits": 5,
}


@pytest.mark.parametrize("key", UNLIKE)
def test_what_was_scored_otherwise_is_refused_with_its_key(key: str) -> None:
    with pytest.raises(
        DataError, match=rf"^b: {key} is {UNLIKE[key]}, that of a {BASE[key]}: such numbers don't compare"
    ):
        compare_results([("a", result()), ("b", result(**{key: UNLIKE[key]}))])


def test_of_preprocessing_each_key_that_both_know_counts() -> None:
    others = {"preprocessing": {"image_size": 16, "crop": "center"}}
    with pytest.raises(DataError, match=r"b: preprocessing.image_size is 16, that of a 8"):
        compare_results([("a", result()), ("b", result(**others))])
    compare_results([("a", result()), ("b", result(preprocessing={"image_size": 8}, protocol=None))])


def test_without_a_common_score_there_is_nothing_to_compare() -> None:
    bare = EvalResult.of({key: value for key, value in BASE.items() if "[" not in key})
    with pytest.raises(DataError, match="b: has no score that a has, too"):
        compare_results([("a", result()), ("b", bare)])


def test_shares_and_spreads_have_intervals_too() -> None:
    """A share of 1 is not certain: its interval counts, not its standard error of 0."""
    values = {
        "accuracy": 1.0,
        "accuracy_se": 0.0,
        "accuracy_interval": [0.98, 1.0],
        "kernel_distance_mean[a.pt2]": 0.1,
        "kernel_distance_std[a.pt2]": 0.5,
        "kernel_distance_se[a.pt2]": 0.01,
    }
    found = only(result(values), result({**values, "accuracy": 0.995}), "accuracy")
    assert found.se == pytest.approx(0.01 * 2**0.5 / 1.959964) and found.apart is False
    found = only(result(values), result({**values, "kernel_distance_mean[a.pt2]": 0.2}), "kernel_distance_mean[a.pt2]")
    assert found.se == pytest.approx(0.01 * 2**0.5) and found.apart


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"bpd": 3}', json.dumps({**BASE, FID: "low"}), json.dumps({**BASE, "deviates": {"n": [3]}})],
)
def test_what_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match=r"^a\.json: "):
        result_of(text.encode(), "a.json")


# Features


def features(path: Path, values: np.ndarray, seed: int | None = 0, **more: Any) -> Path:
    labels = more.pop("labels", None)
    facts = {"extractor": "elbo-tiny", "weights_sha256": "ab" * 32, "made": {"seed": seed}, **more}
    told = None if labels is None else torch.as_tensor(labels)
    about = FeatureFacts(n=len(values), **facts)
    write_features(path, SavedFeatures(torch.from_numpy(values.astype(np.float32)), None, told, about))
    return path


@pytest.fixture
def ref(tmp_path: Path) -> Path:
    write_statistics(tmp_path / "ref.npz", Statistics(np.zeros(3), np.eye(3)))
    return tmp_path / "ref.npz"


def test_pairs_of_images_have_the_error_that_repeats_show(ref: Path, tmp_path: Path) -> None:
    """60 times 300 images: two models that draw nearly the same of each noise."""
    draw, found = np.random.default_rng(0), []
    for _ in range(60):
        noise = draw.normal(0.2, 1.3, (300, 3))
        a = features(tmp_path / "a.safetensors", noise)
        b = features(tmp_path / "b.safetensors", 1.02 * noise + draw.normal(0, 0.05, noise.shape))
        (compared,), _ = compare_features([a, b], ref)
        found.append(compared.scores[0])
    assert {each.how for each in found} == {"paired by image"}
    shown = np.std([each.difference for each in found], ddof=1)
    assert np.mean([each.se for each in found]) == pytest.approx(shown, rel=0.3)
    truth = np.mean([each.difference for each in found])
    assert sum(each.interval[0] < truth < each.interval[1] for each in found) >= 52
    (alone,), _ = compare_features([a, features(tmp_path / "c.safetensors", 1.02 * noise, seed=1)], ref)
    assert alone.scores[0].how == "unpaired" and alone.scores[0].se > 5 * shown


@pytest.mark.parametrize(
    ("first", "other", "paired"),
    [
        ({}, {}, True),
        ({"seed": None}, {"seed": None}, False),
        ({}, {"seed": 1}, False),
        ({"labels": [0, 1] * 10}, {"labels": [0, 1] * 10}, True),
        ({"labels": [0, 1] * 10}, {"labels": [1, 0] * 10}, False),
        ({"labels": [0, 1] * 10}, {}, False),
    ],
)
def test_images_are_paired_by_seed_and_class(first: Any, other: Any, paired: bool, ref: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 20, 3))
    a, b = (
        features(tmp_path / "a.safetensors", values[0], **first),
        features(tmp_path / "b.safetensors", values[1], **other),
    )
    (compared,), alike = compare_features([a, b], ref)
    assert (compared.scores[0].how == "paired by image") == paired and alike["n_samples"] == 20


def test_features_that_do_not_compare_are_refused(ref: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0).normal(size=(20, 3))
    a = features(tmp_path / "a.safetensors", draw)
    for name, (values, more, words) in {
        "n": (draw[:10], {}, "n_samples is 10, that of .*a.safetensors 20"),
        "network": (draw, {"extractor": "vgg16"}, "extractor is vgg16, that of .*a.safetensors elbo-tiny"),
        "size": (draw, {"preprocessing": {"image_size": 9}}, ""),
        "width": (draw[:, :2], {}, "20 x 2 features"),
        "one": (draw[:1], {}, "1 x 3 features"),
    }.items():
        b = features(tmp_path / f"{name}.safetensors", values, **more)
        if not words:
            compare_features([a, b], ref)
            continue
        with pytest.raises(DataError, match=words):
            compare_features([a, b], ref)
    with pytest.raises(DataError, match=r"extractor is elbo-tiny, that of .*other\.safetensors vgg16"):
        compare_features([a, a], features(tmp_path / "other.safetensors", draw, extractor="vgg16"))
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8, 1), np.uint8))
    with pytest.raises(UsageError, match=r"x\.npy: neither statistics"):
        compare_features([a, a], tmp_path / "x.npy")


# The command


def test_the_command_prints_json_or_a_table(elbo: Elbo, tmp_path: Path) -> None:
    for name, value in (("a", 1.5), ("b", 1.4), ("c", 0.5)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**BASE, FID: value}))
    done = elbo("compare", "a.json", "b.json", "c.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["first"] == "a.json" and [each["file"] for each in found["others"]] == ["b.json", "c.json"]
    assert found["n_samples"] == 900 and found["protocol"] == "adm" and found["elbo_version"]
    assert [each["scores"][0]["apart"] for each in found["others"]] == [False, True]
    table = elbo("compare", "-q", "a.json", "c.json", "--table", cwd=tmp_path).stdout.decode().splitlines()
    assert len(table) == 3 and table[0].startswith("SCORE") and " yes " in table[1] and "0.5" in table[1]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("a.json", 2, "name two files at least"),
        ("a.safetensors --ref r.npz", 2, "name two files at least"),
        ("a.json b.safetensors", 2, "features need --ref"),
        ("a.safetensors b.safetensors", 2, "features need --ref"),
        ("a.json a.json --ref r.npz", 2, "features need --ref"),
        ("a.json nowhere.json", 1, "nowhere.json: "),
        ("a.safetensors b.safetensors --ref r.npz", 1, "r.npz"),
    ],
)
def test_mistakes_are_told(line: str, code: int, words: str, elbo: Elbo, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(BASE))
    done = elbo("compare", *line.split(), cwd=tmp_path)
    said = done.stderr.decode()
    assert done.returncode == code and words in said and "Traceback" not in said and not done.stdout, said
