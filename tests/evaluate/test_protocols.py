"""Protocols: every name in them is declared, each sets all that decides its numbers, and what deviates is refused or named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elbocli.core.estimate import frechet_distance
from elbocli.core.metrics import METRICS, asked
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import FeatureSource
from elbocli.evaluate.scoring import deviations
from elbocli.evaluate.settings import PROTOCOLS, EvalSettings, settings_of
from elbocli.files.dataset import Dataset
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, read_features, write_features
from elbocli.nn.extractors import DEFAULT, EXTRACTORS, PUBLISHED_INCEPTION

Elbo = Callable[..., Any]
ROOT = Path(__file__).parent.parent.parent
PUBLISHED = PUBLISHED_INCEPTION + "0" * 56
N = 50_000


def settings(name: str, **more: Any) -> EvalSettings:
    """Settings as the command makes them. more: the options that were given, with allow_mismatch and classes."""
    own = {key: more.pop(key) for key in ("allow_mismatch", "classes") if key in more}
    return EvalSettings(**settings_of(name, more, 0), **own)


def source(n: int = N, labels: np.ndarray | None = None, **about: Any) -> FeatureSource:
    """Samples of which only that is known."""
    known = {"extractor": DEFAULT, "weights_sha256": PUBLISHED, **about}
    return FeatureSource("a.npz", n, FeatureFacts(n=n, **known), labels=labels)


def reference(images: int | None = 10_000, statistics: bool = True) -> FeatureSource:
    """A reference of that many images, with statistics or not."""
    held = Statistics(np.zeros(4), np.eye(4)) if statistics else None
    return FeatureSource("ref.npz", images or 0, FeatureFacts(), statistics=held)


SOUND: dict[str, dict[str, Any]] = {name: {} for name in PROTOCOLS} | {
    "rae-50-a-class": {"labels": np.arange(N) % 1000},
}
"""Samples that each protocol takes, besides what `source` says."""


def fitting(name: str, **more: Any) -> FeatureSource:
    return source(**{"extractor": PROTOCOLS[name].extractor, **SOUND[name], **more})


# What each names and sets


@pytest.mark.parametrize("name", PROTOCOLS)
def test_all_that_a_protocol_names_is_declared(name: str) -> None:
    declared = PROTOCOLS[name]
    assert declared.extractor in EXTRACTORS
    own = {each.name: each for metric in declared.metrics for each in METRICS[metric].traits.options}
    for key, value in declared.options.items():
        about = own[key]
        assert value in about.choices if about.choices else about.least <= value <= about.most
    for metric, options in asked(declared.metrics, **declared.options).items():
        assert METRICS[metric].traits.network(options) in (None, declared.extractor)
    assert declared.formula and declared.source and declared.tables
    assert declared.n == declared.classes * declared.per_class or not declared.classes


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_page_says_what_it_sets(name: str) -> None:
    page = (ROOT / "docs" / "scores.md").read_text()
    (row,) = re.findall(rf"^\| `{name}` \|.*$", page, re.M)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    protocol, of = PROTOCOLS[name], {"as `adm`": "adm"}
    assert cells[1].strip("`") == protocol.extractor or PROTOCOLS[of[cells[1]]].extractor == protocol.extractor
    metrics = PROTOCOLS[of[cells[2]]].metrics if cells[2] in of else protocol.metrics
    assert metrics == protocol.metrics
    for metric in metrics if cells[2] not in of else ():
        assert f"`{metric}`" in cells[2]
    assert f"{protocol.n:,}" in cells[3] or f"{protocol.per_class} of each of" in cells[3]


def test_adm_sets_what_its_program_does() -> None:
    found = settings("adm")
    assert (found.extractor, found.protocol) == (DEFAULT, "adm")
    assert {"fid", "is", "prc"} <= set(found.metrics)
    score, prc = found.metrics["is"], found.metrics["prc"]
    assert (score.splits, score.is_order) == (10, "given")  # type: ignore[attr-defined]
    assert prc.prc_protocol == "adm"
    assert PROTOCOLS["adm"].n == N


def test_rae_is_adm_but_for_the_classes() -> None:
    rae, adm = PROTOCOLS["rae-50-a-class"], PROTOCOLS["adm"]
    assert rae.metrics == adm.metrics and (rae.extractor, rae.n) == (adm.extractor, adm.n)
    assert (rae.classes, rae.per_class) == (1000, 50)


def test_parts_of_the_inception_score_follow_each_other() -> None:
    """exp of the mean divergence of each part's labels from their mean: by ADM's order, not torch-fidelity's."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 5)) * 2).float()
    p = logits.double().softmax(1).reshape(4, 10, 5)
    wanted = (p * (p.log() - p.mean(1, keepdim=True).log())).sum(2).mean(1).exp()
    samples: Any = type("Samples", (), {"logits": logits})
    found = METRICS["is"].make(samples, None, asked(["is"], splits=4, is_order="given")["is"])
    assert found["inception_score_mean"] == pytest.approx(float(wanted.mean()), rel=1e-12)
    shuffled = METRICS["is"].make(samples, None, asked(["is"], splits=4)["is"])
    assert shuffled["inception_score_mean"] != pytest.approx(float(wanted.mean()), rel=1e-6)


