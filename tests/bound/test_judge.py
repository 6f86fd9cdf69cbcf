"""The paper's theorem on a user's network, and a denoiser as a classifier: Bayes' posterior where the denoisers are exact."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from identities import ByClass, Mixture
from msgspec import structs

from elbocli.bound import estimate, judge
from elbocli.bound.judge import ClassScores, class_scores, judge_scores
from elbocli.bound.measure import Measurement, open_measurement
from elbocli.bound.result import Classification, Theorem
from elbocli.core.estimate import image_errors
from elbocli.core.objective import LossTerms, Objective
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.errors import UsageError
from elbocli.run.examples import ImageBatch
from elbocli.runtime.device import Precision

FIRST, SECOND = Mixture([0.5, 0.5], [-0.6, 0.4], [0.4, 0.4]), Mixture([1.0], [0.3], [0.7])
COSINE = parse_schedule("cosine", -12, 12)
FP32 = Precision("fp32", torch.device("cpu"))


@pytest.mark.long
def test_both_sides_agree_and_say_how_well(trained):
    specs = ["elbo", "sigmoid:bias=2", "edm-monotonic", "edm", "fm-ot"]
    asked = open_measurement(trained, None, draws=16, batch_size=1024)
    found = judge.check_theorem(asked, specs)
    assert found.agree
    for check, spec in zip(found.checks, specs, strict=True):
        assert abs(check.difference_in_se) <= 4
        assert 0 < check.left.relative_se < 0.02 and 0 < check.right.relative_se < 0.02
        assert check.monotone == (spec != "edm")
        told = check.json()
        assert ("augmented_elbo" in told) == check.monotone != ("rising" in told)
    assert Theorem.of(json.loads(json.dumps(found.json(), allow_nan=False))) == found


def test_for_the_elbo_itself_the_augmented_data_is_the_data(trained):
    """Both sides are the bound's diffusion term."""
    asked = open_measurement(trained, None, images=100)
    (found,) = judge.check_theorem(asked, ["elbo"]).checks
    assert found.augmented_elbo is not None
    plain = estimate.measure_bound(asked).bound
    wanted = plain.prior.nats + plain.diffusion.nats
    assert abs(found.augmented_elbo.nats - wanted) < 5 * (found.augmented_elbo.se + plain.nats_se)


def test_the_sides_are_drawn_apart(trained, monkeypatch):
    """No two sweeps share their noise."""
    asked, purposes, whole = open_measurement(trained, None, images=20), list[str](), Measurement.draw_all

    def draw_all(self: Any, objective: Any, purpose: str) -> Any:
        purposes.append(purpose)
        return whole(self, objective, purpose)

    monkeypatch.setattr(Measurement, "draw_all", draw_all)
    judge.check_theorem(asked, ["elbo", "elbo", "edm"])
    assert len(purposes) == len(set(purposes)) == 4


def test_a_broken_loss_does_not_pass(trained, elbo, monkeypatch):
    """The public mistake, injected into the training loss: no −dλ/dt."""
    line = ("bound", trained, "--check", "-n", 100)
    passed = elbo(*line, "--weighting", "sigmoid:bias=2", "--weighting", "edm")
    assert passed.returncode == 0, passed.stderr
    assert [check["monotone"] for check in json.loads(passed.stdout)["checks"]] == [True, False]

    whole = Objective.losses

    def broken(self: Objective, *batch: Any) -> LossTerms:
        terms = whole(self, *batch)
        return terms._replace(loss=terms.loss * self.schedule.density(terms.logsnr))

    monkeypatch.setattr(Objective, "losses", broken)
    failed = elbo(*line)
    (check,) = json.loads(failed.stdout)["checks"]
    assert failed.returncode == 1 and not check["agree"] and abs(check["difference_in_se"]) > 10
    assert check["weighting"] == "sigmoid:bias=2", "the run's own"


# The classifier


