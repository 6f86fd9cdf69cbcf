"""Every metric: torch-fidelity's own numbers on the same features, and as many images as it says it needs."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from elbocli.core import metrics
from elbocli.core.metrics import METRICS, PRC_PROTOCOLS, Features, MetricOptions, PrcProtocol, least
from elbocli.core.feature_moments import FeatureMoments

SMALL = MetricOptions(splits=3, kid_subset_size=40, fid_infinity=True)


def drawn(n, seed=0, width=6, shift=0.0):
    """Of n images: features, logits of 5 classes, labels."""
    torch.manual_seed(seed)
    values = torch.randn(n, width) + shift
    moments = FeatureMoments.of(values.numpy())
    return Features(moments, values, torch.randn(n, 5), np.arange(n) % 5)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda m: m.name)
def test_a_metric_gives_finite_numbers_of_just_enough_images_and_names_them_all(metric):
    own, other = least(metric, SMALL)
    found = metric.make(drawn(own, 1), drawn(max(other, 2), 2, shift=0.5), SMALL)
    assert set(found) == set(metric.traits.keys)
    numbers = [value for value in found.values() if isinstance(value, float)]
    assert numbers and np.isfinite(numbers).all()
    assert all("{}" in name for name in metric.traits.keys.values()) or metric.name == "accuracy"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["fid", "is", "kid", "prc"])
def test_with_one_image_less_there_is_nothing_to_be_had(name):
    """So that what is refused had to be."""
    options = MetricOptions(splits=3, kid_subset_size=40)
    own, other = least(METRICS[name], options)
    try:
        found = METRICS[name].make(drawn(own - 1), drawn(max(other - 1, 2), 1), options)
    except Exception:
        return  # as the library does it
    assert not np.isfinite(list(found.values())).all()


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_kid_precision_and_recall_are_torch_fidelitys(shift):
    a, b = drawn(1300, 1, 12), drawn(1100, 2, 12, shift)
    kid = METRICS["kid"].make(a, b, MetricOptions())
    prc = METRICS["prc"].make(a, b, MetricOptions())
    theirs = {
        **kid_features_to_metric(a.values, b.values, verbose=False),
        **prc_features_to_metric(a.values, b.values, verbose=False),
    }
    assert set(kid | prc) == set(theirs)
    for key, value in (kid | prc).items():
        assert value == pytest.approx(theirs[key], abs=1e-6), key
    assert 0 < prc["precision"] < 1 and 0 < prc["recall"] < 1


def test_the_inception_score_takes_its_splits():
    a = drawn(100)
    for splits in (1, 7):
        found = METRICS["is"].make(a, None, MetricOptions(splits=splits))
        assert found == isc_features_to_metric(a.logits, splits)


def test_accuracy_is_the_share_of_labels_that_the_logits_tell():
    features = Features(FeatureMoments.of(np.zeros((4, 1))), None, torch.eye(4), np.array([0, 1, 2, 0]))
    assert METRICS["accuracy"].make(features, None, MetricOptions()) == {"accuracy": 0.75}


def test_adms_protocol_takes_so_many_of_the_reference_evenly_spaced(monkeypatch):
    """As prep sorts by class, the first ones would be of a few classes."""
    assert (PRC_PROTOCOLS["adm"].k, PRC_PROTOCOLS["adm"].most) == (3, 10_000)
    monkeypatch.setitem(metrics.PRC_PROTOCOLS, "adm", PrcProtocol("", most=10))
    a, b = drawn(50), drawn(40, 1)
    found = METRICS["prc"].make(a, b, MetricOptions(prc_protocol="adm"))
    assert found == METRICS["prc"].make(a, Features(b.moments, b.values[::4]), MetricOptions())
    assert found != METRICS["prc"].make(a, b, MetricOptions())


def test_an_interval_takes_twice_as_many_images_as_features():
    key = "frechet_inception_distance_infinity"
    for n, held in ((30, True), (23, False)):
        found = METRICS["fid"].make(drawn(n, width=12), drawn(50, 1, 12), MetricOptions(fid_infinity=True))
        assert (found[f"{key}_interval"] is not None) == held
        if held:
            low, high = found[f"{key}_interval"]
            assert low < found[key] < high


def test_their_names_need_no_torch():
    code = "import sys; from elbocli.core.metrics import METRICS; sys.exit(not set(sys.modules).isdisjoint({'torch', 'numpy'}))"
    assert METRICS and subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
