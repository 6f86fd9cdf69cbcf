"""Facts on a classifier's probabilities."""

import numpy as np
import pytest

from elbocli.core.estimate import calibration_error, reliability


def test_a_calibrated_classifier_has_next_to_no_error_and_a_boaster_his_boast() -> None:
    random = np.random.default_rng(0)
    said = random.uniform(0.1, 1, 20000)
    true = random.uniform(size=20000) < said
    assert calibration_error(reliability(said, true)) < 0.02
    assert calibration_error(reliability(np.full(1000, 0.9), np.arange(1000) < 600)) == pytest.approx(0.3)
    table = reliability(np.array([0.05, 1.0, 0.999]), np.array([False, True, True]))
    assert [(row["low"], row["count"], row["accuracy"]) for row in table] == [(0, 1, 0), (0.9, 2, 1)]