# What each refuses


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_a_protocol_takes_passes(name: str) -> None:
    assert deviations(settings(name), fitting(name), reference()) == {}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_fewer_of_its_metrics_and_more_numbers_are_no_deviation(name: str) -> None:
    chosen = settings(name, metrics=("fid",), fid_infinity=True)
    assert [*chosen.metrics] == ["fid"] and deviations(chosen) == {}


WRONG: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    *((name, {"n": N - 1}, "n", [N - 1, N]) for name in PROTOCOLS),
    *((name, {"extractor": "elbo-tiny"}, "extractor", ["elbo-tiny", PROTOCOLS[name].extractor]) for name in PROTOCOLS),
    ("edm", {"weights_sha256": "ab" * 32}, "extractor_weights", ["ab" * 4, PUBLISHED_INCEPTION]),
    (
        "rae-50-a-class",
        {"labels": np.arange(N) % 999},
        "classes",
        ["999, each with 50 to 51 samples", "1000, each with 50 to 50 samples"],
    ),
    (
        "rae-50-a-class",
        {"labels": np.append(np.arange(N - 1) % 1000, 0)},
        "classes",
        ["1000, each with 49 to 51 samples", "1000, each with 50 to 50 samples"],
    ),
]


@pytest.mark.parametrize(("name", "change", "key", "pair"), WRONG)
def test_samples_that_deviate_are_refused_unless_that_is_allowed(
    name: str, change: dict[str, Any], key: str, pair: list[Any]
) -> None:
    given = fitting(name, **change)
    if "n" in change and given.labels is not None:
        given = replace(given, labels=None)
    with pytest.raises(DataError, match=rf"a\.npz: .*{key} is .*--allow-mismatch"):
        deviations(settings(name), given, reference())
    assert deviations(settings(name, allow_mismatch=True), given, reference())[key] == pair


def test_classes_that_are_not_known_are_refused_and_may_be_said() -> None:
    with pytest.raises(DataError, match="classes is not known"):
        deviations(settings("rae-50-a-class"), source(), reference())


@pytest.mark.parametrize(
    ("given", "metrics", "words"),
    [
        (reference(300), None, "statistics with 300 images beside them, .* statistics with 10000 images"),
        (reference(None), None, "statistics with 0 images"),
        (reference(statistics=False), None, "no statistics"),
        (reference(None), ("fid", "is"), ""),
    ],
)
def test_adm_compares_with_its_own_references(given: FeatureSource, metrics: Any, words: str) -> None:
    chosen = settings("adm", **({"metrics": metrics} if metrics else {}))
    assert deviations(settings("edm"), source(), given) == {}, "edm takes any reference"
    if not words:
        assert deviations(chosen, source(), given) == {}
        return
    with pytest.raises(DataError, match=words):
        deviations(chosen, source(), given)


@pytest.mark.parametrize(
    ("given", "key", "pair"),
    [
        ({"splits": 5}, "splits", [5, 10]),
        ({"is_order": "shuffled"}, "is_order", ["shuffled", "given"]),
        ({"prc_protocol": "torch-fidelity"}, "prc_protocol", ["torch-fidelity", "adm"]),
        ({"metrics": ("fid", "kid")}, "metrics", ["kid", ", ".join(PROTOCOLS["adm"].metrics)]),
        ({"extractor": "elbo-tiny"}, "extractor", ["elbo-tiny", DEFAULT]),
    ],
)
def test_options_that_deviate_are_refused_unless_that_is_allowed(given: Any, key: str, pair: list[Any]) -> None:
    with pytest.raises(UsageError, match=f"{key} is {pair[0]}, that of --protocol adm {pair[1]}"):
        deviations(settings("adm", **given))
    chosen = settings("adm", **given, allow_mismatch=True)
    assert deviations(chosen) == {key: pair}
    known = source(extractor=given.get("extractor", DEFAULT))
    assert deviations(chosen, known, reference())[key] == pair, "the result names it"


def test_another_name_for_the_same_extractor_is_no_deviation() -> None:
    assert deviations(settings("edm", extractor="inception")) == {}


