import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from elbocli.core.prediction import LIMIT
from elbocli.core.schedule import Schedule, Table, check_range, make_schedule, parse_schedule
from elbocli.core.schedule_curves import SCHEDULES, Laplace
from elbocli.errors import UsageError

NAMES = sorted(name for name in SCHEDULES if not name.startswith("t-"))
"""Those with a formula; test_discrete_schedule.py has the others."""
RANGES = dict.fromkeys(NAMES, (-15.0, 15.0)) | {"edm-sample": (-8.7, 12.4)}
PARAMETERS = {
    "iddpm": {"s": st.floats(0.001, 0.1)},
    "edm": {"mean": st.floats(-2, 0), "std": st.floats(1, 2)},
    "laplace": {"mean": st.floats(-2, 2), "scale": st.floats(1, 3)},
    "edm-sample": {"rho": st.floats(1, 12), "sigma_min": st.floats(1e-3, 2e-3), "sigma_max": st.floats(80, 200)},
    "linear-beta": {"beta_min": st.floats(0, 1), "beta_max": st.floats(2, 40)},
    "interpolated": {"low": st.floats(16, 64), "high": st.floats(8, 256), "size": st.integers(8, 512).map(float)},
}


def sech(x):
    return 1 / np.cosh(x)


def iddpm_t(lam, s):
    c0 = math.cos(s / (1 + s) * math.pi / 2)
    return (1 + s) * 2 / np.pi * np.arccos(c0 * np.sqrt(special.expit(lam))) - s


def linear_beta_density(lam, beta_min, beta_max):
    return special.expit(-lam) / np.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * np.log1p(np.exp(-lam)))


def edm_sample_density(lam, rho, sigma_min, sigma_max):
    return np.exp(-lam / (2 * rho)) / (2 * rho * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho)))


def edm_sample_level(t, rho, sigma_min, sigma_max):
    a, b = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return -2 * np.log((a + t * (b - a)) ** rho)


def iddpm_level(t, s):
    def signal(at):
        return np.cos((at + s) / (1 + s) * np.pi / 2) ** 2

    return special.logit(signal(t) / signal(0))


def betas_level(t, beta_min, beta_max):
    return -np.log(np.expm1(beta_min * t + (beta_max - beta_min) * t**2 / 2))


def interpolated_level(t, low, high, size):
    cosine = -2 * np.log(np.tan(np.pi * t / 2))
    return t * (cosine + 2 * np.log(low / size)) + (1 - t) * (cosine + 2 * np.log(high / size))


@np.vectorize
def interpolated_density(lam, **params):
    """By the rule for an inverse function, at the t that a root finder gives."""
    turn = optimize.brentq(
        lambda u: interpolated_level(special.expit(u), **params) - lam, -30, 30, xtol=1e-15, rtol=1e-15
    )
    t = special.expit(turn)
    return 1 / (2 * np.pi / np.sin(np.pi * t) + 2 * np.log(params["high"] / params["low"]))


LEVEL = {  # λ(t) before truncation
    "cosine": lambda t: -2 * np.log(np.tan(np.pi * t / 2)),
    "iddpm": iddpm_level,
    "edm": lambda t, mean, std: -2 * (mean + std * stats.norm.ppf(t)),
    "laplace": lambda t, mean, scale: -stats.laplace.ppf(t, -mean, scale),
    "edm-sample": edm_sample_level,
    "fm-ot": lambda t: 2 * np.log((1 - t) / t),
    "linear-beta": betas_level,
    "interpolated": interpolated_level,
}
DENSITY = {  # p(λ) before truncation
    "cosine": lambda lam: sech(lam / 2) / (2 * np.pi),
    "iddpm": lambda lam, s: -(iddpm_t(lam + 1e-5, s) - iddpm_t(lam - 1e-5, s)) / 2e-5,
    "edm": lambda lam, mean, std: stats.norm.pdf(lam, -2 * mean, 2 * std),
    "laplace": lambda lam, mean, scale: stats.laplace.pdf(lam, mean, scale),
    "edm-sample": edm_sample_density,
    "fm-ot": lambda lam: sech(lam / 4) ** 2 / 8,
    "linear-beta": linear_beta_density,
    "interpolated": interpolated_density,
    "uniform": lambda lam: np.ones_like(lam),
}
ACCURACY = {"iddpm": 1e-4, "interpolated": 1e-10}  # here a finite difference, and a root next to t = 1


def float64(values):
    return torch.as_tensor(values, dtype=torch.float64)


@st.composite
def any_schedule(draw):
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    params = draw(st.fixed_dictionaries(PARAMETERS.get(name, {})))
    shift = draw(st.sampled_from([0.0, -1.4, 1.4]))
    bound = SCHEDULES[name].bind(params)
    low, high = draw(st.floats(-10, -1)), draw(st.floats(1, 10))
    return make_schedule(bound(), bound.spec, low, high, shift=shift, clip=True)


