"""Each weighting equals a formula of its own and holds its claims, and slopes, rises and likenesses of functions are right."""

import math

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import optimize

from elbocli.core.monotone import SHOWN, in_words, likeness, rising, slope
from elbocli.core.registry import Registry
from elbocli.core.weighting import Weighting, parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS, NamedWeighting, check_weighting
from elbocli.errors import UsageError

GRID = np.linspace(-15, 15, 3001)


LAMBDA = torch.from_numpy(GRID)


NAMES = sorted(WEIGHTINGS)


MONOTONE = [name for name in NAMES if WEIGHTINGS[name].monotone]


def named(name, params=None, **modifiers):
    """A declared weighting, built from its parts."""
    return Weighting(WEIGHTINGS[name].bind(params or {}), **modifiers)


def sech(x):
    return 2 * np.exp(-np.abs(x)) / (1 + np.exp(-2 * np.abs(x)))


def normal(x, mean, std):
    return np.exp(-((x - mean) ** 2) / (2 * std**2)) / np.sqrt(2 * np.pi * std**2)


def edm(lam, mean=-1.2, std=1.2, sigma_data=0.5):
    return normal(lam, -2 * mean, 2 * std) * (np.exp(-lam) + sigma_data**2)


def edm_peak(mean, std, sigma_data):
    """Where d log w/dλ changes sign for the last time, on the way down."""

    def slope(lam):
        noise = np.exp(-lam)
        return -(lam + 2 * mean) / (4 * std**2) - noise / (noise + sigma_data**2)

    grid = np.linspace(-50, 50, 100001)
    downs = np.flatnonzero((slope(grid[:-1]) > 0) & (slope(grid[1:]) <= 0))
    return [optimize.brentq(slope, grid[i], grid[i + 1], xtol=1e-15, rtol=1e-15) for i in downs]


def edm_monotonic(lam, mean=-1.2, std=1.2, sigma_data=0.5):
    best = edm(lam, mean, std, sigma_data)
    for peak in edm_peak(mean, std, sigma_data):
        best = np.where(lam <= peak, np.maximum(best, edm(peak, mean, std, sigma_data)), best)
    return best


FORMULA = {
    "elbo": lambda lam: np.ones_like(lam),
    "soft-min-snr": lambda lam, sigma_data=0.5: sech(lam / 2) / (1 + sigma_data**2 * np.exp(lam)),
    "edm-monotonic": edm_monotonic,
    "sigmoid": lambda lam, bias=2: 1 / (1 + np.exp(lam - bias)),
}
"""Formulas of weightings, with their authors' defaults. test_foreign_loss.py derives the other weightings from objectives."""
NORMAL = {"mean": st.floats(-3, 1), "std": st.floats(0.6, 2), "sigma_data": st.floats(0.1, 2)}
PARAMETERS = {
    "p2": {"gamma": st.floats(0.1, 3)},
    "min-snr": {"gamma": st.floats(0.5, 20)},
    "soft-min-snr": {"sigma_data": st.floats(0.1, 2)},
    "ddpm": {"beta_min": st.floats(0.01, 1), "beta_max": st.floats(2, 40)},
    "edm": NORMAL,
    "edm-monotonic": NORMAL,
    "sigmoid": {"bias": st.floats(-6, 6)},
    "sd3": {"m": st.floats(-2, 2), "s": st.floats(0.4, 2)},
}


@st.composite
def any_weighting(draw, names=NAMES):
    name = draw(st.sampled_from(list(names)))
    return name, draw(st.fixed_dictionaries(PARAMETERS.get(name, {})))


@pytest.mark.parametrize("name", FORMULA)
def test_weighting_is_its_formula_at_its_defaults(name):
    np.testing.assert_allclose(parse_weighting(name)(LAMBDA), FORMULA[name](GRID), rtol=1e-12, atol=0)


@given(any_weighting(FORMULA))
def test_weighting_is_its_formula_at_any_parameters(chosen):
    name, params = chosen
    np.testing.assert_allclose(named(name, params)(LAMBDA).numpy(), FORMULA[name](GRID, **params), rtol=1e-11, atol=0)


# Shape


@pytest.mark.parametrize("name", NAMES)
def test_claimed_monotonicity_holds(name):
    w = named(name)
    steepest = np.diff(w(LAMBDA).numpy()).max()
    assert (steepest <= 0) == WEIGHTINGS[name].monotone
    assert (w.rising(-15, 15) == []) == WEIGHTINGS[name].monotone


