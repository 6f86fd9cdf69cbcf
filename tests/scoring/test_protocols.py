"""Protocols: every name in them is declared, each sets all that decides its numbers, and a deviation is refused or named."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from elbocli.data.samples import BlackRows, SampleReader
from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, write_features
from elbocli.files.sample_files import SamplesAbout
from elbocli.scoring.extractors import DEFAULT, EXTRACTORS, PUBLISHED_INCEPTION
from elbocli.scoring.frechet import frechet_distance
from elbocli.scoring.metrics import Features, metric_options, parse_metrics
from elbocli.scoring.protocols import check_files, check_settings, deviations, deviations_of_files
from elbocli.scoring.sets import FeatureSet, ImageSet
from elbocli.scoring.settings import PROTOCOLS, EvalSettings, settings_of

N = 50_000
RAE = "rae-50-a-class"
ADM_METRICS = "fid,sfid,is,prc"
BALANCED = np.arange(N) % 1000


def settings(name, allow_mismatch=False, precision="fp32", metrics=None, extractor=None, **given):
    """Settings as the command makes them of the options that were given."""
    return EvalSettings(**settings_of(name, given, metrics, extractor), allow_mismatch=allow_mismatch, precision=precision)


def samples(name="adm", n=N, labels=BALANCED, **about):
    """Samples of which only that is known, by the protocol's extractor."""
    known = {"extractor": PROTOCOLS[name].extractors[0], "weights_sha256": PUBLISHED_INCEPTION + "0" * 56, **about}
    return FeatureSet("a.npz", FeatureFacts(n=n, **known), Features(torch.empty(n, 0), labels=labels))


def reference(images=10_000, statistics=True):
    """A reference of that many images, with statistics or not."""
    held = Statistics(np.zeros(4), np.eye(4))
    if not images:
        return FeatureSet.of_statistics("ref.npz", held)
    reader = SampleReader("ref.npz", BlackRows((images, 1, 1, 3)), None, SamplesAbout(), [], {})
    return ImageSet(reader, FeatureFacts(), None, statistics=held if statistics else None)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_all_that_a_protocol_names_is_declared_and_documented(name):
    protocol = PROTOCOLS[name]
    assert {*protocol.extractors} <= {*EXTRACTORS}
    assert {*protocol.options} <= {option.name for option in metric_options() if option.metric in protocol.metrics.split(",")}
    for metric in parse_metrics(protocol.metrics, protocol.options).values():
        assert metric.network in ("", *protocol.extractors)
    page = (Path(__file__).parents[2] / "docs" / "scores.md").read_text()
    (row,) = re.findall(rf"^\| `{name}` \|.*$", page, re.M)
    assert f"{protocol.n:,}" in row or f"{protocol.per_class} of each of" in row


@pytest.mark.parametrize(
    ("given", "metrics"),
    [
        ({}, "fid,is"),
        ({"extractor": "Inception"}, "fid,is"),
        ({"extractor": "elbo-tiny"}, "fid"),
        ({"extractor": "dinov2-vitl14"}, "fid"),
        ({"extractor": "mine.pt2"}, "fid"),
        ({"extractor": "elbo-tiny", "metrics": "is"}, "is"),
    ],
)
def test_the_inception_score_of_other_networks_is_computed_on_request_only(given, metrics):
    assert list(settings("", **given).metrics) == metrics.split(",")