def test_every_schedule_has_a_formula_here():
    assert set(DENSITY) == set(NAMES)
    assert set(LEVEL) == set(NAMES) - {"uniform"}


@pytest.mark.parametrize("name", LEVEL)
def test_level_is_its_formula(name):
    params = SCHEDULES[name].params
    t = np.linspace(0.02, 0.98, 200)
    np.testing.assert_allclose(
        SCHEDULES[name].make(**params).logsnr(float64(t)), LEVEL[name](t, **params), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_density_is_its_formula(name):
    params = SCHEDULES[name].params
    lam = np.linspace(*RANGES[name], 500)
    found = SCHEDULES[name].make(**params).density(float64(lam))
    np.testing.assert_allclose(found, DENSITY[name](lam, **params), rtol=ACCURACY.get(name, 1e-12))


@given(any_schedule())
def test_t_of_logsnr_of_t_is_t(schedule):
    t = torch.linspace(0, 1, 257, dtype=torch.float64)
    np.testing.assert_allclose(schedule.t(schedule.logsnr(t)), t, atol=1e-12)


@given(any_schedule())
def test_logsnr_of_t_of_logsnr_is_logsnr(schedule):
    lam = torch.linspace(schedule.logsnr_min, schedule.logsnr_max, 257, dtype=torch.float64)
    # Near t = 1 float64 can't tell times of the whole curve closer than 1e-16: that is as far as a level can come back.
    slack = 1e-6 + 4e-16 / schedule.untruncated_density(lam).numpy()
    assert np.all(np.abs((schedule.logsnr(schedule.t(lam)) - lam).numpy()) <= slack)


@given(any_schedule())
def test_density_is_minus_the_slope_of_t(schedule):
    inside = torch.linspace(schedule.logsnr_min, schedule.logsnr_max, 101, dtype=torch.float64)[1:-1]
    at = inside.clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.t(at).sum(), at)
    np.testing.assert_allclose(schedule.density(inside), -slope, rtol=1e-9)


@given(any_schedule())
def test_density_integrates_to_one_and_is_zero_outside(panels, schedule):
    edges = np.linspace(schedule.logsnr_min, schedule.logsnr_max, 200)
    if isinstance(schedule.curve, Laplace):
        edges = np.sort(
            np.append(edges, np.clip(schedule.curve.mean + schedule.shift, edges[0], edges[-1]))
        )  # its kink
    at, weight = panels(edges)
    assert float(schedule.density(float64(at)) @ float64(weight)) == pytest.approx(1, rel=1e-10)
    outside = float64([schedule.logsnr_min - 1e-9, schedule.logsnr_max + 1e-9, -40, 40])
    assert schedule.density(outside).tolist() == [0, 0, 0, 0]


