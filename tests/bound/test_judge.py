"""The paper's theorem on a user's network."""

import json
from typing import Any

import pytest

from elbocli.bound import estimate, judge
from elbocli.bound.measure import Measurement, open_measurement
from elbocli.bound.result import Theorem
from elbocli.bound.settings import BoundSettings
from elbocli.core.objective import LossTerms, Objective


@pytest.mark.long
def test_both_sides_agree_and_say_how_well(trained):
    specs = ["elbo", "sigmoid:bias=2", "edm-monotonic", "edm", "fm-ot"]
    asked = open_measurement(trained, None, BoundSettings(draws=16, batch_size=1024))
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
    """Both sides are the bound's diffusion term; from λ of 2 on, the prior is a fifth of them."""
    asked = open_measurement(trained, None, BoundSettings(images=100, logsnr_min=2.0))
    (found,) = judge.check_theorem(asked, ["elbo"]).checks
    assert found.augmented_elbo is not None
    plain = estimate.measure_bound(asked).bound
    wanted = plain.prior.nats + plain.diffusion.nats
    assert abs(found.augmented_elbo.nats - wanted) < 5 * (found.augmented_elbo.se + plain.nats_se)


def test_the_sides_are_drawn_apart(trained, monkeypatch):
    """No two sweeps share their noise."""
    asked = open_measurement(trained, None, BoundSettings(images=20))
    purposes = list[str]()
    whole = Measurement.draw_all

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
