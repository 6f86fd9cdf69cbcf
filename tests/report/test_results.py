"""Results of 'elbo eval' and 'elbo bound', told by content."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from elbocli.bound.result import Bound, Theorem
from elbocli.errors import FormatError
from elbocli.evaluate.result import EvalResult, Facts, Scores
from elbocli.report.results import drawn_by, read_result, results_in, score_rows

PART = {"nats": 1.0, "nats_se": 0.1, "bpd": 0.5, "bpd_se": 0.05}
BOUND = {
    **PART,
    "bpd_se_noise": 0.01,
    "bpd_se_population": 0.06,
    **dict.fromkeys(("prior", "reconstruction", "diffusion"), PART),
    "n_images": 9,
    "draws_per_image": 2,
    "schedule": "cosine",
    "run": "run",
}
SIDE = {"nats": 1.0, "se": 0.1, "relative_se": 0.1}
CHECK = {"weighting": "edm", "monotone": False, "left": SIDE, "right": SIDE, "difference_in_se": 0, "agree": True}
THEOREM = {"agree": True, "checks": [CHECK], "n_images": 9, "draws_per_side": 2}
SCORES = {
    "frechet_distance[a.pt2]": 1.5,
    "inception_score_mean[a.pt2]": 8.0,
    "inception_score_std[a.pt2]": 0.2,
    "accuracy": 1,
    "n_samples": 900,
    "n_ref": None,
    "extractor": "a.pt2",
    "guidance": 1.5,
}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def repeated(network: str | None, *values: dict[str, Any]) -> EvalResult:
    """Repeats with those numbers, each drawn by a command of its own."""
    facts = {"n_samples": 9, "extractor": network or "x"}
    made = [{"sampler": "ddim", "command": f"elbo sample --seed {k}"} for k in range(len(values))]
    return EvalResult([Scores(network, v, Facts.of({**facts, "made": m})) for v, m in zip(values, made)])


def test_each_kind_is_known_by_its_content_and_read_whole(tmp_path: Path) -> None:
    for kind, content in ((EvalResult, SCORES), (Bound, BOUND), (Theorem, THEOREM)):
        found = read_result(written(tmp_path / "a.json", content)).found
        assert isinstance(found, kind)
        again = found.json()
        assert all(again[key] == value for key, value in content.items()), "nothing is lost, of other versions too"


def test_scores_are_told_from_what_is_said_about_them(tmp_path: Path) -> None:
    result = read_result(written(tmp_path / "a.json", SCORES))
    assert score_rows(result.found) == [
        ("frechet distance", "a.pt2", 1.5, None, "", "n = 900", None),
        ("inception score", "a.pt2", 8.0, 0.2, "sd of parts", "n = 900", None),
        ("accuracy", "", 1.0, None, "", "n = 900", None),
    ]
    enough = read_result(written(tmp_path / "b.json", {**SCORES, "n_samples": 10_000}))
    assert {row.note for row in score_rows(enough.found)} == {""}


def test_the_spread_of_repeats_comes_before_others(tmp_path: Path) -> None:
    """And nothing is shown twice, be it published under two names."""
    distance, score = "frechet_inception_distance", "inception_score"
    each = [
        {distance: v, f"{distance}_se": 0.1, f"{distance}_infinity": v, f"{score}_mean": v, f"{score}_std": 0.2}
        for v in (1.0, 3.0)
    ]
    sd, within = pytest.approx(2**0.5), pytest.approx(stats.t(1, 2.0, 1.0).interval(0.95))
    for network, name in ((None, "frechet inception distance"), ("a.pt2", "frechet distance")):
        result = read_result(written(tmp_path / "a.json", repeated(network, *each).json()))
        assert result.found == repeated(network, *each)
        rows = score_rows(result.found)
        by = network or ""
        assert rows == [
            (name, by, 2.0, sd, "sd of repeats", "n = 9", within),
            (f"{name} infinity", by, 2.0, sd, "sd of repeats", "", within),
            ("inception score", by, 2.0, sd, "sd of repeats", "n = 9", within),
        ]
        (alone, *_) = score_rows(read_result(written(tmp_path / "a.json", repeated(network, each[0]).json())).found)
        assert alone[:5] == (name, by, 1.0, 0.1, "standard error")
        assert alone.interval == pytest.approx(stats.norm(1.0, 0.1).interval(0.95))


def test_the_commands_of_all_repeats_are_known(tmp_path: Path) -> None:
    content = written(tmp_path / "a.json", repeated(None, {"recall": 0.5}, {"recall": 0.25}).json())
    assert drawn_by(read_result(content).found) == ["elbo sample --seed 0", "elbo sample --seed 1"]
    merged = read_result(written(tmp_path / "a.json", {**SCORES, "made": {"command": ["one", "other"]}}))
    assert drawn_by(merged.found) == ["one", "other"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "JSON"),
        ({}, "not a result"),
        ({"state": "running"}, "not a result"),
        ({**BOUND, "diffusion": 5}, "diffusion"),
        ({**BOUND, "prior": {}}, "nats"),
        ({**BOUND, "nats": "many"}, "nats"),
        ({**BOUND, "nats": True}, "nats"),
        ({**BOUND, "nats": 10**399}, ""),
        ({**THEOREM, "checks": [{}]}, "weighting"),
        ({**THEOREM, "checks": 7}, "checks"),
        ({**SCORES, "accuracy": "all"}, "accuracy"),
        ({**SCORES, "accuracy": 1e308}, "accuracy"),
        ({**SCORES, "repeats": 3}, "repeats"),
        ({**SCORES, "repeats": [None]}, "repeats"),
        ({**SCORES, "made": 3}, "made"),
        ({**SCORES, "mismatch": [1]}, "mismatch"),
        ({**SCORES, "deviates": {"n": [1]}}, "deviates"),
    ],
)
def test_what_is_none_or_damaged_is_refused_in_a_sentence(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=rf"a\.json: .*{words}"):
        read_result(written(tmp_path / "a.json", content))


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000])
def test_what_is_not_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match="JSON"):
        read_result(tmp_path / "a.json")


def test_a_folder_gives_its_results_and_passes_over_the_rest(tmp_path: Path) -> None:
    written(tmp_path / "b.json", SCORES)
    written(tmp_path / "a.json", BOUND)
    written(tmp_path / "status.json", {"state": "done"})
    assert [result.path.name for result in results_in(tmp_path)] == ["a.json", "b.json"]