@given(any_schedule())
def test_logsnr_falls_all_the_way(schedule):
    assert bool((schedule.logsnr(torch.linspace(0, 1, 500, dtype=torch.float64)).diff() < 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_t_runs_from_the_highest_level_to_the_lowest_exactly(name):
    low, high = RANGES[name]
    schedule = parse_schedule(name, low, high)
    assert schedule.logsnr(float64([0.0, 1.0])).tolist() == pytest.approx([high, low], abs=1e-9)
    assert schedule.t(float64([high, low, high + 1, low - 1])).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("low", [-16.0, -17.0, -17.5, -18.0, -25.0])
def test_the_last_level_is_reached_where_float64_ends_the_normal_tail(low):
    assert float(parse_schedule("edm", low, 15.0).logsnr(float64([1.0]))) == pytest.approx(low, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [-4.16, -1.4, 1.4])
def test_shift_comes_first_and_truncation_second(name, shift):
    low, high = (-10.0, 10.0) if name != "edm-sample" else (-8.7 + max(shift, 0), 12.4 + min(shift, 0))
    schedule = parse_schedule(f"{name}:shift={shift}", low, high)
    lam = float64(np.linspace(low, high, 101))
    assert schedule.logsnr(float64([0.0, 1.0])).tolist() == pytest.approx([high, low], abs=1e-7)
    ratio = schedule.density(lam) / SCHEDULES[name].make(**SCHEDULES[name].params).density(lam - shift)
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, rel=1e-12)


@given(any_schedule(), st.floats(-3, 3))
def test_shifted_keeps_the_range_and_moves_the_curve(schedule, by):
    moved = schedule.shifted(by)
    low, high = moved.support
    assert moved.logsnr_min == max(schedule.logsnr_min, low)
    assert moved.logsnr_max == min(schedule.logsnr_max, high)
    lam = torch.linspace(moved.logsnr_min + 0.1, moved.logsnr_max - 0.1, 50, dtype=torch.float64)
    one, other = moved.untruncated_density(lam), schedule.curve.density(lam - schedule.shift - by)
    np.testing.assert_allclose(one, other, rtol=1e-9)


@given(any_schedule())
def test_base_reads_back_as_the_same_schedule(schedule):
    again = parse_schedule(schedule.base, schedule.logsnr_min, schedule.logsnr_max)
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    assert again.base == schedule.base
    assert torch.equal(again.logsnr(t), schedule.logsnr(t))


def test_without_a_range_a_schedule_covers_what_its_curve_does():
    sample = parse_schedule("edm-sample")
    assert (sample.logsnr_min, sample.logsnr_max) == pytest.approx((-2 * math.log(80), -2 * math.log(0.002)), rel=1e-14)
    assert (parse_schedule("cosine").logsnr_min, parse_schedule("cosine").logsnr_max) == (-LIMIT, LIMIT)


def test_common_ranges_of_the_literature():
    sample = parse_schedule("edm-sample")
    assert (sample.logsnr_min, sample.logsnr_max) == pytest.approx((-8.764, 12.429), abs=5e-4)
    beta = SCHEDULES["linear-beta"].make(beta_min=0.1, beta_max=20.0)
    assert float(beta.logsnr(float64([1.0]))) == pytest.approx(-10.05, abs=5e-3)


def test_a_range_beyond_the_curve_is_refused_or_clipped():
    with pytest.raises(UsageError, match="covers logsnr"):
        parse_schedule("edm-sample", -15, 15)
    clipped = parse_schedule("edm-sample", -15, 5, clip=True)
    assert (clipped.logsnr_min, clipped.logsnr_max) == (clipped.support[0], 5)


@pytest.mark.parametrize(
    ("low", "high"), [(1, 1), (2, 1), (-60, 0), (0, 60), (math.nan, 1), (0, math.nan), (0, math.inf), (2, 2.0009)]
)
def test_a_range_that_does_not_rise_within_the_limit_is_refused(low, high):
    with pytest.raises(UsageError):
        check_range(low, high)
    with pytest.raises(UsageError):
        parse_schedule("cosine", low, high)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cosin",
        "cosine:s=1",
        "cosine:shift",
        "cosine:shift=x",
        "edm:std=0",
        "edm:std=-1",
        "edm:mean=nan",
        "edm:mean=1,mean=2",
        "iddpm:s=0",
        "linear-beta:beta_min=-1",
        "linear-beta:beta_min=30",
        "edm-sample:sigma_min=90",
        "edm-sample:rho=0",
        "fm-ot:monotone",
        "cosine,shift=1",
        "interpolated:low=0",
        "interpolated:low=232,high=10",
    ],
)
def test_a_bad_spec_is_refused(text):
    with pytest.raises(UsageError):
        parse_schedule(text)


@pytest.mark.parametrize("text", ["cosine:shift=200", "fm-ot:shift=-400", "edm:mean=400"])
def test_a_curve_with_nothing_left_in_the_range_is_refused(text):
    with pytest.raises(UsageError):
        parse_schedule(text, -15, 15)


@pytest.mark.parametrize("text", ["edm-sample:rho=1e-3", "edm-sample:rho=1e-4"])
def test_a_parameter_that_overflows_is_refused(text):
    with pytest.raises(UsageError):
        parse_schedule(text)


@pytest.mark.parametrize("low", [32, 256, 400])
def test_between_equal_sizes_interpolation_is_the_shifted_cosine(low):
    lam = float64(np.linspace(-15, 15, 101))
    shift = 2 * math.log(low / 128)
    one, other = (
        parse_schedule(text, -15, 15)
        for text in (f"interpolated:low={low},high={low},size=128", f"cosine:shift={shift!r}")
    )
    np.testing.assert_allclose(one.t(lam), other.t(lam), atol=1e-14)
    np.testing.assert_allclose(one.density(lam), other.density(lam), rtol=1e-12)


@pytest.mark.parametrize("text", ["interpolated:low=10,high=231", "interpolated:low=231,high=10"])
def test_interpolation_is_inverted_up_to_where_it_stops_falling(text):
    schedule = parse_schedule(text, -15, 15)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert bool((schedule.logsnr(t).diff() < 0).all())
    np.testing.assert_allclose(schedule.t(schedule.logsnr(t)), t, atol=1e-9)


def test_interpolation_goes_from_the_high_shift_at_clean_data_to_the_low_one_at_noise():
    """Quantiles of public code: images of 256 pixels, from the noise of 256 to that of 32. The reverse gives 1.1 and −5.3."""
    schedule = SCHEDULES["interpolated"].make(low=32.0, high=256.0, size=256.0)
    assert schedule.logsnr(float64([0.05, 0.95])).tolist() == pytest.approx([4.9, -9.0], abs=0.06)
    back = SCHEDULES["interpolated"].make(low=256.0, high=32.0, size=256.0)
    assert back.logsnr(float64([0.05, 0.95])).tolist() == pytest.approx([1.1, -5.3], abs=0.06)


