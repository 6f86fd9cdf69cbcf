"""A denoiser as a classifier: Bayes' posterior where the denoisers are exact, and digits beside a plain classifier."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import ByClass, Mixture
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from elbocli.bound import estimate, judge
from elbocli.bound.judge import class_scores, judge_scores
from elbocli.bound.measure import Images, MeasuredNetwork, open_measurement
from elbocli.bound.result import Classification
from elbocli.core.estimate import image_errors
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.errors import UsageError
from elbocli.files.losslog import read_table
from elbocli.main import run

FIRST, SECOND = Mixture([0.5, 0.5], [-0.6, 0.4], [0.4, 0.4]), Mixture([1.0], [0.3], [0.7])


def scored(draws: int = 128) -> tuple[tuple[torch.Tensor, np.ndarray, np.ndarray], np.ndarray]:
    """Scores of 60 examples of each of two classes, and the exact log odds of the first."""
    x = torch.cat([FIRST.draw(60, 1, 2, 1), SECOND.draw(60, 1, 2, 1, seed=1)])
    labels = torch.arange(120) // 60
    measured = MeasuredNetwork(ByClass(FIRST, SECOND), Prediction("eps"), -12, 12, batch=1 << 14, draws=draws)
    schedule = parse_schedule("cosine", -12, 12)
    scores = class_scores(measured, [Images(x, labels, range(120))], 2, schedule)
    return scores, (SECOND.nats(x) - FIRST.nats(x)).numpy()


def test_it_is_bayes_posterior_for_exact_denoisers() -> None:
    scores, exact = scored()
    odds = (scores[0][..., 1] - scores[0][..., 0]).numpy()
    off = (odds.mean(1) - exact) / image_errors(odds)
    assert (np.abs(off) < 1.96).mean() > 0.88 and abs(off.mean()) < 4 / np.sqrt(len(off))
    assert np.corrcoef(odds.mean(1), exact)[0, 1] > 0.95


def test_shared_noise_is_why_it_works() -> None:
    """The two numbers of an image differ by less than either is off."""
    halves = scored(16)[0][0].numpy()
    apart, together = image_errors(halves[..., 0]).mean(), image_errors(halves[..., 1] - halves[..., 0]).mean()
    assert together < 0.7 * apart


def test_what_is_told_of_it_is_so() -> None:
    scores, exact = scored()
    found, _ = judge_scores(*scores, 128, parse_schedule("cosine", -12, 12))
    right = (exact < 0) == (np.arange(120) >= 60)
    assert found.accuracy_low < right.mean() < found.accuracy_high and found.accuracy_low < found.accuracy
    assert sum(row["count"] for row in found.reliability) == 120 and 0 <= found.undecided < 0.5
    assert found.class_accuracy.keys() == {"0", "1"}
    assert np.mean([*found.class_accuracy.values()]) == pytest.approx(found.accuracy)
    assert Classification.of(json.loads(json.dumps(found.json()))) == found


def test_images_without_labels_are_no_examples() -> None:
    measured = MeasuredNetwork(FIRST, Prediction("eps"), -12, 12)
    images = [Images(FIRST.draw(4, 1, 1, 1), None, range(4))]
    with pytest.raises(UsageError):
        class_scores(measured, images, 2, parse_schedule("cosine"))


def test_the_command_tells_one_object_and_a_table(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "each.tsv"
    line = ["bound", str(trained), "--classify", "-n", "20", "--draws", "4", "--per-image", str(out)]
    assert run(line) == 0
    found, table = Classification.of(json.loads(capsys.readouterr().out)), read_table(out)
    assert found.n_images == 20 and found.classes == 10 and found.per_image == str(out)
    assert (table["predicted"] == table["label"]).mean() == pytest.approx(found.accuracy)
    assert [*table][2:] == ["predicted", "confidence", "probability"]


def test_a_run_without_classes_tells_none_apart(trained: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = open_measurement(trained, digits, images=4, draws=2)
    plain = replace(asked.trained.network.config, num_classes=0)
    monkeypatch.setattr(asked.trained.network, "config", plain)
    with pytest.raises(UsageError):
        judge.classify(asked)
    found = estimate.measure_likelihoods(asked, estimate.parse_estimators(["information"]))
    assert found.result.n_images == 4 and next(iter(asked)).labels is None


def test_digits_beside_a_plain_classifier(trained: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """40 steps make no good network, but one that beats chance by far; logistic regression is what it is to beat."""
    assert (
        run(["bound", str(trained), str(digits), "--classify", "-n", "60", "--draws", "8", "--weights", "model"]) == 0
    )
    found = Classification.of(json.loads(capsys.readouterr().out))
    data = load_digits()
    plain = LogisticRegression(max_iter=200).fit(data.data[300:700], data.target[300:700])
    assert plain.score(data.data[:300], data.target[:300]) > found.accuracy > 0.2
