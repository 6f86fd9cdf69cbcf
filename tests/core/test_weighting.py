"""Each weighting against a formula of its own, against the objective it stands for, and against its claims."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from elbocli.core import monotone
from elbocli.core.monotone import likeness
from elbocli.core.prediction import resolution_shift
from elbocli.core.schedule import parse_schedule
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting import ForeignLoss, ScheduleDensity, Weighting, parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import UsageError

GRID = np.linspace(-15, 15, 3001)
LAMBDA = torch.from_numpy(GRID)
NAMES = sorted(WEIGHTINGS)
MONOTONE = [name for name in NAMES if WEIGHTINGS[name].traits.monotone]
PEAKED = [name for name in NAMES if not WEIGHTINGS[name].traits.monotone]


def named(name, params=None, **modifiers):
    """A declared weighting, built from its parts."""
    return Weighting(WEIGHTINGS[name].bind(params or {}), **modifiers)


def sech(x):
    return 2 * np.exp(-np.abs(x)) / (1 + np.exp(-2 * np.abs(x)))


def normal(x, mean, std):
    return np.exp(-((x - mean) ** 2) / (2 * std**2)) / np.sqrt(2 * np.pi * std**2)


def edm(lam, mean, std, sigma_data):
    return normal(lam, -2 * mean, 2 * std) * (np.exp(-lam) + sigma_data**2)


def edm_peak(mean, std, sigma_data):
    """Where d log w/dλ changes sign for the last time, on the way down."""

    def slope(lam):
        noise = np.exp(-lam)
        return -(lam + 2 * mean) / (4 * std**2) - noise / (noise + sigma_data**2)

    grid = np.linspace(-50, 50, 100001)
    downs = np.flatnonzero((slope(grid[:-1]) > 0) & (slope(grid[1:]) <= 0))
    return [optimize.brentq(slope, grid[i], grid[i + 1], xtol=1e-15, rtol=1e-15) for i in downs]


def edm_monotonic(lam, mean, std, sigma_data):
    best = edm(lam, mean, std, sigma_data)
    for peak in edm_peak(mean, std, sigma_data):
        best = np.where(lam <= peak, np.maximum(best, edm(peak, mean, std, sigma_data)), best)
    return best


def ddpm(lam, beta_min, beta_max):
    total = np.log1p(np.exp(-lam))  # ∫β up to t(λ); β(t)² = β0² + 2 (β1 − β0) ∫β
    return 1 / (1 + np.exp(lam)) / np.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * total)


FORMULA = {
    "elbo": lambda lam: np.ones_like(lam),
    "iddpm": lambda lam: sech(lam / 2),
    "v-cosine": lambda lam: np.exp(-lam / 2),
    "fm-ot": lambda lam: np.exp(-lam / 2),
    "indi": lambda lam: np.exp(-lam) * sech(lam / 4) ** 2,
    "x-cosine": lambda lam: np.exp(-lam) * sech(lam / 2),
    "snr-trunc": lambda lam: sech(lam / 2) * np.maximum(1, np.exp(-lam)),
    "p2": lambda lam, gamma: sech(lam / 2) / (1 + np.exp(lam)) ** gamma,
    "min-snr": lambda lam, gamma: sech(lam / 2) * np.minimum(1, gamma * np.exp(-lam)),
    "soft-min-snr": lambda lam, sigma_data: sech(lam / 2) / (1 + sigma_data**2 * np.exp(lam)),
    "ddpm": ddpm,
    "edm": edm,
    "edm-monotonic": edm_monotonic,
    "sigmoid": lambda lam, bias: 1 / (1 + np.exp(lam - bias)),
    "sd3": lambda lam, m, s: normal(lam, -2 * m, 2 * s) * (1 + np.exp(-lam / 2)) ** 2,
}
PARAMETERS = {
    "p2": {"gamma": st.floats(0.1, 3)},
    "min-snr": {"gamma": st.floats(0.5, 20)},
    "soft-min-snr": {"sigma_data": st.floats(0.1, 2)},
    "ddpm": {"beta_min": st.floats(0.01, 1), "beta_max": st.floats(2, 40)},
    "edm": {"mean": st.floats(-3, 1), "std": st.floats(0.6, 2), "sigma_data": st.floats(0.1, 2)},
    "edm-monotonic": {"mean": st.floats(-3, 1), "std": st.floats(0.6, 2), "sigma_data": st.floats(0.1, 2)},
    "sigmoid": {"bias": st.floats(-6, 6)},
    "sd3": {"m": st.floats(-2, 2), "s": st.floats(0.4, 2)},
}


def parameters(name):
    return st.fixed_dictionaries(PARAMETERS.get(name, {}))


@st.composite
def any_weighting(draw, names=NAMES):
    name = draw(st.sampled_from(list(names)))
    return name, draw(parameters(name))


def test_every_weighting_has_a_formula_here():
    assert set(FORMULA) == set(WEIGHTINGS)
    assert all(set(PARAMETERS.get(name, {})) == set(WEIGHTINGS[name].params) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_weighting_is_its_formula_at_its_defaults(name):
    found = named(name)(LAMBDA).numpy()
    np.testing.assert_allclose(found, FORMULA[name](GRID, **WEIGHTINGS[name].params), rtol=1e-12, atol=0)


@given(any_weighting())
def test_weighting_is_its_formula_at_any_parameters(chosen):
    name, params = chosen
    np.testing.assert_allclose(named(name, params)(LAMBDA).numpy(), FORMULA[name](GRID, **params), rtol=1e-11, atol=0)


# The objective as its authors write it: E_t[c ‖target error‖²]. Then w = 2·c·p·factor, and const·w is that.


def speed(schedule, t):
    """p = −dt/dλ from λ(t) by a complex step: exact to rounding, and no formula for p."""
    return -1e-30 / schedule(t + 1e-30j).imag


def cosine(t):
    return -2 * np.log(np.tan(np.pi * t / 2))


def path(t):
    """λ on the straight path z = (1−t)x + tε."""
    return 2 * np.log((1 - t) / t)


def betas(t):
    total = 0.1 * t + 0.5 * 19.9 * t**2
    return -np.log(np.exp(total) - 1)


FACTOR = {
    "eps": lambda lam: np.ones_like(lam),
    "x": lambda lam: np.exp(-lam),
    "v": lambda lam: 1 + np.exp(-lam),
    "u": lambda lam: (1 + np.exp(-lam / 2)) ** 2,
}
OBJECTIVE = {  # name: (schedule, target, c(λ), const)
    "iddpm": (cosine, "eps", lambda lam: 1, 1 / np.pi),
    "v-cosine": (cosine, "v", lambda lam: 1, 2 / np.pi),
    "fm-ot": (path, "u", lambda lam: 1, 1),
    "indi": (path, "x", lambda lam: 1, 1 / 4),
    "x-cosine": (cosine, "x", lambda lam: 1, 1 / np.pi),
    "snr-trunc": (cosine, "x", lambda lam: np.maximum(np.exp(lam), 1), 1 / np.pi),
    "p2": (cosine, "eps", lambda lam: 1 / (1 + np.exp(lam)), 1 / np.pi),
    "min-snr": (cosine, "eps", lambda lam: np.minimum(np.exp(lam), 5) / np.exp(lam), 1 / np.pi),
    "soft-min-snr": (cosine, "eps", lambda lam: 4 / (np.exp(lam) + 4), 1 / np.pi),
    "ddpm": (betas, "eps", lambda lam: 1, 2),
}


@pytest.mark.parametrize("name", OBJECTIVE)
def test_weighting_follows_from_its_objective(name):
    schedule, target, c, const = OBJECTIVE[name]
    t = np.linspace(0.01, 0.99, 500)
    lam = schedule(t)
    wanted = 2 * c(lam) * speed(schedule, t) * FACTOR[target](lam)
    np.testing.assert_allclose(const * named(name)(torch.from_numpy(lam)).numpy(), wanted, rtol=1e-10)


def test_the_elbo_weighs_every_level_the_same_from_its_definition():
    t = np.linspace(0.05, 0.95, 100)
    lam = cosine(t)
    c = 0.5 * np.exp(lam) / speed(cosine, t)  # −½ dSNR/dt on ‖x−x̂‖² (Kingma et al. 2021)
    wanted = 2 * c * speed(cosine, t) * FACTOR["x"](lam)
    np.testing.assert_allclose(named("elbo")(torch.from_numpy(lam)).numpy(), wanted, rtol=1e-12)


def test_edm_follows_from_its_objective():
    sigma, data = np.exp(-GRID / 2), 0.5
    density = stats.norm.pdf(np.log(sigma), -1.2, 1.2) / 2
    c = (sigma**2 + data**2) / (sigma * data) ** 2
    np.testing.assert_allclose(8 * named("edm")(LAMBDA).numpy(), 2 * c * density * FACTOR["x"](GRID), rtol=1e-11)


def test_sd3_follows_from_its_objective():
    t = 1 / (1 + np.exp(GRID / 2))
    density = stats.norm.pdf(np.log(t / (1 - t))) / (t * (1 - t)) * (t * (1 - t) / 2)  # dt/dλ on the straight path
    np.testing.assert_allclose(2 * named("sd3")(LAMBDA).numpy(), 2 * density * FACTOR["u"](GRID), rtol=1e-11)


@pytest.mark.parametrize("name", [name for name in NAMES if WEIGHTINGS[name].traits.const])
def test_declared_constant_is_the_objectives(name):
    known = {name: entry[3] for name, entry in OBJECTIVE.items()} | {"elbo": 1, "edm": 8, "sd3": 2}
    declared = eval(WEIGHTINGS[name].traits.const.replace("^", "**"), {"pi": math.pi, **WEIGHTINGS[name].params})
    assert declared == pytest.approx(known[name], rel=1e-15)


# Integrals

INTEGRALS = {
    ("iddpm", ()): 2 * math.pi,
    ("p2", (("gamma", 1.0),)): math.pi,
    ("p2", (("gamma", 0.5),)): 4,
    ("min-snr", (("gamma", 5.0),)): 5.13463,
    ("edm", ()): 1.866074,
    ("sd3", ()): 11.6865,
}


@pytest.mark.parametrize(("name", "params"), INTEGRALS)
def test_integral_is_the_closed_value(name, params, integral):
    w = named(name, dict(params))
    assert integral(w, -50, 50, [math.log(5)]) == pytest.approx(INTEGRALS[name, params], rel=5e-6)


@settings(max_examples=15)
@given(st.floats(0.5, 20))
def test_min_snrs_integral_for_any_gamma(integral, gamma):
    root = math.sqrt(gamma)
    wanted = 4 * math.atan(root) + 4 * gamma * (1 / root - math.atan(1 / root))
    assert integral(named("min-snr", {"gamma": gamma}), -50, 50, [math.log(gamma)]) == pytest.approx(wanted, rel=1e-9)


@settings(max_examples=15)
@given(st.floats(-2, 0), st.floats(0.6, 1.5), st.floats(0.1, 2))
def test_edms_integral_is_a_moment_of_a_normal(integral, mean, std, data):
    w = named("edm", {"mean": mean, "std": std, "sigma_data": data})
    assert integral(w, -50, 50) == pytest.approx(math.exp(2 * mean + 2 * std**2) + data**2, rel=1e-9)


@settings(max_examples=15)
@given(st.floats(-1, 1), st.floats(0.4, 1.5))
def test_sd3s_integral_is_a_moment_of_a_normal(integral, m, s):
    wanted = 1 + 2 * math.exp(m + s**2 / 2) + math.exp(2 * m + 2 * s**2)
    assert integral(named("sd3", {"m": m, "s": s}), -50, 50) == pytest.approx(wanted, rel=1e-9)


def test_ddpms_integral_over_its_own_schedule_is_one(integral):
    last = -math.log(math.expm1(10.05))
    assert integral(named("ddpm"), last, 50) == pytest.approx(1, rel=1e-9)


@settings(max_examples=15)
@given(st.floats(-14, -2), st.floats(2, 14), st.floats(-6, 6))
def test_integrals_between_bounds(integral, low, high, bias):
    tails = 2 * (math.exp(-low / 2) - math.exp(-high / 2))
    assert integral(named("elbo"), low, high) == pytest.approx(high - low, rel=1e-12)
    assert integral(named("v-cosine"), low, high) == pytest.approx(tails, rel=1e-11)
    assert integral(named("fm-ot"), low, high) == pytest.approx(tails, rel=1e-11)
    ratio = math.log1p(math.exp(bias - low)) - math.log1p(math.exp(bias - high))
    assert integral(named("sigmoid", {"bias": bias}), low, high) == pytest.approx(ratio, rel=1e-11)


def test_edm_monotonics_integral_is_edms_right_of_the_peak_and_flat_left_of_it(integral):
    wanted = 1.041835 + 0.2710272 * (-3.3077775 + 12)
    assert integral(named("edm-monotonic"), -12, 50, [-3.3077775]) == pytest.approx(wanted, rel=1e-6)


# Shape


@pytest.mark.parametrize("name", NAMES)
def test_claimed_monotonicity_holds(name):
    w = named(name)
    steepest = np.diff(w(LAMBDA).numpy()).max()
    assert (steepest <= 0) == WEIGHTINGS[name].traits.monotone
    assert (w.rising(-15, 15) == []) == WEIGHTINGS[name].traits.monotone


@settings(max_examples=20)
@given(any_weighting(MONOTONE))
def test_monotonicity_is_claimed_for_any_parameters(chosen):
    w = named(*chosen)
    value = w(LAMBDA).numpy()
    assert np.diff(value).max() <= 1e-15 * value.max()
    assert w.rising(-15, 15) == []


@pytest.mark.parametrize("name", NAMES)
def test_rising_intervals_are_where_the_values_rise(name):
    w = named(name)
    inside = np.zeros(len(GRID) - 1, bool)
    for start, end in w.rising(-15, 15):
        inside |= (GRID[:-1] >= start - 1e-9) & (GRID[1:] <= end + 1e-9)
    change = np.diff(w(LAMBDA).numpy())
    across = sum(1 for start, end in w.rising(-15, 15) for turn in (start, end) if -15 < turn < 15)
    wrong = (change[inside] < 0).sum() + (change[~inside] > 1e-15).sum()
    assert wrong <= across


PEAKS = {
    "iddpm": (0, 1e-12),
    "p2": (-math.log(3), 1e-9),
    "min-snr": (0, 1e-12),
    "soft-min-snr": (-0.5265, 5e-5),
    "ddpm": (-0.9219, 5e-5),
    "edm": (-3.3077775, 5e-8),
    "sd3": (-3.3758, 5e-5),
}


def test_every_peaked_weighting_has_its_turning_point_here():
    assert set(PEAKS) == set(PEAKED)


@pytest.mark.parametrize("name", PEAKS)
def test_turning_point(name):
    where, tolerance = PEAKS[name]
    ((start, end),) = named(name).rising(-15, 15)
    assert start == -15
    assert end == pytest.approx(where, abs=tolerance)


def test_height_of_edms_peak():
    ((_, peak),) = named("edm").rising(-15, 15)
    assert float(named("edm")(torch.tensor([peak], dtype=torch.float64))) == pytest.approx(0.2710272, abs=5e-8)


@settings(max_examples=15)
@given(st.floats(0.2, 3))
def test_p2_turns_at_minus_log_of_one_plus_two_gamma(gamma):
    ((_, end),) = named("p2", {"gamma": gamma}).rising(-15, 15)
    assert end == pytest.approx(-math.log(1 + 2 * gamma), abs=1e-8)


def test_monotone_edm_is_edm_monotonic_to_the_bit():
    assert torch.equal(named("edm", monotone=True)(LAMBDA), named("edm-monotonic")(LAMBDA))
    assert torch.equal(parse_weighting("edm:monotone")(LAMBDA), parse_weighting("edm-monotonic")(LAMBDA))


def test_edm_monotonic_clamps_by_level_not_by_place_in_the_batch():
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(len(GRID)))
    w = named("edm-monotonic")
    assert torch.equal(w(LAMBDA[shuffled]), w(LAMBDA)[shuffled])
    assert float(w(LAMBDA[:1])) == pytest.approx(0.2710272, abs=5e-8)


def test_edm_monotonic_finds_its_peak_once_not_at_every_step(monkeypatch):
    calls = []
    found = monotone.rising
    monkeypatch.setattr(monotone, "rising", lambda *args: calls.append(args) or found(*args))
    w = named("edm-monotonic", {"mean": -1.0625})
    for _ in range(3):
        w(LAMBDA)
    assert len(calls) == 1


@settings(max_examples=20)
@given(any_weighting())
def test_monotone_is_the_least_non_increasing_function_above(chosen):
    name, params = chosen
    wide = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    plain = named(name, params)(wide).numpy()
    hull = np.maximum.accumulate(plain[::-1])[::-1]
    found = named(name, params, monotone=True)(wide).numpy()
    assert (found >= plain).all()
    np.testing.assert_allclose(found, hull, rtol=5e-3)  # the grid misses the top of a peak by that much
    assert np.diff(found).max() <= 1e-13 * found.max()


@settings(max_examples=20)
@given(any_weighting(), st.floats(-8, 8), st.booleans())
def test_shift_moves_the_whole_weighting(chosen, shift, monotone):
    name, params = chosen
    moved = named(name, params, shift=shift, monotone=monotone)
    still = named(name, params, monotone=monotone)
    assert torch.equal(moved(LAMBDA), still(LAMBDA - shift))


@settings(max_examples=15)
@given(st.sampled_from(PEAKED), st.floats(-5, 5))
def test_shift_moves_the_turning_point(name, shift):
    ((_, still),) = named(name).rising(-15, 15)
    ((_, moved),) = named(name, shift=shift).rising(-15, 15)
    assert moved == pytest.approx(still + shift, abs=1e-6)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_shifting_sigmoid_is_adding_to_its_bias(bias, shift):
    moved = named("sigmoid", {"bias": bias}, shift=shift)(LAMBDA)
    np.testing.assert_allclose(moved, named("sigmoid", {"bias": bias + shift})(LAMBDA), rtol=1e-13)


@pytest.mark.parametrize(("size", "bias"), [(32, 3.386), (128, 0.614), (256, -0.773), (512, -2.159)])
def test_the_papers_bias_at_other_resolutions(size, bias):
    moved = named("sigmoid", shift=resolution_shift(size))(LAMBDA)
    np.testing.assert_allclose(moved, FORMULA["sigmoid"](GRID, bias), rtol=6e-4)


@pytest.mark.parametrize(("size", "knee"), [(128, -4.69), (256, -6.08), (512, -7.47)])
def test_the_papers_knee_at_other_resolutions(size, knee):
    w = named("edm-monotonic", shift=resolution_shift(size))
    value = w(LAMBDA)
    assert GRID[(value == value[0]).numpy()].max() == pytest.approx(knee, abs=0.011)


# p_w


@pytest.mark.parametrize("name", MONOTONE)
def test_p_w_divided_by_its_total_is_a_distribution(name, integral):
    w = named(name)
    breaks = [0.0, *edm_peak(-1.2, 1.2, 0.5)]
    lost = integral(lambda lam: -w.slope(lam), -12, 12, breaks)
    first, last = w(torch.tensor([-12.0, 12.0], dtype=torch.float64)).tolist()
    assert (lost + last) / first == pytest.approx(1, rel=1e-10)
    assert float(w.slope(LAMBDA).max()) <= 0


@pytest.mark.parametrize("shift", [0.0, -2.159])
@pytest.mark.parametrize("name", NAMES)
def test_p_w_of_every_weighting_made_monotone_is_a_distribution(name, shift, integral):
    """Density −dw/dλ, plus the point mass w(λmax), over w(λmin): 1 to 1e-9, also past a knee or a shift."""
    w = named(name, shift=shift, monotone=True)
    turns = [end for _, end in named(name, shift=shift).rising(-15, 15)]
    kinks = [
        {"min-snr": math.log(5), "snr-trunc": 0.0}.get(name, 0.0) + shift,
        *(p + shift for p in edm_peak(-1.2, 1.2, 0.5)),
    ]
    lost = integral(lambda lam: -w.slope(lam), -12, 12, [*kinks, *turns])
    first, last = w(torch.tensor([-12.0, 12.0], dtype=torch.float64)).tolist()
    assert (lost + last) / first == pytest.approx(1, rel=1e-9)


@given(st.floats(-5, 5))
def test_p_w_of_sigmoid_is_a_logistic_distribution(bias):
    found = -named("sigmoid", {"bias": bias}).slope(LAMBDA).numpy()
    np.testing.assert_allclose(found, stats.logistic.pdf(GRID, bias), rtol=1e-6)


def test_p_w_of_fm_ot_is_an_exponential_distribution():
    w = named("fm-ot")
    share = -w.slope(LAMBDA).numpy() / float(w(LAMBDA[:1]))
    np.testing.assert_allclose(share, stats.expon.pdf(GRID, loc=-15, scale=2), rtol=1e-12)


# Names


def same(a, b):
    return torch.equal(a(LAMBDA), b(LAMBDA))


@settings(max_examples=20)
@given(any_weighting(), st.floats(-8, 8), st.booleans())
def test_spec_reads_back_as_the_same_weighting(chosen, shift, monotone):
    name, params = chosen
    w = named(name, params, shift=shift, monotone=monotone)
    assert same(parse_weighting(w.spec), w)
    assert parse_weighting(w.spec).spec == w.spec


@settings(max_examples=20)
@given(st.sampled_from([s for s in sorted(SCHEDULES) if s != "uniform"]), st.floats(-5, 5), st.booleans())
def test_spec_of_a_schedules_weighting_reads_back(name, shift, monotone):
    w = parse_weighting(f"schedule:{name}", shift=shift, monotone=monotone)
    assert same(parse_weighting(w.spec), w)


def test_the_cosine_schedules_weighting_is_iddpm():
    np.testing.assert_allclose(parse_weighting("schedule:cosine")(LAMBDA), FORMULA["iddpm"](GRID), rtol=1e-14)


def test_a_schedules_weighting_is_its_density_with_a_peak_of_one():
    for text in ("edm", "fm-ot", "linear-beta", "cosine:shift=2", "edm-sample"):
        w = parse_weighting(f"schedule:{text}")
        density = parse_schedule(text).untruncated_density(LAMBDA)
        ratio = (w(LAMBDA) / density)[density > 0]
        assert float(ratio.max() / ratio.min()) == pytest.approx(1, rel=1e-13)
        assert float(w(torch.linspace(-50, 50, 100001, dtype=torch.float64)).max()) == pytest.approx(1, rel=1e-5)


def test_options_overrule_the_text_of_a_spec():
    assert same(parse_weighting("sigmoid:bias=1", given={"bias": 3.0}), named("sigmoid", {"bias": 3.0}))


def test_shifts_in_text_and_options_add_up():
    assert same(parse_weighting("edm:shift=1", shift=2.0), named("edm", shift=3.0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sigmod",
        "sigmoid:bias",
        "sigmoid:bias=x",
        "sigmoid:bias=nan",
        "sigmoid:gamma=1",
        "edm:std=0",
        "min-snr:gamma=-1",
        "schedule:",
        "schedule:nope",
        "schedule:cosine:bias=2",
        "ddpm:beta_min=30",
        "edm:shift=inf",
    ],
)
def test_a_bad_spec_is_refused(text):
    with pytest.raises(UsageError):
        parse_weighting(text)(LAMBDA)


def test_a_parameter_that_a_schedules_weighting_lacks_is_refused():
    with pytest.raises(UsageError, match="monotone alone"):
        parse_weighting("schedule:cosine", given={"bias": 1.0})


def test_a_weighting_held_constant_is_zero_nowhere_to_the_left():
    weighting = parse_weighting("eps-mse:monotone@edm-sample")
    low, high = weighting.support
    at = torch.tensor([low + 1e-9, -14.0, high - 1e-9], dtype=torch.float64)
    assert low < -14 and bool((weighting(at) > 0).all())
    assert parse_weighting("eps-mse@edm-sample").support[0] > -14


def test_a_weighting_tells_what_it_is_made_of():
    """Callers need not take its spec apart."""
    w = parse_weighting("edm:mean=-1,shift=2,monotone")
    assert (w.curve, w.schedule) == (WEIGHTINGS["edm"].bind({"mean": -1.0}), None)
    w = parse_weighting("x-mse:min-snr:3,monotone@cosine:shift=1")
    assert isinstance(w.curve, ForeignLoss) and w.schedule is w.curve.schedule
    assert w.curve.prediction.spec == "x" and w.curve.factor.spec == "min-snr:gamma=3"
    assert w.schedule.declared == SCHEDULES["cosine"] and w.schedule.base == "cosine:shift=1"
    assert parse_weighting("v-mse@edm").curve.factor is None
    w = parse_weighting("schedule:edm:mean=-1,monotone")
    assert w.schedule.base == "edm:mean=-1,std=1.2"
    assert isinstance(w.curve, ScheduleDensity)


# Not k-diffusion's


def k_diffusion(lam, sigma_data):
    """Its `soft-min-snr` as it is written: (σσ_d)²/(σ²+σ_d²)² on ‖F − F̂‖², σ = σ_d tan(πt/2), t uniform, to w(λ)."""
    sigma = np.exp(-lam / 2)
    factor = (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2) ** 2
    density = (2 / np.pi) * (sigma / sigma_data) / (1 + (sigma / sigma_data) ** 2) / 2  # dt/dσ · |dσ/dλ|
    error = (sigma**2 + sigma_data**2) / sigma_data**2  # ‖F − F̂‖² = ‖ε − ε̂‖² ×
    return 2 * factor * density * error


@pytest.mark.parametrize("data", [0.5, 1.0, 2.0])
def test_k_diffusions_soft_min_snr_is_the_spec_that_ours_names(data):
    s = -2 * math.log(data)
    theirs = lambda lam: torch.from_numpy(k_diffusion(lam.numpy(), data))  # noqa: E731
    spec = f"eps-mse:sigmoid:bias={s!r}@cosine:shift={s!r}"
    assert likeness(parse_weighting(spec), theirs, -15, 15).deviation < 1e-10
    same = likeness(named("soft-min-snr", {"sigma_data": data}), theirs, -15, 15).deviation < 1e-10
    assert same == (data == 1)


def test_soft_min_snrs_source_names_that_spec():
    spec = WEIGHTINGS["soft-min-snr"].source.rpartition(" ")[2]
    theirs = lambda lam: torch.from_numpy(k_diffusion(lam.numpy(), 0.5))  # noqa: E731
    assert likeness(parse_weighting(spec), theirs, -15, 15).deviation < 1e-6