def test_a_schedule_tells_what_it_is_made_of():
    schedule = parse_schedule("edm:mean=-1,shift=2", -5, 5).shifted(1)
    assert (schedule.declared, schedule.name, schedule.shift) == (
        SCHEDULES["edm"].bind({"mean": -1.0}),
        "edm:mean=-1,std=1.2",
        3,
    )
    assert schedule.base == "edm:mean=-1,std=1.2,shift=3" and schedule.file is None
    assert schedule.shifted(-3).base == schedule.name
    assert table([(0, 1), (1, -1)]).declared is None


def test_a_schedule_is_told_the_size_that_its_spec_leaves_out():
    assert parse_schedule("interpolated", size=512).base == "interpolated:low=32,high=256,size=512"
    assert parse_schedule("interpolated:size=8", size=512).base == "interpolated:low=32,high=256,size=8"
    assert parse_schedule("cosine", size=512).base == "cosine"


# Tables


@st.composite
def knots(draw):
    count = draw(st.integers(1, 20))
    step = st.floats(0.01, 1)
    times = np.cumsum([0.0, *draw(st.lists(step, min_size=count, max_size=count))])
    falls = np.cumsum([0.0, *draw(st.lists(step, min_size=count, max_size=count))])
    high = draw(st.floats(-5, 15))
    return list(zip((times / times[-1]).tolist(), (high - falls).tolist(), strict=True))


def table(rows):
    return make_schedule(Table(rows), "table", None, None)


@given(knots())
def test_a_table_passes_through_its_knots(rows):
    time, level = float64(rows).T
    np.testing.assert_allclose(table(rows).logsnr(time), level, atol=1e-12)
    np.testing.assert_allclose(table(rows).t(level), time, atol=1e-12)


@given(knots())
def test_a_table_is_linear_between_knots(rows):
    time, level = np.array(rows).T
    t = np.linspace(0, 1, 101)
    np.testing.assert_allclose(table(rows).logsnr(float64(t)), np.interp(t, time, level), atol=1e-10)
    lam = np.linspace(level[-1], level[0], 101)
    np.testing.assert_allclose(table(rows).t(float64(lam)), np.interp(-lam, -level, time), atol=1e-10)


@given(knots())
def test_a_tables_density_is_the_share_of_t_over_the_width(rows):
    time, level = np.array(rows).T
    middle = (level[1:] + level[:-1]) / 2
    np.testing.assert_allclose(table(rows).density(float64(middle)), np.diff(time) / -np.diff(level), rtol=1e-9)


@given(knots(), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_truncated_table_integrates_to_one(panels, rows, below, above):
    _, level = np.array(rows).T
    span = level[0] - level[-1]
    low, high = level[-1] + below * span, level[0] - above * span
    part = make_schedule(Table(rows), "table", low, high)
    edges = np.unique([low, high, *level[(level > low) & (level < high)]])
    at, weight = panels(edges)
    assert float(part.density(float64(at)) @ float64(weight)) == pytest.approx(1, rel=1e-9)
    assert part.logsnr(float64([0.0, 1.0])).tolist() == pytest.approx([high, low], abs=1e-9)


@settings(max_examples=20)
@given(knots(), st.sampled_from([-2.5, 2.5]))
def test_a_shifted_table_moves_with_its_ends(rows, shift):
    moved = make_schedule(Table(rows), "table", None, None, shift=shift)
    assert moved.support == pytest.approx((rows[-1][1] + shift, rows[0][1] + shift))
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    np.testing.assert_allclose(moved.logsnr(t), table(rows).logsnr(t) + shift, atol=1e-10)


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 1)],
        [(0, 1), (1, 1)],
        [(0, 1), (1, 2)],
        [(0.1, 1), (1, 0)],
        [(0, 1), (0.9, 0)],
        [(0, 2), (0.5, 1), (0.5, 0.5), (1, 0)],
        [(0, 2), (0.6, 1), (0.5, 0.5), (1, 0)],
        [(0, math.nan), (1, 0)],
    ],
)
def test_bad_knots_are_refused(rows):
    with pytest.raises(UsageError):
        Table(rows)


def test_two_knots_are_the_uniform_schedule():
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    uniform = parse_schedule("uniform", -7, 9)
    np.testing.assert_allclose(table([(0, 9), (1, -7)]).logsnr(t), uniform.logsnr(t), atol=1e-13)


def test_a_schedule_is_a_value():
    assert parse_schedule("cosine").base == "cosine"
    with pytest.raises(AttributeError):
        parse_schedule("cosine").logsnr_min = 0
    assert isinstance(parse_schedule("cosine"), Schedule)