def scored(draws: int) -> tuple[ClassScores, np.ndarray]:
    """Scores of 60 examples of each of two classes, and the exact log odds of the first."""
    x = torch.cat([FIRST.draw(60, 1, 2, 1), SECOND.draw(60, 1, 2, 1, seed=1)])
    images, network = [ImageBatch(x, torch.arange(120) // 60, range(120))], ByClass(FIRST, SECOND)
    measured = Measurement(network, Prediction("eps"), -12, 12, FP32, images, batch_size=1 << 14, draws=draws)
    scores = class_scores(measured, 2, COSINE)
    return scores, (SECOND.nats(x) - FIRST.nats(x)).numpy()


def test_it_is_bayes_posterior_for_exact_denoisers():
    scores, exact = scored(128)
    odds = (scores[0][..., 1] - scores[0][..., 0]).numpy()
    off = (odds.mean(1) - exact) / image_errors(odds)
    assert (np.abs(off) < 1.96).mean() > 0.88 and abs(off.mean()) < 4 / np.sqrt(len(off))
    assert np.corrcoef(odds.mean(1), exact)[0, 1] > 0.95
    found, _ = judge_scores(scores)
    right = (exact < 0) == (np.arange(120) >= 60)
    assert found.accuracy_low < right.mean() < found.accuracy_high and found.accuracy_low < found.accuracy
    likelihood = np.where(np.arange(120) < 60, 1, -1) * exact
    assert found.log_loss == pytest.approx(np.log1p(np.exp(-likelihood)).mean(), abs=0.1)
    assert sum(row["count"] for row in found.reliability) == 120 and 0 <= found.undecided < 0.5
    assert np.mean([found.class_accuracy[label] for label in "01"]) == pytest.approx(found.accuracy)
    assert Classification.of(json.loads(json.dumps(found.json()))) == found


def test_a_prior_is_bayes_too():
    """Odds are multiplied by the prior's; a class that the training data lack is never the guess."""
    scores, _ = scored(16)
    for prior in (np.array([0.9, 0.1]), np.array([1.0, 0.0])):
        found, table = judge_scores(scores, prior)
        weights = prior * (-scores[0].mean(1)).softmax(1).numpy()
        expected = weights / weights.sum(1, keepdims=True)
        assert table["probability"] == pytest.approx(expected[np.arange(120), scores[1]])
        assert found.prior == prior.tolist() and math.isfinite(found.log_loss)
    assert found.class_accuracy == {"0": 1.0, "1": 0.0} and found.undecided == 0
    plain, uniform = (judge_scores(scores, prior)[0] for prior in (None, np.array([0.5, 0.5])))
    assert plain.log_loss == pytest.approx(uniform.log_loss)


def test_the_prior_is_the_class_frequencies_of_unbalanced_training_data(trained, monkeypatch):
    asked = open_measurement(trained, None, images=4, draws=2)
    assert judge.classify(asked)[0].prior is None  # the digits are balanced
    counts = [91, *[1] * 9]
    skewed = replace(asked.trained, data=structs.replace(asked.trained.data, class_counts=counts))
    for prior, wanted in (("", counts), ("data", counts), ("uniform", None)):
        found = judge.classify(replace(asked, trained=skewed), prior=prior)[0].prior
        assert found == (wanted and pytest.approx(np.array(wanted) / 100))
    unknown = replace(asked.trained, data=structs.replace(asked.trained.data, class_counts=None, payload_sha256=None))
    with pytest.raises(UsageError):
        judge.classify(replace(asked, trained=unknown), prior="data")


def test_shared_noise_is_why_it_works():
    """The two numbers of an image differ by less than either is off."""
    halves = scored(16)[0][0].numpy()
    apart, together = image_errors(halves[..., 0]).mean(), image_errors(halves[..., 1] - halves[..., 0]).mean()
    assert together < 0.7 * apart


def test_without_labels_or_classes_there_is_none(trained, monkeypatch):
    images = [ImageBatch(FIRST.draw(4, 1, 1, 1), None, range(4))]
    with pytest.raises(UsageError):
        class_scores(Measurement(FIRST, Prediction("eps"), -12, 12, FP32, images), 2, COSINE)
    asked = open_measurement(trained, None, images=4, draws=2)
    plain = replace(asked.trained.network.config, num_classes=0)
    monkeypatch.setattr(asked.trained.network, "config", plain)
    with pytest.raises(UsageError):
        judge.classify(asked)
    assert next(iter(replace(asked.images, conditional=False))).labels is None
