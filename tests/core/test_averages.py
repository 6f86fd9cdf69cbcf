"""Averages against their profiles, learning rates against closed forms, and averages made of others after training."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from elbocli.core.averages import AVERAGES, MAX_STD, Average, canonical, gamma_of, parse_average, std_of
from elbocli.core.learning_rate import LR_DECAYS, learning_rate
from elbocli.errors import UsageError
from elbocli.training.average_fit import Profile, products, solve

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


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.288])
@pytest.mark.parametrize("n", [1, 7, 400])
def test_a_power_average_weighs_each_value_by_the_integral_of_its_profile(std, n):
    exponent = gamma_of(std) + 1
    k = np.arange(n + 1) / n
    np.testing.assert_allclose(effective(f"power:std={std}", n), [0, *np.diff(k**exponent)], rtol=1e-9, atol=1e-15)


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


def test_half_of_the_weight_is_on_the_last_halflife():
    weights = effective("halflife:images=640,ramp=0", 4000, batch=16)
    assert weights[-40:].sum() == pytest.approx(0.5, rel=1e-9)
    assert weights[-80:].sum() == pytest.approx(0.75, rel=1e-9)


def test_edms_imagenet_average():
    average = parse_average("halflife:images=50e6,ramp=.05")
    assert average.beta(500_000, 500_000 * 4096, 4096) == pytest.approx(0.99994322, abs=5e-9)
    assert average.beta(1, 4096, 4096) == 0
    # at 100 Mimg seen the ramp's half-life is 5 Mimg
    assert average.beta(10, 100e6 + 4096, 4096) == pytest.approx(2 ** (-4096 / 5e6), rel=1e-12)


def test_decay_is_capped_while_young():
    average = parse_average(0.95)
    assert [average.beta(n, 0, 0) for n in (1, 90, 10_000)] == [2 / 11, 91 / 100, 0.95]


# Names


def params(name):
    floats = {"beta": st.floats(0, 0.9999999), "images": st.floats(1e-3, 1e14), "ramp": st.floats(0, 10), "std": STDS}
    return st.fixed_dictionaries({key: floats[key] for key in AVERAGES[name].params})


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=50)
def test_specs_lead_back_to_the_same_average(name, data):
    average = Average(AVERAGES[name].bind(data.draw(params(name))))
    found = parse_average(average.spec)
    assert (found.declared.name, found.params) == (name, average.params)
    assert (found.spec, found.name) == (average.spec, average.name)
    assert set(average.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-M")


@pytest.mark.parametrize(
    ("text", "spec", "name"),
    [
        ("decay", "0.9999", "ema-0.9999"),
        ("decay:beta=.995", "0.995", "ema-0.995"),
        ("halflife", "halflife:images=50000000,ramp=0.05", "ema-halflife-50M-ramp-0.05"),
        ("halflife:images=1.2e6,ramp=0", "halflife:images=1200000,ramp=0", "ema-halflife-1.2M-ramp-0"),
        ("power:std=.10", "power:std=0.1", "ema-power-0.1"),
        (1e-7, "1e-07", "ema-0.0000001"),
    ],
    ids=str,
)
def test_names(text, spec, name):
    assert (parse_average(text).spec, parse_average(text).name) == (spec, name)


NONSENSE = "ema-0.9 power:std=0.289 power:std=0 halflife:images=1e99 powr"


@pytest.mark.parametrize(
    "text", [[], True, None, {"power": 0.1}, [0.9, [0.8]], [0.9, "0.90"], 1.0, -0.1, math.nan, *NONSENSE.split()], ids=str
)
def test_nonsense_is_refused(text):
    with pytest.raises(UsageError):
        canonical(text)


@pytest.mark.parametrize(
    ("value", "specs"), [(0.9999, ("0.9999",)), ("power", ("power:std=0.05",)), ([0.9, "power:std=.1"], ("0.9", "power:std=0.1"))]
)
def test_one_or_several_by_number_or_text(value, specs):
    assert canonical(value) == specs == canonical(specs)


# Learning rates


STEPS = 1000


def rates(spec: str, warmup: int = 0, steps: int = STEPS) -> list[float]:
    return [learning_rate(done, steps, 0.25, warmup, LR_DECAYS.parse(spec)) for done in range(steps)]


@pytest.mark.parametrize("name", LR_DECAYS)
def test_a_rate_begins_at_lr_and_never_rises_after_warm_up(name):
    found = rates(name)
    assert found[0] == 0.25
    assert all(one >= other > 0 for one, other in pairwise(found))
    warm = rates(name, warmup=10)
    assert warm[10:] == found[10:]
    for done in range(10):
        assert warm[done] == pytest.approx(found[done] * (done + 1) / 10, rel=1e-15)


@pytest.mark.parametrize(
    ("spec", "part", "factor"),
    [
        *(("cosine", 0.25, (1 + math.cos(math.pi / 4)) / 2), ("cosine", 1, 0), ("linear", 0.25, 0.75), ("linear", 1, 0)),
        *(("cosine:final=.2", 0.5, 0.6), ("linear:final=.2", 0.5, 0.6), ("cosine:final=.2", 2, 0.2)),
        *(("linear:final=.2", 2, 0.2), ("constant", 0.9, 1)),
        *(("linear:share=.2", 0.8, 1), ("linear:share=.2", 0.95, 0.25), ("linear:share=.4,final=.5", 0.9, 0.625)),
    ],
)
def test_a_rate_falls_to_its_end(spec, part, factor):
    assert LR_DECAYS.parse(spec)(part * STEPS, STEPS) == pytest.approx(factor, abs=1e-15)


def test_an_inverse_square_root_is_constant_until_its_reference_whatever_the_number_of_steps():
    found = rates("rsqrt:ref=100")
    assert set(found[:101]) == {0.25}
    assert found[400] == pytest.approx(0.25 / 2) and found[900] == pytest.approx(0.25 / 3)
    assert rates("rsqrt:ref=100", steps=500) == found[:500]
    assert math.isclose(LR_DECAYS["rsqrt"](280_000, 1), 0.5)


@pytest.mark.parametrize(
    "spec", ["cosine:final=-.1", "linear:final=1.5", "linear:share=0", "rsqrt:ref=0", "rsqrt:final=0", "constant:final=1"]
)
def test_a_rate_that_cannot_be_is_refused(spec):
    with pytest.raises(UsageError):
        LR_DECAYS.parse(spec)


# Averages of averages

COUNT = 20


def stored(stds=(0.05, 0.1), count=COUNT, steps=STEPS):
    return [Profile(gamma_of(std), step) for std in stds for step in range(steps // count, steps + 1, steps // count)]


def density(profile, t):
    inside = np.where(t <= profile.step, t / profile.step, 0)
    return (profile.gamma + 1) * inside**profile.gamma / profile.step * (t <= profile.step)


def weights(profile, steps=STEPS):
    """Return the weight of each value in the average: the profile's integral over its step."""
    return np.diff(np.minimum(np.arange(steps + 1) / profile.step, 1) ** (profile.gamma + 1))