# Through the command


def statistics(path: Path, values: np.ndarray, **more: Any) -> Path:
    np.savez(path, mu=values.mean(0), sigma=np.cov(values, rowvar=False), **more)
    return path


def published(path: Path, draw: np.random.Generator, labels: np.ndarray | None = None) -> np.ndarray:
    """Saved features that say they are of the published Inception, 50,000 of them."""
    values = draw.normal(size=(N, 4)).astype(np.float32)
    logits = torch.from_numpy(draw.normal(size=(N, 3)).astype(np.float32))
    about = FeatureFacts(n=N, extractor=DEFAULT, weights_sha256=PUBLISHED)
    told = None if labels is None else torch.from_numpy(labels)
    write_features(path, SavedFeatures(torch.from_numpy(values), logits, told, about))
    return values


def test_what_keeps_to_a_protocol_has_published_names_and_says_so(elbo: Elbo, tmp_path: Path) -> None:
    """An EDM-layout and an ADM-layout reference, 50,000 samples, 50 of each class."""
    draw = np.random.default_rng(0)
    values = published(tmp_path / "a.safetensors", draw, np.arange(N) % 1000)
    theirs = draw.normal(size=(2000, 4)) + 0.5
    edm = statistics(tmp_path / "edm.npz", theirs)
    spatial = {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    adm = statistics(tmp_path / "adm.npz", theirs, arr_0=np.zeros((10_000, 1, 1, 3), np.uint8), **spatial)
    own: Any = type("Moments", (), {"mu": values.mean(0, np.float64), "sigma": np.cov(values, rowvar=False)})
    other: Any = type("Moments", (), {"mu": theirs.mean(0), "sigma": np.cov(theirs, rowvar=False)})
    for name, ref in (("edm", edm), ("rae-50-a-class", adm), ("adm", adm)):
        metrics = () if name == "edm" else ("--metrics", "fid,is")
        done = elbo("eval", tmp_path / "a.safetensors", "--ref", ref, "--protocol", name, *metrics)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["protocol"] == name and "deviates" not in found
        assert found["fid"] == pytest.approx(frechet_distance(own, other), rel=1e-6)
        assert ("is_order" in found) == (name != "edm")


def test_what_deviates_stands_in_result_card_and_report(
    elbo: Elbo, digits: Path, trained: Path, inception_weights: Path, tmp_path: Path
) -> None:
    """ADM's protocol with few images and other weights, against a reference in its layout."""
    rgb = np.repeat(Dataset(digits).batch(np.arange(28)), 3, 3)
    draw = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rgb[:14])
    spatial = {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    statistics(tmp_path / "ref.npz", draw.normal(size=(20, 2048)), arr_0=rgb[14:], **spatial)
    line = ("eval", "a.npy", "--ref", "ref.npz", "--protocol", "adm", "--extractor-weights", inception_weights)
    refused = elbo(*line, cwd=tmp_path)
    assert refused.returncode == 1 and b"n is 14" in refused.stderr and not refused.stdout
    done = elbo(*line, "--allow-mismatch", "--card", "a.md", "--save-features", "a.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["protocol"] == "adm" and set(found["deviates"]) == {"n", "extractor_weights", "reference"}
    assert (found["splits"], found["is_order"], found["prc_protocol"]) == (10, "given", "adm")
    for name in PROTOCOLS["adm"].metrics:
        first = METRICS[name].traits.numbers[0]
        assert first.name(DEFAULT) in found, name
    card = (tmp_path / "a.md").read_text()
    assert "- protocol: `adm`, 50000 samples" in card and "**Deviates from the protocol" in card
    (tmp_path / "a.json").write_bytes(done.stdout)
    page = elbo("report", trained, "--scores", tmp_path / "a.json")
    assert page.returncode == 0, page.stderr
    assert b"Protocol adm: 50000 samples" in page.stdout and b"Deviates from it: n: 14 instead of 50000" in page.stdout
    assert len(read_features(tmp_path / "a.safetensors").features) == 14


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--protocol adm --splits 5", "splits is 5"),
        ("--protocol adm --metrics fid,kid", "metrics is kid"),
        ("--protocol edm --extractor elbo-tiny", "extractor is elbo-tiny"),
        ("--protocol edm --splits 10", "--splits goes with --metrics is"),
        ("--protocol edm3", "'edm3' is not one of"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(options: str, words: str, elbo: Elbo) -> None:
    done = elbo("eval", "nowhere.npy", "--ref", "nowhere.npz", *options.split())
    assert done.returncode == 2 and words in done.stderr.decode(), done.stderr
