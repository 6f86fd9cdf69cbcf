"""Every metric: torch-fidelity's own numbers on the same features, and as many images as it says it needs."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from elbocli.core.estimate import FeatureMoments
from elbocli.core.metrics import METRICS, Features, Number, Option, Role, asked, metric
from elbocli.core.metrics.coverage import PRC_PROTOCOLS, PrcProtocol

SMALL = {"splits": 3, "kid_subset_size": 40}


def ask(name, own, other, **options):
    """The numbers of one metric."""
    return METRICS[name].make(own, other, asked([name], **options)[name])


def least(name, **options):
    """Images that it needs: of the samples, of the reference, held out."""
    return (*METRICS[name].traits.least(asked([name], **options)[name]), 0)[:3]


def drawn(n, seed=0, width=6, shift=0.0):
    """Of n images: features, logits of 5 classes, labels."""
    torch.manual_seed(seed)
    values = torch.randn(n, width) + shift
    moments = FeatureMoments.of(values.numpy())
    spatial = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 9)))
    of_spatial = FeatureMoments.of(spatial.numpy())
    return Features(moments, values, torch.randn(n, 5), np.arange(n) % 5, of_spatial, spatial)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_gives_finite_numbers_of_just_enough_images_and_declares_them_all(name):
    own, other, held = least(name, fid_infinity=True, **SMALL)
    reference = replace(drawn(max(other, 2), 2, shift=0.5), held_out=drawn(max(held, 2), 3, shift=0.5))
    found = ask(name, drawn(own, 1), reference, fid_infinity=True, **SMALL)
    declared = {number.key: number for number in METRICS[name].traits.numbers}
    assert set(found) == set(declared)
    values = [value for value in found.values() if isinstance(value, float)]
    assert values and np.isfinite(values).all()
    for number in declared.values():
        assert (number.role == Role.NUMBER) == (not number.of)
        assert not number.of or number.of in declared


def test_no_two_numbers_or_options_have_one_name():
    numbers = [number for each in METRICS.values() for number in each.traits.numbers]
    for network in (None, "x"):
        names = [number.name(network, suffix) for suffix in ("", "_sd") for number in numbers]
        names += [number.alias for number in numbers if number.alias]
        assert len(names) == len(set(names))
    options = [own.name for each in METRICS.values() for own in each.traits.options]
    assert len(options) == len(set(options))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["fid", "is", "kid", "prc"])
def test_with_one_image_less_there_is_nothing_to_be_had(name):
    """So that what is refused had to be."""
    own, other, _ = least(name, **SMALL)
    try:
        found = ask(name, drawn(own - 1), drawn(max(other - 1, 2), 1), **SMALL)
    except Exception:
        return  # as the library does it
    assert not np.isfinite(list(found.values())).all()


@pytest.mark.parametrize("shift", [pytest.param(0.0, marks=pytest.mark.slow), 0.4])
def test_kid_precision_and_recall_are_torch_fidelitys(shift):
    a, b = drawn(1300, 1, 12), drawn(1100, 2, 12, shift)
    kid = ask("kid", a, b)
    prc = ask("prc", a, b)
    theirs = {
        "kernel_inception_distance_se": kid["kernel_inception_distance_se"],
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
        found = ask("is", a, None, splits=splits)
        assert found.items() >= isc_features_to_metric(a.logits, splits).items()


def test_accuracy_is_the_share_of_labels_that_the_logits_tell():
    features = Features(FeatureMoments.of(np.zeros((4, 1))), None, torch.eye(4), np.array([0, 1, 2, 0]))
    found = ask("accuracy", features, None)
    assert found["accuracy"] == 0.75 and found["accuracy_se"] == (0.75 * 0.25 / 4) ** 0.5
    assert found["accuracy_interval"] == pytest.approx(proportion(3, 4), abs=1e-12)
    own = Features(features.moments, None, torch.eye(4), np.arange(4))
    assert ask("accuracy", own, None)["accuracy_interval"] == pytest.approx(proportion(4, 4), abs=1e-12)


def proportion(hits, n):
    """Wilson's interval, by scipy."""
    return list(binomtest(hits, n).proportion_ci(method="wilson"))


def test_standard_errors_are_what_sets_of_samples_show():
    """Inception score and KID of 40 sets; KID's is too large rather than too small, as it counts the reference's images."""
    reference = drawn(400, 99)
    found = {"is": [], "kid": []}
    for seed in range(40):
        samples = drawn(300, seed, shift=0.4)
        scaled = replace(samples, logits=3 * samples.logits)
        found["is"].append([*ask("is", scaled, None, splits=2).values()])
        found["kid"].append([*ask("kid", samples, reference, kid_subset_size=40).values()])
    for name, (low, high) in {"is": (0.75, 1.3), "kid": (0.85, 1.6)}.items():
        values, _, errors = np.array(found[name]).T
        assert low < errors.mean() / values.std(ddof=1) < high, name


def test_adms_protocol_takes_so_many_of_the_reference_evenly_spaced(monkeypatch):
    """As prep sorts by class, the first ones would be of a few classes."""
    assert PRC_PROTOCOLS["adm"].most == 10_000
    monkeypatch.setitem(PRC_PROTOCOLS, "adm", PrcProtocol("", most=10))
    a, b = drawn(50), drawn(40, 1)
    found = ask("prc", a, b, prc_protocol="adm")
    assert found == ask("prc", a, Features(b.moments, b.values[::4]))
    assert found != ask("prc", a, b)


def test_an_interval_takes_twice_as_many_images_as_features():
    key = "frechet_inception_distance_infinity"
    for n, held in ((30, True), (23, False)):
        found = ask("fid", drawn(n, width=12), drawn(50, 1, 12), fid_infinity=True)
        assert (found[f"{key}_interval"] is not None) == held
        if held:
            low, high = found[f"{key}_interval"]
            assert low < found[key] < high


def test_a_metric_of_somebody_else_is_one_declaration():
    """With an option of its own and a number that goes by the network."""

    options = [Option("power", 2, "Of the norm.", most=9)]

    try:

        @metric("spread", formula="E|x|^power", numbers=[Number("spread")], options=options)
        def spread(samples, reference, options):
            return {"spread": float(samples.values.abs().pow(options.power).mean())}

        a = drawn(7)
        assert ask("spread", a, None, power=4, splits=3) == {"spread": float(a.values.abs().pow(4).mean())}
        (own,) = METRICS["spread"].traits.options
        assert (own.name, own.default, own.most) == ("power", 2, 9)
        number = METRICS["spread"].traits.numbers[0]
        assert [number.name(None), number.name("x.pt2", "_sd")] == ["spread", "spread_sd[x.pt2]"]
    finally:
        METRICS.pop("spread", None)


def test_their_names_need_no_torch():
    code = "import sys; from elbocli.core.metrics import METRICS; sys.exit(not set(sys.modules).isdisjoint({'torch', 'numpy'}) or len(METRICS) < 5)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