@pytest.mark.parametrize("one", [Profile(0.0, 3.0), Profile(6.94, 2.0), Profile(17.0, 3.0)])
@pytest.mark.parametrize("other", [Profile(1.5, 3.0), Profile(17.0, 1.0), Profile(0.2, 7.0)])
def test_products_are_the_integrals(one, other):
    end = min(one.step, other.step)
    numeric, _ = integrate.quad(lambda t: density(one, t) * density(other, t), 0, end, epsabs=1e-13, epsrel=1e-11)
    np.testing.assert_allclose(products([one], [other]), [[numeric]], rtol=1e-9)
    np.testing.assert_array_equal(products([one, other], [other, one]), products([other, one], [one, other]).T)


@pytest.mark.parametrize("std", [0.03, 0.07, 0.2, 0.28])
def test_the_solution_is_the_best_and_its_residual_the_distance(std):
    profiles = stored(count=5)
    target = Profile(gamma_of(std), STEPS)
    found = solve(profiles, target)
    t = (np.arange(200_000) + 0.5) * (STEPS / 200_000)
    columns = np.stack([density(p, t) for p in profiles], 1)
    wish = density(target, t)

    def distance(x):
        return np.linalg.norm(columns @ x - wish) / np.linalg.norm(wish)

    assert found.residual == pytest.approx(distance(found.coefficients), rel=1e-3, abs=1e-6)
    # Least squares on a grid, with the last coefficient given by the sum.
    free = columns[:, :-1] - columns[:, -1:]
    last = columns[:, -1]
    best, *_ = np.linalg.lstsq(free, wish - last, rcond=None)
    assert found.residual == pytest.approx(distance(np.append(best, 1 - best.sum())), rel=1e-3)


@pytest.mark.parametrize("std", [0.01, 0.07, 0.15, 0.25])
def test_values_that_never_change_come_out_exactly(std):
    assert solve(stored(), Profile(gamma_of(std), STEPS)).coefficients.sum() == pytest.approx(1, abs=1e-13)


def test_many_like_profiles_do_not_amplify_the_rounding_of_what_is_stored():
    steps = 2000
    rng = np.random.default_rng(0)
    values = rng.normal(size=300) + 0.1 * np.cumsum(rng.normal(size=(steps, 300)), 0)
    profiles = stored((0.05, 0.0501, 0.0502), 100, steps)
    kept = np.array([weights(p, steps) @ values for p in profiles], dtype=np.float32).astype(np.float64)
    for std in (0.02, 0.04, 0.08):
        target = Profile(gamma_of(std), steps)
        found = solve(profiles, target)
        assert abs(found.coefficients).max() < 1000
        true = weights(target, steps) @ values
        assert np.linalg.norm(found.coefficients @ kept - true) < 1e-4 * np.linalg.norm(true)
