"""Results of 'elbo eval' and 'elbo bound', told by content."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from elbocli.errors import DataError, FormatError
from elbocli.report.results import read_result, results_in

PART = {"nats": 1.0, "nats_se": 0.1, "bpd": 0.5, "bpd_se": 0.05}
BOUND = {**PART, "prior": PART, "reconstruction": PART, "diffusion": PART, "run": "run"}
SIDE = {"nats": 1.0, "se": 0.1}
THEOREM = {
    "agree": True,
    "checks": [{"weighting": "edm", "left": SIDE, "right": SIDE, "difference_in_se": 0.0, "agree": True}],
}
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


def test_each_kind_is_known_by_its_content(tmp_path: Path) -> None:
    for kind, content in (("scores", SCORES), ("bound", BOUND), ("theorem", THEOREM)):
        assert read_result(written(tmp_path / "a.json", content)).kind == kind


def test_scores_are_told_from_what_is_said_about_them(tmp_path: Path) -> None:
    result = read_result(written(tmp_path / "a.json", SCORES))
    assert result.rows == [
        ("frechet_distance", 1.5, None, "", "a.pt2"),
        ("inception_score", 8.0, 0.2, "sd of parts", "a.pt2"),
        ("accuracy", 1.0, None, "", ""),
    ]
    assert result.about == {"n_samples": 900, "extractor": "a.pt2", "guidance": 1.5}


def test_the_spread_of_repeats_comes_before_others(tmp_path: Path) -> None:
    ends = {
        "frechet_distance_se[a.pt2]": 0.1,
        "inception_score_mean_sd[a.pt2]": 0.3,
        "frechet_distance_infinity[a.pt2]": 1.0,
    }
    ends |= {"frechet_distance_infinity_interval[a.pt2]": [0.5, 1.5]}  # type: ignore[dict-item]
    result = read_result(written(tmp_path / "a.json", SCORES | ends))
    spreads = {name: (spread, kind) for name, _, spread, kind, _ in result.rows}
    assert spreads == {
        "frechet_distance": (0.1, "standard error"),
        "frechet_distance_infinity": (None, ""),
        "inception_score": (0.3, "sd of repeats"),
        "accuracy": (None, ""),
    }


def test_a_number_said_twice_is_shown_once(tmp_path: Path) -> None:
    twice = {"frechet_inception_distance": 3.0, "fid": 3.0, "n_samples": 9, "extractor": "x"}
    result = read_result(written(tmp_path / "a.json", twice))
    assert [row[0] for row in result.rows] == ["frechet_inception_distance"]
    beyond = {
        "frechet_inception_distance_infinity": 2.0,
        "fid_infinity": 2.0,
        "fid_sd": 1.0,
        "frechet_inception_distance_sd": 1.0,
    }
    rows = read_result(written(tmp_path / "a.json", twice | beyond)).rows
    assert [row[:3] for row in rows] == [
        ("frechet_inception_distance", 3.0, 1.0),
        ("frechet_inception_distance_infinity", 2.0, None),
    ]
    alone = {key: value for key, value in twice.items() if key != "frechet_inception_distance"}
    assert read_result(written(tmp_path / "a.json", alone)).rows[0][:2] == ("fid", 3.0)


def test_the_commands_of_all_repeats_are_known(tmp_path: Path) -> None:
    repeats = [{"made": {"command": f"elbo sample --seed {k}"}} for k in range(2)]
    found = read_result(
        written(tmp_path / "a.json", {**SCORES, "made": {"sampler": "ddim"}, "repeats": [*repeats, None, {"made": 1}]})
    )
    assert found.drawn_by == ["elbo sample --seed 0", "elbo sample --seed 1"]
    merged = read_result(written(tmp_path / "a.json", {**SCORES, "made": {"command": ["one", "other"]}}))
    assert merged.drawn_by == ["one", "other"]
    assert read_result(written(tmp_path / "a.json", {**SCORES, "made": {"command": "c"}, "repeats": 3})).drawn_by == [
        "c"
    ]


def test_a_bound_ends_with_its_sum(tmp_path: Path) -> None:
    rows = read_result(written(tmp_path / "a.json", {**BOUND, "nats": 3.0})).rows
    assert [row[0] for row in rows] == ["prior", "reconstruction", "diffusion", "bound"]
    assert rows[-1] == ("bound", 3.0, 0.1, 0.5, 0.05)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"state": "running"},
        {**BOUND, "diffusion": 5},
        {**BOUND, "prior": {}},
        {**BOUND, "nats": "many"},
        {**THEOREM, "checks": [{}]},
        {**THEOREM, "checks": 7},
    ],
)
def test_what_is_none_or_damaged_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"a\.json"):
        read_result(written(tmp_path / "a.json", content))


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000])
def test_what_is_not_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match="not a result"):
        read_result(tmp_path / "a.json")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(DataError, match="not a regular file"):
        read_result(tmp_path / "a.json")


def test_a_folder_gives_its_results_and_passes_over_the_rest(tmp_path: Path) -> None:
    written(tmp_path / "b.json", SCORES)
    written(tmp_path / "a.json", BOUND)
    written(tmp_path / "status.json", {"state": "done"})
    os.mkfifo(tmp_path / "pipe.json")
    said: list[str] = []
    assert [result.path.name for result in results_in(tmp_path, said.append)] == ["a.json", "b.json"]
    assert len(said) == 1 and "pipe.json" in said[0]
