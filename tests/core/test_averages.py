"""Each average against its profile: what weight it gives to every past value."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from elbocli.core.training import AVERAGES, MAX_STD, Average, canonical, gamma_of, parse_average, std_of
from elbocli.errors import UsageError

NAMES = sorted(AVERAGES)
STDS = st.floats(1e-3, MAX_STD)


def effective(spec, n, batch=1.0):
    """The weight of the value after each of n updates, and of the one before the first, by the recurrence itself."""
    average = parse_average(spec)
    weights = np.zeros(n + 1)
    weights[0] = 1
    for step in range(1, n + 1):
        beta = average.beta(step, step * batch, batch)
        assert 0 <= beta < 1
        weights *= beta
        weights[step] += 1 - beta
    return weights


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_positive_add_up_to_one_and_never_fall_with_time(name):
    spec = AVERAGES[name].bind({"images": 3000.0} if name == "halflife" else {}).spec
    weights = effective(spec, 500, batch=16)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1, abs=1e-12)
    if name != "decay":  # whose warm start forgets the first values more slowly than the later ones
        assert np.all(np.diff(weights) >= -1e-15)


# power


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.288])
@pytest.mark.parametrize("n", [1, 7, 400])
def test_a_power_average_weighs_each_value_by_the_integral_of_its_profile(std, n):
    exponent = gamma_of(std) + 1
    k = np.arange(n + 1) / n
    np.testing.assert_allclose(effective(f"power:std={std}", n), [0, *np.diff(k**exponent)], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.2, MAX_STD])
def test_the_standard_deviation_of_the_weights_is_std_of_the_steps_so_far(std):
    n = 4000
    weights = effective(f"power:std={std!r}", n)[1:]
    t = (np.arange(1, n + 1) - 0.5) / n
    mean = weights @ t
    assert math.sqrt(weights @ (t - mean) ** 2) == pytest.approx(std, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0, 17.0, 200.0])
def test_std_is_that_of_the_density(gamma):
    def moment(k):
        return integrate.quad(lambda t: (gamma + 1) * t ** (gamma + k), 0, 1, epsabs=1e-14, epsrel=1e-12)[0]

    assert std_of(gamma) == pytest.approx(math.sqrt(moment(2) - moment(1) ** 2), rel=1e-8)


@given(STDS)
def test_gamma_is_the_inverse_of_std(std):
    assert std_of(gamma_of(std)) == pytest.approx(std, rel=1e-12)


def test_gammas_of_the_paper():
    assert (round(gamma_of(0.05), 2), round(gamma_of(0.10), 2)) == (16.97, 6.94)


def test_the_widest_profile_is_the_plain_mean():
    np.testing.assert_allclose(effective(f"power:std={MAX_STD!r}", 50), [0, *[1 / 50] * 50], rtol=1e-12)


# halflife


def test_half_of_the_weight_is_on_the_last_halflife():
    weights = effective("halflife:images=640,ramp=0", 4000, batch=16)
    assert weights[-40:].sum() == pytest.approx(0.5, rel=1e-9)
    assert weights[-80:].sum() == pytest.approx(0.75, rel=1e-9)


def test_a_ramp_is_half_on_the_last_share_of_the_images():
    n, ramp = 4000, 0.05
    weights = effective(f"halflife:images=1e12,ramp={ramp}", n, batch=16)
    # β ≈ 2^(−1/(ramp n)) is a power profile of γ + 1 = ln 2 / ramp: half of it is after the share 2^(−ramp / ln 2).
    assert weights[0] == 0
    assert weights[1 + round(n * 2 ** (-ramp / math.log(2))) :].sum() == pytest.approx(0.5, abs=3e-3)
    np.testing.assert_allclose(
        np.cumsum(weights)[n // 2 :], (np.arange(n // 2, n + 1) / n) ** (math.log(2) / ramp), atol=2e-3
    )


def test_edms_imagenet_average():
    average = parse_average("halflife:images=50e6,ramp=.05")
    assert average.beta(500_000, 500_000 * 4096, 4096) == pytest.approx(0.99994322, abs=5e-9)
    assert average.beta(1, 4096, 4096) == 0
    # at 100 Mimg seen the ramp's half-life is 5 Mimg
    assert average.beta(10, 100e6 + 4096, 4096) == pytest.approx(2 ** (-4096 / 5e6), rel=1e-12)


# decay


def test_decay_is_capped_while_young():
    average = parse_average(0.95)
    assert [average.beta(n, 0, 0) for n in (1, 90, 10_000)] == [2 / 11, 91 / 100, 0.95]


# Names


def params(name):
    floats = {
        "beta": st.floats(0, 0.9999999),
        "images": st.floats(1e-3, 1e14),
        "ramp": st.floats(0, 10),
        "std": STDS,
    }
    return st.fixed_dictionaries({key: floats[key] for key in AVERAGES[name].params})


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=50)
def test_specs_and_file_names_lead_back_to_the_same_average(name, data):
    average = Average(AVERAGES[name].bind(data.draw(params(name))))
    for text in (average.spec, average.name):
        found = parse_average(text)
        assert (found.declared.name, found.params) == (name, average.params)
        assert (found.spec, found.name) == (average.spec, average.name)
    assert set(average.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-M")


@pytest.mark.parametrize(
    ("text", "spec", "name"),
    [
        (0.9999, "0.9999", "ema-0.9999"),
        ("decay:beta=.995", "0.995", "ema-0.995"),
        ("halflife", "halflife:images=50000000,ramp=0.05", "ema-halflife-50M-ramp-0.05"),
        ("halflife:images=1.5e6,ramp=0", "halflife:images=1500000,ramp=0", "ema-halflife-1.5M-ramp-0"),
        ("power:std=.10", "power:std=0.1", "ema-power-0.1"),
        (1e-7, "1e-07", "ema-0.0000001"),
    ],
    ids=str,
)
def test_names(text, spec, name):
    assert (parse_average(text).spec, parse_average(text).name) == (spec, name)


@pytest.mark.parametrize(
    "text", ["ema-", "ema-power", "ema-power-x", "ema-halflife-50M", "ema-halflife-50M-std-1", "ema-0.9-0.8", "ema-2"]
)
def test_a_name_that_is_none_is_refused(text):
    with pytest.raises(UsageError):
        parse_average(text)


@pytest.mark.parametrize(
    ("value", "specs"),
    [
        (0.9999, ("0.9999",)),
        (0, ("0",)),
        ("power", ("power:std=0.05",)),
        ([0.9, "power:std=.1"], ("0.9", "power:std=0.1")),
        (("0.9",), ("0.9",)),
    ],
)
def test_one_or_several_by_number_or_text(value, specs):
    assert canonical(value) == specs == canonical(specs)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "expected averages"),
        (True, "expected averages"),
        (None, "expected averages"),
        ({"power": 0.1}, "expected averages"),
        ([0.9, [0.8]], "expected averages"),
        ([0.9, "0.90"], "0.9 is given twice"),
        (1.0, "from 0 to 1"),
        (-0.1, "from 0 to 1"),
        (math.nan, "not a number between"),
        ("power:std=0.289", "to 0.288675"),
        ("power:std=0", "above 0"),
        ("halflife:images=1e99", "images"),
        ("powr", "did you mean power"),
        ("power:beta=1", "no parameter 'beta'"),
    ],
)
def test_what_is_no_average_is_refused(value, words):
    with pytest.raises(UsageError, match=words):
        canonical(value)


def test_all_are_declared_in_full():
    assert NAMES == ["decay", "halflife", "power"]
    for declared in AVERAGES.values():
        assert declared.formula and declared.source and declared.make.__doc__
    assert [name for name in NAMES if Average(AVERAGES[name]).stored] == ["power"]
