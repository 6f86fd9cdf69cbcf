"""Every benchmark runs: once, at its smallest size."""

import json
import math
import subprocess
import sys
import time
from importlib import import_module
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from elbocli.scoring.metrics import METRICS, Role

BENCH = Path(__file__).parents[2] / "tools/bench"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCH.glob("bench_*.py")))
def test_a_benchmark_runs(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    rows = list(import_module(name).rows(small=True))
    assert rows and len({row.name for row in rows}) == len(rows)
    assert all(math.isfinite(row.ratio) and row.peer > 0 for row in rows)


def test_the_table_is_printed():
    line = [sys.executable, BENCH / "run.py", "read", "--small"]
    result = subprocess.run(line, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) > 4 and "numpy.memmap" in result.stdout


# Equal time


@pytest.fixture
def equal_time(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return import_module("equal_time")


def test_the_loop_learns_until_its_time_is_over_and_draws(equal_time, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(equal_time.time, "time", count(step=0.5).__next__)  # read twice a step, so that a step takes a second
    words = [digits, "--seed", 3, "-o", tmp_path / "a.npy", "--images", 5, "--sampling-steps", 2]
    losses = []
    for seconds in (1, 40):
        until = ["--loop-until", time.time() + seconds, "--loop-seconds", seconds]
        facts = equal_time.loop(equal_time.parsed([str(word) for word in [*words, *until]]))
        images = np.load(tmp_path / "a.npy")
        assert images.shape == (5, 8, 8, 1) and images.dtype == np.uint8
        assert facts["images"] == 64 * facts["steps"]
        losses.append(facts["loss"])
    assert losses[1] < losses[0] and 30 < facts["steps"] < 40 and facts["seconds"] <= 41


def test_tuning_tries_each_candidate_on_one_seed_and_sorts_by_distance(equal_time, digits, tmp_path, monkeypatch):
    options = equal_time.parsed([str(word) for word in (digits, "--test", digits, "--tune", "-o", tmp_path / "out.json")])
    comparison = equal_time.Comparison(options, tmp_path)
    seeds = []
    monkeypatch.setattr(comparison, "loop_side", lambda seed: (seeds.append(seed), {}))
    monkeypatch.setattr(comparison, "score", lambda images, labelled: {"distance": 1 / (options.layers + options.lr)})
    rows = comparison.tune()
    assert [(row["layers"], row["lr"]) for row in rows] == equal_time.CANDIDATES[::-1]
    assert seeds == [equal_time.TUNING_SEED] * len(rows)


@pytest.mark.slow  # a minute
def test_both_sides_are_trained_and_scored_by_elbos_commands_once(equal_time, digits, tmp_path, capsys, monkeypatch):
    sizes = ("--minutes", 0.05, "--seeds", 1, "--images", 70, "--sampling-steps", 2, "--bound-images", 2, "--tune")
    words = [str(word) for word in (digits, "--test", digits, *sizes, "-o", tmp_path / "out.json")]
    monkeypatch.setattr(equal_time.Comparison, "tune", lambda self: [{"layers": 1, "lr": 1e-3, "distance": 0.0}])
    equal_time.main(words)
    result = json.loads((tmp_path / "out.json").read_text())
    said = capsys.readouterr().out
    (row,) = result["seeds"]
    assert all(row[side]["distance"] > result["fresh"] >= 0 and row[side]["seconds"] > 0 for side in equal_time.SIDES)
    assert row["elbo"]["bpd"] > 0 and row["elbo"]["steps"] >= 1 and row["loop"]["parameters"] > row["elbo"]["parameters"]
    tuned, untuned = (equal_time.narrowest(8, 1, 10, row["elbo"]["parameters"], layers).num_parameters() for layers in (1, 2))
    assert row["loop"]["parameters"] == tuned != untuned
    assert result["distance_ratio"]["ratio"] == pytest.approx(row["elbo"]["distance"] / row["loop"]["distance"])
    monkeypatch.setattr(equal_time.subprocess, "run", None)
    equal_time.main(words)  # trains nothing
    assert capsys.readouterr().out == said and f"{result['distance_ratio']['ratio']:.3f}" in said
    with pytest.raises(SystemExit, match="other settings"):
        equal_time.main([*words, "--batch", "8"])


# Calibration


def test_every_score_with_an_error_is_calibrated(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(BENCH))
    sizes = "--worlds equal --widths 8 --n 100 --sets 12 --references 2 --n-ref 400 --kid-subset-size 20"
    import_module("calibration").main([*sizes.split(), "-o", str(tmp_path / "out.json")])
    table = json.loads((tmp_path / "out.json").read_text())
    scores = [row["score"] for row in table]
    declared = {number.of for each in METRICS.values() for number in each.traits.numbers if number.role is Role.ERROR}
    assert declared <= {*scores} and len({*scores}) == len(scores) == len(capsys.readouterr().out.splitlines()) - 1
    for row in table:
        assert 0 < row["ratio_se"] < row["ratio"] and 0 <= row["inside"] <= 1 and 0.3 < row["ratio"] < 3
