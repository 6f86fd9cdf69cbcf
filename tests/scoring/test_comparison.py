"""`elbo compare` gives differences with their intervals, by seeds, by images, or each by itself, of what compares."""

import csv
import json

import numpy as np
import pytest
import torch
from harness import on_terminal
from scipy import stats

from elbocli.errors import DataError
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, write_features, write_statistics
from elbocli.scoring.comparison import compare_features, compare_results, read_scored

FID = "frechet_distance[a.pt2]"
PRECISION = "precision[a.pt2]"
ACCURACY = "accuracy[a.pt2]"
SCORES = {FID: {"value": 1.5, "se": 0.1, "interval": [1.3040036015, 1.6959963985]}, PRECISION: {"value": 0.5}}
BASE = {
    "format": "elbo-scores",
    "version": 1,
    "scores": SCORES,
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
A = [1.0, 2.0, 3.0]
B = [1.2, 2.1, 3.3]


def repeats(values, seeds):
    """The content of several sets of samples with these distances and seeds."""
    common = {key: value for key, value in BASE.items() if key not in ("scores", "made")}
    each = [{**common, "scores": {FID: {"value": value}}, "made": {"seed": seed}} for value, seed in zip(values, seeds)]
    return {**common, "repeats": each}


def scored(name, content):
    """A result file with these entries besides, or instead of, those of BASE."""
    merged = {**BASE, **content}
    return read_scored(json.dumps(merged).replace("[a.pt2]", f"[{merged['extractor']}]").encode(), name)


def compared(first, other, score=FID):
    """The difference of a score between two results, from their contents."""
    (_, beside), _ = compare_results([scored("a", first), scored("b", other)])
    (found,) = (each for each in beside.scores if each.score == score)
    return found


def test_repeats_of_the_same_seeds_are_paired_whatever_their_order():
    found = compared(repeats(A, [0, 1, 2]), repeats(B[::-1], [2, 1, 0]))
    wanted = stats.ttest_rel(B, A).confidence_interval()
    assert found.interval == pytest.approx([*wanted]) and found.difference == pytest.approx(0.2)
    assert found.how.endswith("paired by 3 seeds") and found.apart is None


@pytest.mark.parametrize("seeds", [([0, 1, 2], [3, 4, 5]), ([None] * 3,) * 2, ([0, 0, 1],) * 2])
def test_repeats_without_common_seeds_are_not_paired(seeds):
    found = compared(repeats(A, seeds[0]), repeats(B, seeds[1]))
    assert found.interval == pytest.approx([*stats.ttest_ind(B, A, equal_var=False).confidence_interval()])
    assert found.how.endswith("unpaired") and found.apart is None


@pytest.mark.parametrize(
    ("score", "other", "se", "apart"),
    [
        (FID, 1.0, 0.1 * 2**0.5, True),
        (PRECISION, 0.9, None, None),
        (ACCURACY, 0.995, 0.01 * 2**0.5 / 1.959964, False),
    ],
)
@pytest.mark.parametrize("weights", ["ab", None])
def test_single_results_differ_by_their_standard_errors_or_intervals(score, other, se, apart, weights):
    """A share of 1 is not certain: its interval counts, not its standard error of 0. One training tells apart only itself."""
    scores = {**SCORES, ACCURACY: {"value": 1.0, "se": 0.0, "interval": [0.98, 1.0]}}
    first = {"scores": scores, "made": {"weights_sha256": weights}}
    found = compared(first, {**first, "scores": {**scores, score: {**scores[score], "value": other}}}, score)
    assert found.se == (se and pytest.approx(se, rel=1e-5)) and found.apart is (apart if weights else None)
    assert found.difference == found.other - found.first
    wanted = se and pytest.approx([*stats.norm(found.difference, se).interval(0.95)])
    assert found.interval == wanted


def trained(name, values, seeds, **content):
    """Results of trainings with these seeds and settings `name`."""
    facts = [{"run_id": f"{name}{seed}", "training_seed": seed, "settings_sha256": name, "seed": 0} for seed in seeds]
    return [
        scored(f"{name}{at}", {"scores": {FID: {**SCORES[FID], "value": value}}, "made": made, **content})
        for at, (value, made) in enumerate(zip(values, facts))
    ]


@pytest.mark.parametrize(
    ("seeds", "interval"),
    [
        ([0, 1, 2], stats.ttest_rel(B, A).confidence_interval()),
        ([3, 4, 5], stats.ttest_ind(B, A, equal_var=False).confidence_interval()),
    ],
)
def test_results_of_equal_settings_are_one_side_whose_trainings_count(seeds, interval):
    """In any order of files; pairs are those of equal training seeds."""
    files = trained("a", A, [0, 1, 2]) + trained("b", B, seeds)[::-1]
    (start, beside), _ = compare_results(files)
    assert (start.trainings, beside.trainings) == (3, 3) and sorted(beside.files) == ["b0", "b1", "b2"]
    found = next(score for score in beside.scores if score.score == FID)
    assert found.interval == pytest.approx([*interval]) and found.apart == (not interval[0] <= 0 <= interval[1])


def test_further_samples_of_one_training_are_no_further_training():
    a = trained("a", A[:1], [0])
    b = trained("b", B, [0, 0, 0])
    (_, beside), _ = compare_results([*a, *b])
    assert beside.trainings == 1 and beside.scores[0].apart is None
    more = [*a, *trained("a", [1.1], [1]), *b, *trained("b", [2.0], [1])]
    (_, beside), _ = compare_results(more)
    assert beside.trainings == 2 and beside.scores[0].other == pytest.approx((np.mean(B) + 2) / 2)


def test_results_of_one_recipe_alone_are_compared_file_by_file():
    (_, *others), _ = compare_results(trained("a", A, [0, 1, 2]))
    assert [other.scores[0].difference for other in others] == [1, 2]
    assert all(other.scores[0].how.startswith("one recipe, 1 training each") for other in others)


def test_bounds_compare_as_scores_do(digits, preset, elbo, tmp_path):
    for run in ("--lr 1e-3 --seed 0", "--lr 1e-3 --seed 1", "--lr 2e-3 --seed 0", "--lr 2e-3 --seed 1"):
        name = run.replace(" ", "").strip("-")
        assert elbo("train", digits, "-o", name, "--preset", preset, "--steps", 2, *run.split(), cwd=tmp_path).returncode == 0
        bound = elbo("bound", name, "-n", 8, "--draws", 2, cwd=tmp_path)
        (tmp_path / f"{name}.json").write_bytes(bound.stdout)
    files = sorted(path.name for path in tmp_path.glob("*.json"))
    compared = elbo("compare", *files, cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    found = json.loads(compared.stdout)
    values = [json.loads((tmp_path / name).read_text())["bpd"] for name in files]
    (score,) = found["others"][0]["scores"]
    interval = stats.ttest_rel(values[2:], values[:2]).confidence_interval()
    assert found["first_trainings"] == found["others"][0]["trainings"] == 2 and score["score"] == "bpd"
    assert score["interval"] == pytest.approx([*interval])
    rows = [*csv.DictReader(elbo("compare", *files, "--csv", cwd=tmp_path).stdout.decode().splitlines())]
    assert float(rows[0]["interval_low"]) == pytest.approx(interval[0])


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
    draw = np.random.default_rng(0)
    found = []
    for _ in range(40):
        noise = draw.normal(0.2, 1.3, (200, 3))
        a = saved("a", noise)
        b = saved("b", 1.02 * noise + draw.normal(0, 0.05, noise.shape))
        (_, beside), _ = compare_features([a, b], ref)
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
    (_, beside), _ = compare_features([saved("a", values[0], **first), saved("b", values[1], **other)], ref)
    assert beside.scores[0].how.endswith(", paired by image" if paired else ", unpaired")


def test_features_that_do_not_compare_are_refused(ref, saved):
    draw = np.random.default_rng(0).normal(size=(20, 3))
    a = saved("a", draw)
    strange = saved("strange", draw, extractor="dinov2-vitl14")
    for other, points, word in (
        (saved("few", draw[:10]), ref, "n_samples"),
        (strange, ref, "dinov2-vitl14"),
        (saved("one", draw[:1]), ref, "1 images x 3"),
    ):
        with pytest.raises(DataError, match=word):
            compare_features([a, other], points)
    (_, beside), alike = compare_features([a, saved("c", draw, preprocessing={"image_size": 9})], a)
    assert beside.scores[0].other == pytest.approx(0, abs=1e-6) and alike["n_ref"] == 20


# The command


@pytest.fixture
def folder(tmp_path):
    for name, value in (("a", 1.5), ("b", 1.4), ("c", 0.5)):
        scores = {**SCORES, FID: {**SCORES[FID], "value": value}}
        (tmp_path / f"{name}.json").write_text(json.dumps({**BASE, "scores": scores}))
    (tmp_path / "d.json").write_text('{"bpd": 3}')
    return tmp_path


def test_a_pipe_gets_json(elbo, folder):
    lines = ("compare", "a.json", "-", "c.json")
    found = json.loads(elbo(*lines, cwd=folder, stdin=(folder / "b.json").read_bytes()).stdout)
    assert found["first"] == "a.json" and [each["file"] for each in found["others"]] == ["standard input", "c.json"]
    assert [each["scores"][0]["apart"] for each in found["others"]] == [None, None]


def test_a_terminal_gets_a_table_that_tells_what_the_intervals_cover(folder):
    shown = on_terminal("compare", "a.json", "c.json", cwd=folder)[1]
    distance, precision = (line.split() for line in shown.splitlines() if line.startswith(("frechet", "precision")))
    assert distance[2:] == ["1.50", "0.50", "-1.00", "±", "0.14", "-1.28", "to", "-0.72", "-"]
    assert precision[1:] == ["0.5", "0.5", "0", "-", "-"]
    assert "trainings unknown: sampling noise only" in shown and "900 images" in shown


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        ("a.json", 2, "two"),
        ("a.json b.safetensors", 2, "--ref"),
        ("a.json nowhere.json", 1, "nowhere.json: "),
        ("a.json d.json", 1, "d.json: has format None"),
        (". .", 2, "elbo report"),
    ],
)
def test_mistakes_are_told(line, code, word, elbo, folder):
    done = elbo("compare", *line.split(), cwd=folder)
    assert done.returncode == code and word in done.stderr.decode() and not done.stdout, done.stderr