def test_parts_of_adms_inception_score_follow_each_other():
    """exp of the mean divergence of each part's labels from their mean: by ADM's order, not torch-fidelity's."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 5)) * 2).float()
    p = logits.double().softmax(1).reshape(4, 10, 5)
    wanted = float((p * (p.log() - p.mean(1, keepdim=True).log())).sum(2).mean(1).exp().mean())
    own = Features(torch.zeros(40, 1), logits)
    given, shuffled = (
        parse_metrics("is", {"splits": 4, "is_order": order})["is"](own, own)["inception_score"].value
        for order in ("given", "shuffled")
    )
    assert given == pytest.approx(wanted, rel=1e-12) and shuffled != pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_samples_that_keep_to_a_protocol_do_not_deviate(name):
    """Nor do fewer of its metrics, and another name for its extractor."""
    assert deviations(settings(name)) == deviations_of_files(settings(name), samples(name), reference()) == {}
    chosen = settings(name, metrics="fid")
    assert [*chosen.metrics] == ["fid"] and deviations(chosen) == {}
    assert deviations(settings("edm", extractor="inception")) == {}
    for other in PROTOCOLS[name].extractors:
        assert deviations(settings(name, extractor=other)) == {}
        assert deviations_of_files(settings(name), samples(name, extractor=other), reference()) == {}


EACH = "{}, each with {} to {} samples"
WRONG = [
    *((name, {"n": N - 1, "labels": None}, "n", [N - 1, N]) for name in PROTOCOLS),
    *(
        (name, {"extractor": "elbo-tiny"}, "extractor", ["elbo-tiny", " or ".join(PROTOCOLS[name].extractors)])
        for name in PROTOCOLS
    ),
    *((name, {"feature_precision": "bf16"}, "feature_precision", ["bf16", "fp32"]) for name in PROTOCOLS),
    ("edm", {"weights_sha256": "ab" * 32}, "extractor_weights", ["ab" * 4, PUBLISHED_INCEPTION]),
    (RAE, {"labels": np.arange(N) % 999}, "classes", [EACH.format(999, 50, 51), EACH.format(1000, 50, 50)]),
    (RAE, {"labels": np.append(BALANCED[1:], 1)}, "classes", [EACH.format(1000, 49, 51), EACH.format(1000, 50, 50)]),
    (RAE, {"labels": None}, "classes", ["not known", EACH.format(1000, 50, 50)]),
]


@pytest.mark.parametrize(("name", "change", "key", "pair"), WRONG)
def test_samples_that_deviate_are_refused_unless_that_is_allowed(name, change, key, pair):
    given = samples(name, **change)
    with pytest.raises(DataError, match=rf"a\.npz: .*{key} is {pair[0]}"):
        check_files(settings(name), given, reference())
    assert deviations_of_files(settings(name, allow_mismatch=True), given, reference())[key] == pair


@pytest.mark.parametrize(
    ("given", "key", "pair"),
    [
        ({"splits": 5}, "splits", [5, 10]),
        ({"is_order": "shuffled"}, "is_order", ["shuffled", "given"]),
        ({"prc_protocol": "torch-fidelity"}, "prc_protocol", ["torch-fidelity", "adm"]),
        ({"metrics": "fid,kid"}, "metrics", ["kid", ADM_METRICS.replace(",", ", ")]),
        ({"extractor": "elbo-tiny"}, "extractor", ["elbo-tiny", DEFAULT]),
        ({"precision": "bf16"}, "feature_precision", ["bf16", "fp32"]),
    ],
)
def test_options_that_deviate_are_refused_unless_that_is_allowed(given, key, pair):
    with pytest.raises(UsageError, match=f"{key} is {pair[0]}, but {pair[1]} for protocol adm"):
        check_settings(settings("adm", **given))
    assert deviations(settings("adm", **given, allow_mismatch=True)) == {key: pair}


@pytest.mark.parametrize(
    ("given", "metrics", "words"),
    [
        (reference(300), ADM_METRICS, "with 300 images .* with 10000 images"),
        (reference(0), ADM_METRICS, "with 0 images"),
        (reference(statistics=False), ADM_METRICS, "no statistics"),
        (reference(0), "fid,is", ""),
    ],
)
def test_adm_compares_with_its_own_references(given, metrics, words):
    chosen = settings("adm", metrics=metrics)
    assert deviations_of_files(settings("edm"), samples(), given) == {}, "edm takes any reference"
    if not words:
        assert deviations_of_files(chosen, samples(), given) == {}
        return
    with pytest.raises(DataError, match=words):
        check_files(chosen, samples(), given)


# Through the command


def statistics(path, values, **more):
    np.savez(path, mu=values.mean(0), sigma=np.cov(values, rowvar=False), **more)
    return path


def test_scores_that_keep_to_a_protocol_have_published_names_and_say_so(elbo, tmp_path):
    """50,000 features that say they are of the published Inception, 50 of each class, by EDM's and ADM's references."""
    draw = np.random.default_rng(0)
    saved = tmp_path / "a.safetensors"
    values = draw.normal(size=(N, 4)).astype(np.float32)
    theirs = draw.normal(size=(2000, 4)) + 0.5
    logits = torch.from_numpy(draw.normal(size=(N, 3)).astype(np.float32))
    write_features(saved, SavedFeatures(torch.from_numpy(values), logits, torch.from_numpy(BALANCED), samples().about))
    edm = statistics(tmp_path / "edm.npz", theirs)
    adm = statistics(tmp_path / "adm.npz", theirs, arr_0=np.zeros((10_000, 1, 1, 3), np.uint8))
    moments = [SimpleNamespace(mu=each.mean(0, float), sigma=np.cov(each, rowvar=False)) for each in (values, theirs)]
    for name, ref in (("edm", edm), (RAE, adm), ("adm", adm)):
        metrics = () if name == "edm" else ("--metrics", "fid,is")
        done = elbo("eval", saved, "--ref", ref, "--protocol", name, *metrics)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["protocol"] == name and "deviates" not in found
        assert found["scores"]["frechet_inception_distance"]["value"] == pytest.approx(frechet_distance(*moments), rel=1e-6)
        assert ("is_order" in found) == (name != "edm")


@pytest.mark.long
def test_scores_that_deviate_say_so_in_result_and_report(elbo, digits, trained, inception_weights, tmp_path):
    """ADM's protocol with few images and other weights, against a reference in its layout."""
    rgb = np.repeat(Dataset(digits).read(np.arange(14)), 3, 3)
    np.save(tmp_path / "a.npy", rgb[:10])
    spatial = {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    values = np.random.default_rng(0).normal(size=(20, 2048))
    statistics(tmp_path / "ref.npz", values, arr_0=rgb[10:], **spatial)
    line = ("eval", "a.npy", "--ref", "ref.npz", "--protocol", "adm", "--extractor-weights", inception_weights)
    refused = elbo(*line, cwd=tmp_path)
    assert refused.returncode == 1 and b"n is 10" in refused.stderr and not refused.stdout
    done = elbo(*line, "--allow-mismatch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["deviates"]) == {"n", "extractor_weights", "reference"}
    assert (found["protocol"], found["splits"], found["is_order"], found["prc_protocol"]) == ("adm", 10, "given", "adm")
    names = ("frechet_distance", "spatial_frechet_distance", "inception_score", "precision")
    assert {f"{name}[{DEFAULT}]" for name in names} <= {*found["scores"]}
    (tmp_path / "a.json").write_bytes(done.stdout)
    page = elbo("report", trained, tmp_path / "a.json")
    text = page.stdout.decode()
    assert "adm" in text and "differs from the protocol" in text and "50000" in text
