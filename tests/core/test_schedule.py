"""Schedules and timesteps: λ(t) by its formula, t(λ) its inverse, the density its slope; tables; level codes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from elbocli.core.monotone import rising, slope
from elbocli.core.prediction import LIMIT
from elbocli.core.schedule import LEVEL_CODES, Table, make_schedule, parse_level_code, parse_schedule
from elbocli.core.schedule_curves import BETAS, SCHEDULES, FmOt, Shifted, Steps, check_schedule, logsnr_of_betas
from elbocli.errors import UsageError

NAMES = sorted(name for name in SCHEDULES if not name.startswith("t-"))
"""Those with a formula; test_discrete_schedule.py has the others."""


PARAMETERS = {
    "iddpm": {"s": st.floats(0.001, 0.1)},
    "edm": {"mean": st.floats(-2, 0), "std": st.floats(1, 2)},
    "laplace": {"mean": st.floats(-2, 2), "scale": st.floats(1, 3)},
    "mode": {"scale": st.floats(-0.9, 1.7)},
    "logit-normal": {"mean": st.floats(-2, 2), "std": st.floats(0.5, 2)},
    "edm-sample": {"rho": st.floats(1, 12), "sigma_min": st.floats(1e-3, 2e-3), "sigma_max": st.floats(80, 200)},
    "linear-beta": {"beta_min": st.floats(0, 1), "beta_max": st.floats(2, 40)},
    "interpolated": {"low": st.floats(16, 64), "high": st.floats(8, 256), "size": st.integers(8, 512).map(float)},
}


def iddpm_level(t, s=0.008):
    def signal(at):
        return np.cos((at + s) / (1 + s) * np.pi / 2) ** 2

    return special.logit(signal(t) / signal(0))


def edm_sample_level(t, rho=7, sigma_min=0.002, sigma_max=80):
    return -2 * rho * np.log(sigma_min ** (1 / rho) * (1 - t) + sigma_max ** (1 / rho) * t)


def betas_level(t, beta_min=0.1, beta_max=20):
    return -np.log(np.expm1(beta_min * t + (beta_max - beta_min) * t**2 / 2))


def interpolated_level(t, low=32, high=256, size=64):
    cosine = -2 * np.log(np.tan(np.pi * t / 2))
    return t * (cosine + 2 * np.log(low / size)) + (1 - t) * (cosine + 2 * np.log(high / size))


def flow(u):
    return 2 * np.log((1 - u) / u)


LEVEL = {  # λ(t) before truncation, with the authors' defaults
    "cosine": lambda t: -2 * np.log(np.tan(np.pi * t / 2)),
    "iddpm": iddpm_level,
    "edm": lambda t, mean=-1.2, std=1.2: -2 * (mean + std * stats.norm.ppf(t)),
    "laplace": lambda t, mean=0, scale=0.5: -stats.laplace.ppf(t, -mean, scale),
    "edm-sample": edm_sample_level,
    "fm-ot": lambda t: 2 * np.log((1 - t) / t),
    "linear-beta": betas_level,
    "interpolated": interpolated_level,
    "mode": lambda t, scale=1.29: flow(1 - (1 - t) - scale * (np.cos(np.pi / 2 * (1 - t)) ** 2 - 1 + (1 - t))),
    "logit-normal": lambda t, mean=0, std=1: flow(special.expit(mean + std * special.ndtri(t))),
    "uniform": lambda t: -t,
}


def float64(values):
    return torch.as_tensor(values, dtype=torch.float64)


@st.composite
def any_schedule(draw):
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    params = draw(st.fixed_dictionaries(PARAMETERS.get(name, {})))
    shift = draw(st.sampled_from([0.0, -1.4, 1.4]))
    bound = SCHEDULES[name].bind(params)
    low = draw(st.floats(-10, -1))
    high = draw(st.floats(1, 10))
    return make_schedule(bound(), bound.spec, low, high, shift=shift, clip=True)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5)
@given(data=st.data())
def test_level_is_its_formula(name, data):
    t = np.linspace(0.02, 0.98, 200)
    for params in ({}, data.draw(st.fixed_dictionaries(PARAMETERS.get(name, {})))):
        found = SCHEDULES[name].bind(params)().logsnr(float64(t))
        np.testing.assert_allclose(found, LEVEL[name](t, **params), rtol=1e-10, atol=1e-12)


@given(any_schedule())
def test_t_of_logsnr_of_t_is_t(schedule):
    t = torch.linspace(0, 1, 257, dtype=torch.float64)
    np.testing.assert_allclose(schedule.t(schedule.logsnr(t)), t, atol=1e-12)


@given(any_schedule())
def test_density_is_minus_the_slope_of_t(schedule):
    inside = torch.linspace(schedule.logsnr_min, schedule.logsnr_max, 101, dtype=torch.float64)[1:-1]
    at = inside.clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.t(at).sum(), at)
    np.testing.assert_allclose(schedule.density(inside), -slope, rtol=1e-9)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@settings(max_examples=10)
@given(data=st.data())
def test_every_schedule_passes_the_check_of_plug_ins(name, data):
    check_schedule(SCHEDULES[name].bind(data.draw(st.fixed_dictionaries(PARAMETERS.get(name, {})))))


@pytest.mark.parametrize("spec", ["laplace:scale=.001", "edm:std=.001", "edm:mean=-30", "t-linear:count=2"])
def test_a_narrow_or_wide_schedule_passes_the_check_of_plug_ins(spec):
    check_schedule(SCHEDULES.parse(spec))


@given(any_schedule())
def test_density_is_zero_outside(schedule):
    outside = float64([schedule.logsnr_min - 1e-9, schedule.logsnr_max + 1e-9, -40, 40])
    assert schedule.density(outside).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_t_runs_from_the_highest_level_to_the_lowest_exactly(name):
    schedule = parse_schedule(name, -15, 15, clip=True)
    low = schedule.logsnr_min
    high = schedule.logsnr_max
    assert (name == "edm-sample") == ((low, high) != (-15, 15))
    assert schedule.logsnr(float64([0.0, 1.0])).tolist() == pytest.approx([high, low], abs=1e-9)
    assert schedule.t(float64([high, low, high + 1, low - 1])).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("low", [-16.0, -17.0, -17.5, -18.0, -25.0])
def test_the_last_level_is_reached_where_float64_ends_the_normal_tail(low):
    assert float(parse_schedule("edm", low, 15.0).logsnr(float64([1.0]))) == pytest.approx(low, abs=1e-9)


@given(any_schedule())
def test_base_reads_back_as_the_same_schedule(schedule):
    again = parse_schedule(schedule.base, schedule.logsnr_min, schedule.logsnr_max)
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    assert again.base == schedule.base
    assert torch.equal(again.logsnr(t), schedule.logsnr(t))


def test_without_a_range_a_schedule_covers_what_its_curve_does():
    sample = parse_schedule("edm-sample")
    assert (sample.logsnr_min, sample.logsnr_max) == pytest.approx((-2 * math.log(80), -2 * math.log(0.002)), rel=1e-14)
    for whole in map(parse_schedule, ("cosine", "cosine:shift=3", "cosine:shift=-3")):
        assert (whole.logsnr_min, whole.logsnr_max) == (-LIMIT, LIMIT)


def test_a_range_beyond_the_curve_is_refused_at_either_end_or_clipped():
    for low, high in ((-15, 5), (-5, 15), (-15, 15)):
        with pytest.raises(UsageError):
            parse_schedule("edm-sample", low, high)
    clipped = parse_schedule("edm-sample", -15, 5, clip=True)
    assert (clipped.logsnr_min, clipped.logsnr_max) == (clipped.support[0], 5)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (-60, 0), (0, 60), (math.nan, 1), (0, math.nan), (0, math.inf), (2, 2.0009)])
def test_a_range_that_does_not_rise_within_the_limit_is_refused(low, high):
    with pytest.raises(UsageError):
        parse_schedule("cosine", low, high)


BAD = """
cosin cosine:s=1 cosine:shift=x cosine:shift=200 edm:mean=400 edm:std=0 edm:mean=1,mean=2 iddpm:s=0
linear-beta:beta_min=-1 linear-beta:beta_min=30 edm-sample:sigma_min=90 edm-sample:rho=0 edm-sample:rho=1e-3
edm-sample:rho=1e-4 cosine,shift=1 interpolated:low=0 interpolated:low=232,high=10 t-linear:count=1
mode:scale=-1.01 mode:scale=1.76 t-linear:count=10.5 t-linear:end=2 t-linear:start=0 t-scaled-linear:start=-1 t-squaredcos:count=1000000
"""


@pytest.mark.parametrize("text", ["", *BAD.split()])
def test_a_bad_spec_is_refused(text):
    with pytest.raises(UsageError):
        parse_schedule(text, -15, 15, clip=True)


@pytest.mark.parametrize("text", ["interpolated:low=10,high=231", "interpolated:low=231,high=10"])
def test_interpolation_is_inverted_up_to_where_it_stops_falling(text):
    schedule = parse_schedule(text, -15, 15)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert bool((schedule.logsnr(t).diff() < 0).all())
    np.testing.assert_allclose(schedule.t(schedule.logsnr(t)), t, atol=1e-9)


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


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 1)],
        [(0, 1), (1, 1)],
        [(0.1, 1), (1, 0)],
        [(0, 1), (0.9, 0)],
        [(0, 2), (0.5, 1), (0.5, 0.5), (1, 0)],
        [(0, math.nan), (1, 0)],
    ],
)
def test_bad_knots_are_refused(rows):
    with pytest.raises(UsageError):
        Table(rows)


# Timesteps


ENDS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "sigmoid": (1e-4, 0.02), "squaredcos_cap_v2": (0, 0)}


def steps(name="linear", count=1000, **kind):
    return logsnr_of_betas(BETAS[name].make(*ENDS[name], count), **kind)


def test_an_snr_scale_is_a_shift():
    np.testing.assert_allclose(steps(snr_scale=3.0), steps() - math.log(3), atol=1e-12)


def test_tiny_betas_keep_their_digits():
    beta = torch.full((10,), 1e-18, dtype=torch.float64)
    wanted = -np.log(1e-18 * np.arange(1, 11))
    np.testing.assert_allclose(logsnr_of_betas(beta), wanted, rtol=1e-14)


@st.composite
def uneven(draw):
    """Falling levels with gaps from a thousandth to some units, in no order."""
    gaps = draw(st.lists(st.floats(1e-3, 4), min_size=1, max_size=20))
    return torch.tensor(10.0 - np.cumsum([0, *gaps]), dtype=torch.float64).clamp(min=-49)


@settings(max_examples=60)
@given(uneven())
def test_t_never_rises_whatever_the_timesteps(level):
    if float(level.diff().max()) >= 0:
        return
    curve = Steps(level)
    at = torch.linspace(*curve.support, 2001, dtype=torch.float64)
    assert float(curve.density(at).min()) >= -1e-12
    assert float(curve.t(at).diff().max()) <= 1e-14
    t = torch.linspace(float(curve.time[-1]), float(curve.time[0]), 57, dtype=torch.float64)
    np.testing.assert_allclose(curve.t(curve.logsnr(t)), t, atol=1e-14)


@pytest.mark.parametrize("name", ENDS)
def test_the_density_of_timesteps_in_use_has_one_peak(name):
    """The cubic adds no bumps of its own."""
    curve = Steps(steps(name))
    assert len(rising(curve.density, max(-12, curve.support[0]), curve.support[1])) == 1


def test_timesteps_beyond_the_limit_keep_their_share():
    level = torch.tensor([60.0, 5.0, 0.0, -5.0, -math.inf], dtype=torch.float64)
    curve = Steps(level)
    assert curve.support == (-5, 5)
    assert curve.time.tolist() == pytest.approx([0.7, 0.5, 0.3])
    assert curve.support[1] < LIMIT


@pytest.mark.parametrize("level", [[1.0], [1.0, 1.0], [0.0, 1.0], [60.0, 55.0, 1.0], [math.nan, math.nan, 0.0]])
def test_levels_that_are_no_schedule_are_refused(level):
    with pytest.raises(UsageError):
        Steps(torch.tensor(level, dtype=torch.float64))


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_flow_matchings_time_shift_is_a_shift_of_the_level(shift):
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    later = shift * t / (1 + (shift - 1) * t)  # as SD3's schedulers write it
    level = 2 * ((1 - later) / later).log()
    curve = Shifted(FmOt(), -2 * math.log(shift))
    np.testing.assert_allclose(curve.logsnr(t), level, atol=1e-12)
    np.testing.assert_allclose(curve.t(level), t, atol=1e-14)
    np.testing.assert_allclose(-slope(curve.t, level), curve.density(level), rtol=1e-9)


# Level codes


@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
@pytest.mark.parametrize(("count", "spec"), [(10, ":count=10"), (1000, "")])
def test_a_timestep_has_its_own_number(betas, count, spec):
    levels = steps(betas, count)
    kept = levels.abs() <= 50
    told = parse_level_code(f"t:{betas}{spec}")(levels[kept])
    assert torch.allclose(told, torch.arange(count, dtype=torch.float64)[kept], atol=1e-6, rtol=0)


@given(st.floats(-49, 49))
def test_a_code_undoes_what_its_formula_says(level):
    at = torch.tensor([level], dtype=torch.float64)
    sigma = parse_level_code("sigma")(at)
    assert torch.allclose(parse_level_code("logsnr:factor=-0.125")(at), sigma.log() / 4, atol=1e-12)
    t = parse_level_code("flow")(at)
    assert torch.allclose(t / (1 - t), sigma, rtol=1e-6) or level > 30 or level < -30
    assert torch.allclose(parse_level_code("flow-reversed")(at) + t, torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("name", LEVEL_CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_code_is_monotone_and_keeps_its_precision(name, dtype):
    told = LEVEL_CODES[name](torch.linspace(-8, 8, 100, dtype=dtype))
    assert told.dtype == dtype and told.isfinite().all()
    assert (told.diff() >= 0).all() or (told.diff() <= 0).all()


def test_a_level_code_may_be_written_as_papers_do():
    assert parse_level_code("t:linear").spec == parse_level_code("t-linear").spec
    assert parse_level_code("t:squaredcos,count=4000").params == {"count": 4000}