@settings(max_examples=20)
@given(any_weighting(MONOTONE))
def test_monotonicity_is_claimed_for_any_parameters(chosen):
    w = named(*chosen)
    value = w(LAMBDA).numpy()
    assert np.diff(value).max() <= 1e-15 * value.max()
    assert w.rising(-15, 15) == []


PEAKS = {
    "iddpm": (0, 1e-12),
    "p2": (-math.log(3), 1e-9),
    "min-snr": (0, 1e-12),
    "soft-min-snr": (-0.5265, 5e-5),
    "ddpm": (-0.9219, 5e-5),
    "edm": (-3.3077775, 5e-8),
    "sd3": (-3.3758, 5e-5),
}


@pytest.mark.parametrize("name", PEAKS)
def test_turning_point(name):
    where, tolerance = PEAKS[name]
    ((start, end),) = named(name).rising(-15, 15)
    assert start == -15
    assert end == pytest.approx(where, abs=tolerance)


def test_monotone_edm_is_edm_monotonic_to_the_bit():
    assert torch.equal(named("edm", monotone=True)(LAMBDA), named("edm-monotonic")(LAMBDA))


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


def test_a_weighting_held_constant_is_zero_nowhere_to_the_left():
    weighting = parse_weighting("eps-mse:monotone@edm-sample")
    low, high = weighting.support
    at = torch.tensor([low + 1e-9, -14.0, high - 1e-9], dtype=torch.float64)
    assert low < -14 and bool((weighting(at) > 0).all())
    assert parse_weighting("eps-mse@edm-sample").support[0] > -14


@pytest.mark.parametrize(("name", "rise"), [("iddpm", 0.9865), ("edm", 0.9784), ("sigmoid", 0)])
def test_the_rise_is_the_mass_that_no_augmentation_has(name, rise):
    assert parse_weighting(name).rise(-10, 10) == pytest.approx(rise, abs=1e-4)


def of_function(function, **modifiers):
    registry = Registry("weighting", NamedWeighting)
    registry.declare("mine", monotone=False)(function)
    return Weighting(registry["mine"], **modifiers)


def test_a_weighting_is_valid_where_it_is_finite_and_not_negative():
    line = of_function(lambda logsnr: 5 - logsnr)
    assert "negative for logsnr 5.00" in line.faults(-15, 15) and "ELBO of" not in line.verdict(-15, 15)
    assert "9.00" in of_function(lambda logsnr: 5 - logsnr, shift=4.0).faults(-15, 15)
    assert line.faults(-15, 5) == "" == of_function(lambda logsnr: 0 * logsnr).faults(-15, 15)
    for w in (line, of_function(lambda logsnr: logsnr.sqrt()), of_function(lambda logsnr: (1e3 * logsnr).exp())):
        with pytest.raises(UsageError):
            w.check(-15, 15)
        assert "ELBO of" not in w.verdict(-15, 15)


@pytest.mark.parametrize("monotone", [False, True])
def test_a_weighting_may_be_infinite_outside_the_range_of_a_run(monotone):
    steep = of_function(lambda logsnr: (-20 * logsnr).exp(), monotone=monotone)
    steep.check(-15, 15)
    assert torch.equal(steep(LAMBDA), (-20 * LAMBDA).exp()) and "infinite" in steep.faults(-50, 15)


@pytest.mark.parametrize("name", NAMES)
def test_every_weighting_passes_the_check_of_plug_ins(name):
    check_weighting(WEIGHTINGS[name])
    assert named(name).faults(-50, 50) == ""


def test_where_a_schedule_ends_a_weighting_of_its_density_does_not_rise():
    w = parse_weighting("eps-mse@edm-sample")
    low, high = w.support
    assert w.rising(-15, 15) == w.rising(low, high) == w.rising(20, 30) == [] and "never rises" in w.verdict(-15, 15)


# Specs


def same(a, b):
    return torch.equal(a(LAMBDA), b(LAMBDA))


@settings(max_examples=20)
@given(any_weighting(), st.floats(-8, 8), st.booleans())
def test_spec_reads_back_as_the_same_weighting(chosen, shift, monotone):
    name, params = chosen
    w = named(name, params, shift=shift, monotone=monotone)
    assert same(parse_weighting(w.spec), w)
    assert parse_weighting(w.spec).spec == w.spec


def test_options_overrule_the_text_of_a_spec_and_shifts_add_up():
    assert same(parse_weighting("sigmoid:bias=1", given={"bias": 3.0}), named("sigmoid", {"bias": 3.0}))
    assert same(parse_weighting("edm:shift=1", shift=2.0), named("edm", shift=3.0))


