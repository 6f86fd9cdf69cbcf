"""`elbo compare` gives differences with their intervals, by seeds, by images, or each by itself, of what compares."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from elbocli.compare.result import compare_features, compare_results
from elbocli.errors import DataError
from elbocli.evaluate.result import EvalResult
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, write_features, write_statistics

FID, SE = "frechet_distance[a.pt2]", "frechet_distance_se[a.pt2]"
PRECISION = "precision[a.pt2]"
BASE = {
    FID: 1.5,
    SE: 0.1,
    PRECISION: 0.5,
    "n_samples": 900,
    "n_ref": 100,
    "ref_sha256": "ab" * 32,
    "extractor": "a.pt2",
    "extractor_sha256": "cd" * 32,
    "preprocessing": {"image_size": 8, "crop": "center"},
    "protocol": "adm",
    "feature_precision": "fp32",
    "splits": 10,
    "made": {"sampler": "ddim", "seed": 0},
}
ALIKE = ("n_samples", "n_ref", "ref_sha256", "extractor", "extractor_sha256", "feature_precision", "protocol", "splits")
A, B = [1.0, 2.0, 3.0], [1.2, 2.1, 3.3]


def repeats(values, seeds):
    """The content of several sets of samples with these distances and seeds."""
    common = {key: value for key, value in BASE.items() if key not in (FID, SE, PRECISION, "made")}
    each = [{**common, FID: value, "made": {"seed": seed}} for value, seed in zip(values, seeds)]
    return {**common, "repeats": each}


def compared(first, other, score=FID):
    """The difference of a score between two results, from their contents."""
    (beside,), _ = compare_results([("a", EvalResult.of({**BASE, **first})), ("b", EvalResult.of({**BASE, **other}))])
    (found,) = (each for each in beside.scores if each.score == score)
    return found


def test_repeats_of_the_same_seeds_are_paired_whatever_their_order():
    found = compared(repeats(A, [0, 1, 2]), repeats(B[::-1], [2, 1, 0]))
    wanted = stats.ttest_rel(B, A).confidence_interval()
    assert found.interval == pytest.approx([*wanted]) and found.difference == pytest.approx(0.2)
    assert found.how == "paired by 3 seeds" and found.apart == (wanted[0] > 0)


@pytest.mark.parametrize("seeds", [([0, 1, 2], [3, 4, 5]), ([None] * 3,) * 2, ([0, 0, 1],) * 2])
def test_repeats_without_common_seeds_are_not_paired(seeds):
    found = compared(repeats(A, seeds[0]), repeats(B, seeds[1]))
    assert found.interval == pytest.approx([*stats.ttest_ind(B, A, equal_var=False).confidence_interval()])
    assert found.how == "unpaired" and found.apart is False


@pytest.mark.parametrize(
    ("score", "other", "se", "apart"),
    [
        (FID, {FID: 1.0}, 0.1 * 2**0.5, True),
        (PRECISION, {PRECISION: 0.9}, None, None),
        ("accuracy", {"accuracy": 0.995}, 0.01 * 2**0.5 / 1.959964, False),
    ],
)
def test_single_results_differ_by_their_standard_errors_or_intervals(score, other, se, apart):
    """A share of 1 is not certain: its interval counts, not its standard error of 0."""
    told = {"accuracy": 1.0, "accuracy_se": 0.0, "accuracy_interval": [0.98, 1.0]}
    found = compared(told, {**told, **other}, score)
    assert found.se == (se and pytest.approx(se)) and found.apart is apart
    assert found.difference == found.other - found.first
    wanted = se and pytest.approx([*stats.norm(found.difference, se).interval(0.95)])
    assert found.interval == wanted


@pytest.mark.parametrize("key", ALIKE)
def test_results_that_were_made_otherwise_are_refused_with_the_key(key):
    other = BASE[key] * 2
    with pytest.raises(DataError, match=f"^b: {key} is {other}"):
        compared({}, {key: other})


def test_of_preprocessing_each_key_that_both_know_counts():
    with pytest.raises(DataError, match=r"preprocessing\.image_size is 16"):
        compared({}, {"preprocessing": {"image_size": 16}})
    assert compared({}, {"preprocessing": {"image_size": 8}, "protocol": None}).difference == 0


# Features


@pytest.fixture
def saved(tmp_path):
    """saved(name, values, seed, labels, **facts): a file of features."""

    def write(name, values, seed=0, labels=None, **facts):
        path = tmp_path / f"{name}.safetensors"
        known = {"extractor": "elbo-tiny", "weights_sha256": "ab" * 32, "made": {"seed": seed}, **facts}
        told = None if labels is None else torch.tensor(labels)
        tensor = torch.from_numpy(values.astype(np.float32))
        write_features(path, SavedFeatures(tensor, None, told, FeatureFacts(n=len(values), **known)))
        return path

    return write


@pytest.fixture
def ref(tmp_path):
    write_statistics(tmp_path / "ref.npz", Statistics(np.zeros(3), np.eye(3)))
    return tmp_path / "ref.npz"


def test_pairs_of_images_have_the_error_that_repeats_show(ref, saved):
    """40 times 200 images: two models that draw nearly the same of each noise."""
    draw, found = np.random.default_rng(0), []
    for _ in range(40):
        noise = draw.normal(0.2, 1.3, (200, 3))
        a, b = saved("a", noise), saved("b", 1.02 * noise + draw.normal(0, 0.05, noise.shape))
        (beside,), _ = compare_features([a, b], ref)
        found.append(beside.scores[0])
    shown = np.std([each.difference for each in found], ddof=1)
    assert np.mean([each.se for each in found]) == pytest.approx(shown, rel=0.3)
    truth = np.mean([each.difference for each in found])
    assert sum(each.interval[0] < truth < each.interval[1] for each in found) >= 34


@pytest.mark.parametrize(
    ("first", "other", "paired"),
    [({}, {}, True), ({"seed": None}, {"seed": None}, False), ({"labels": range(20)}, {"labels": range(1, 21)}, False)],
)
def test_images_are_paired_by_seed_and_class(first, other, paired, ref, saved):
    values = np.random.default_rng(0).normal(size=(2, 20, 3))
    (beside,), _ = compare_features([saved("a", values[0], **first), saved("b", values[1], **other)], ref)
    assert beside.scores[0].how == ("paired by image" if paired else "unpaired")


def test_features_that_do_not_compare_are_refused(ref, saved):
    draw = np.random.default_rng(0).normal(size=(20, 3))
    a = saved("a", draw)
    strange = saved("strange", draw, extractor="vgg16")
    for other, points, word in (
        (saved("few", draw[:10]), ref, "n_samples"),
        (strange, ref, "vgg16"),
        (saved("one", draw[:1]), ref, "1 images x 3"),
    ):
        with pytest.raises(DataError, match=word):
            compare_features([a, other], points)
    (beside,), alike = compare_features([a, saved("c", draw, preprocessing={"image_size": 9})], a)
    assert beside.scores[0].other == pytest.approx(0, abs=1e-6) and alike["n_ref"] == 20


# The command


@pytest.fixture
def folder(tmp_path):
    for name, value in (("a", 1.5), ("b", 1.4), ("c", 0.5)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**BASE, FID: value}))
    (tmp_path / "d.json").write_text('{"bpd": 3}')
    return tmp_path


def test_the_command_prints_json_or_a_table(elbo, folder):
    lines = ("compare", "a.json", "-", "c.json")
    found = json.loads(elbo(*lines, cwd=folder, stdin=(folder / "b.json").read_bytes()).stdout)
    assert found["first"] == "a.json" and [each["file"] for each in found["others"]] == ["-", "c.json"]
    assert [each["scores"][0]["apart"] for each in found["others"]] == [False, True]
    table = elbo("compare", "a.json", "c.json", "--table", cwd=folder).stdout.decode().splitlines()
    assert table[1].split()[1:8] == ["1.5", "0.5", "-1", "0.14142", "-1.2772", "to", "-0.72282"] and " yes " in table[1]
    assert table[2].split()[4:7] == ["-"] * 3


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        ("a.json", 2, "two"),
        ("a.json b.safetensors", 2, "--ref"),
        ("a.json nowhere.json", 1, "nowhere.json: "),
        ("a.json d.json", 1, "d.json: not a result"),
        (". .", 2, "elbo report"),
    ],
)
def test_mistakes_are_told(line, code, word, elbo, folder):
    done = elbo("compare", *line.split(), cwd=folder)
    assert done.returncode == code and word in done.stderr.decode() and not done.stdout, done.stderr
