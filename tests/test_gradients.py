"""examples/gradients: the variance of training gradients, with errors that hold."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import load

from elbocli.bound.measure import open_measurement
from elbocli.core.weighting import parse_weighting
from elbocli.files.schedule_file import resolve_schedule

FOLDER = Path(__file__).parent.parent / "examples" / "gradients"
gradients: Any = load(FOLDER / "gradient_variance.py")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_jackknife_knows_the_spread_of_independent_gradients():
    """Batch gradients N(μ, S): tr Cov / ‖μ‖² is known, and the stated errors are those of repetition."""
    random = np.random.default_rng(0)
    mean = np.array([1.0, 0, -2.0, 0.5])
    scale = np.array([1.0, 2.0, 0.5, 1.5])
    truth = float((scale**2).sum() / (mean**2).sum())

    def measured() -> Any:
        found = torch.from_numpy(mean + scale * random.normal(size=(64, 4)))
        groups = torch.stack([found[k :: gradients.GROUPS].sum(0) for k in range(gradients.GROUPS)])
        squares = torch.stack([found[k :: gradients.GROUPS].square().sum() for k in range(gradients.GROUPS)])
        return gradients.compare([gradients.GroupSums(groups @ groups.T, squares, 8)], 1)[0][:2]

    values = np.array([measured() for _ in range(400)])
    assert values[:, 0].mean() == pytest.approx(truth, rel=0.02)
    assert values[:, 1].mean() == pytest.approx(values[:, 0].std(), rel=0.15)


@pytest.mark.long
def test_gradients_are_those_of_training(trained):
    """Their mean over independent batches doesn't depend on the schedule."""
    asked = open_measurement(trained, None, weights="model")
    steps = gradients.Gradients(asked)
    w = parse_weighting("sigmoid:bias=2")
    means = []
    for spec in ("cosine", "fitted:loss"):
        schedule = gradients._schedule_of(spec, asked, w)
        means.append(torch.stack([steps.at(step, w, schedule) for step in range(60)]))
    one, other = (m.mean(0) for m in means)
    noise = sum(float(m.var(0).sum()) / len(m) for m in means) ** 0.5
    assert float((one - other).norm()) < 1.5 * noise
    assert float(one.norm()) > 3 * noise


def test_the_script_writes_a_schedule_and_the_table_shows_it(trained, tmp_path, monkeypatch, capsys):
    def called(*line: object) -> None:
        monkeypatch.setattr(sys, "argv", ["", *map(str, line)])

    monkeypatch.setattr(gradients, "BINS", 10)
    monkeypatch.setattr(gradients, "PER_BIN", 6)
    out = tmp_path / "g.yaml"
    result = tmp_path / "a.json"
    called(trained, "--batches", 16, "--schedule", "cosine", "--schedule", "fitted:gradient", "-o", out)
    gradients.main()
    result.write_text(capsys.readouterr().out)
    cosine, fitted = (row["relative"] for row in json.loads(result.read_text())["gradient_variance"])
    assert fitted == 1 and cosine > 1.2
    assert resolve_schedule(str(out)).logsnr_min == -10 and json.loads(result.read_text())["weights"] == "model"
    called(f"a={result}")
    load(FOLDER / "table.py")
    assert "`fitted:gradient`" in capsys.readouterr().out
    called(trained, "--batches", 20)
    with pytest.raises(SystemExit, match="2"):
        gradients.main()