BAD = """
sigmod sigmoid:bias sigmoid:bias=nan sigmoid:gamma=1 edm:std=0
ddpm:beta_min=30 edm:shift=inf edm:shift=1,shift=2 uncertainty:3 uncertainty:shift=1
"""


@pytest.mark.parametrize("text", ["", *BAD.split()])
def test_a_bad_spec_is_refused(text):
    with pytest.raises(UsageError):
        parse_weighting(text)(LAMBDA)


@pytest.mark.parametrize("text", ["uncertainty", "eps-mse@cosine", "x-mse:min-snr@cosine"])
def test_a_parameter_that_a_weighting_lacks_is_refused(text):
    with pytest.raises(UsageError):
        parse_weighting(text, given={"bias": 1.0})


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


# Functions of λ


@given(st.floats(1e-3, 1e3), st.floats(0.01, 3))
def test_the_best_scale_halves_the_spread(scale, wave):
    """f/g = scale · e^{wave sin λ}: the best deviation is e^{wave} − 1."""

    def f(lam):
        return scale * (wave * lam.sin()).exp() * (-lam).exp()

    found = likeness(f, lambda lam: (-lam).exp(), -10, 10)
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert found.deviation == pytest.approx(math.expm1(wave), rel=1e-6)
    assert abs(math.sin(found.logsnr)) == pytest.approx(1, abs=1e-6)


def test_a_zero_in_one_alone_is_an_infinite_deviation_and_is_placed():
    def cut(lam):
        return (lam > 2).double()

    found = likeness(lambda lam: lam * 0 + 1, cut, -5, 5)
    assert found.deviation == math.inf and found.logsnr <= 2
    assert likeness(cut, cut, -5, 5).deviation == 0


def test_rising_and_slope_of_a_function_that_is_known():
    ((start, end),) = rising(lambda lam: -(lam - 1).square(), -3, 3)
    assert (start, end) == (-3, pytest.approx(1, abs=1e-9))
    at = torch.tensor([0.0, 2.0])
    assert slope(lambda lam: lam.square(), at).tolist() == [0, 4]
    assert slope(lambda lam: torch.ones(2), at).tolist() == [0, 0]


@settings(max_examples=20, phases=[Phase.generate])  # shrinking a failure would take minutes
@given(st.integers(0, 1000), st.sampled_from([1e-16, 1e-14, 1e-12, 1e-10]), st.sampled_from([1e-250, 1e-21, 1.0, 1e30]))
def test_rounding_of_a_constant_is_no_rise(seed, noise, scale):
    generator = torch.Generator().manual_seed(seed)

    def rounded(lam):
        return scale * (1 + noise * (2 * torch.rand(lam.shape, generator=generator, dtype=torch.float64) - 1))

    assert rising(rounded, -15, 15) == []


@pytest.mark.parametrize("scale", [1e-250, 1e-21, 1.0, 1e30])
def test_a_small_true_rise_is_one_at_any_height(scale):
    (found,) = rising(lambda lam: scale * (1 + 1e-7 * (-((lam - 1) ** 2)).exp()), -15, 15)
    assert found[1] == pytest.approx(1, abs=1e-2)
    assert rising(lambda lam: scale * (1 + 1e-10 * (-((lam - 1) ** 2)).exp()), -15, 15) == []


def test_numbers_too_small_for_float64_do_not_cut_a_rise_in_pieces():
    ((low, high),) = parse_weighting("edm:std=.1").rising(-15, 15)
    assert -6 < low < -4 and high == pytest.approx(2.4, abs=0.1)


@pytest.mark.parametrize("at", [-3.7, 0.00012, 2.5])
def test_a_jump_is_found_where_it_is(at):
    ((start, end),) = rising(lambda lam: (lam >= at) * (-lam / 10).exp(), -15, 15)
    assert start == pytest.approx(at, abs=1e-12) and start <= at <= end
    ((start, end),) = rising(lambda lam: (lam <= at) * (lam / 10).exp(), -15, 15)
    assert start == -15 and at - 1e-12 < end <= at


def test_intervals_are_named_in_a_line_however_many_there_are():
    assert in_words([(-15, -3.3077779), (-1e-17, 2)]) == "-15 to -3.307778, 0 to 2"
    steps = rising(lambda lam: lam.floor() + 100, -15, 15)
    assert len(steps) > SHOWN
    assert in_words(steps) == f"-14, -13, -12, -11 and {len(steps) - SHOWN} more"
