"""Discrete timesteps: the betas by their definitions, and t(λ) through them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.core.monotone import slope
from elbocli.core.prediction import LIMIT, Prediction
from elbocli.core.schedule import make_schedule
from elbocli.core.schedule_curves import BETAS, FmOt, Moved, Steps, logsnr_of_betas
from elbocli.core.weighting import ForeignLoss, ScheduleDensity, Weighting
from elbocli.errors import UsageError

COUNT = 1000


def by_hand(name, start, end, count):
    """β_i one by one."""
    found = []
    for i in range(count):
        part = i / (count - 1)
        if name == "linear":
            beta = start + part * (end - start)
        elif name == "scaled_linear":
            beta = (start**0.5 + part * (end**0.5 - start**0.5)) ** 2
        elif name == "sigmoid":
            beta = start + (end - start) / (1 + math.exp(-(12 * part - 6)))
        else:
            before, after = (math.cos((k / count + 0.008) / 1.008 * math.pi / 2) ** 2 for k in (i, i + 1))
            beta = min(1 - after / before, 0.999)
        found.append(beta)
    return found


def levels_by_hand(beta, zero_terminal=False):
    """λ_i = log ᾱ_i/(1 − ᾱ_i) from running products, and their rescaling to no signal at the end."""
    abar = np.cumprod(1 - np.asarray(beta))
    if zero_terminal:
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    with np.errstate(divide="ignore"):
        return np.log(abar) - np.log(1 - abar)


ENDS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "sigmoid": (1e-4, 0.02), "squaredcos_cap_v2": (0, 0)}


def steps(name="linear", count=COUNT, **kind):
    return logsnr_of_betas(BETAS[name].make(*ENDS[name], count), **kind)


@pytest.mark.parametrize("count", [2, 10, COUNT])
@pytest.mark.parametrize("name", ENDS)
def test_betas_are_their_formula(name, count):
    np.testing.assert_allclose(BETAS[name].make(*ENDS[name], count), by_hand(name, *ENDS[name], count), rtol=1e-9)


def test_every_beta_schedule_is_tried():
    assert set(BETAS) == set(ENDS)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ENDS)
def test_levels_are_the_running_products(name, zero):
    wanted = levels_by_hand(by_hand(name, *ENDS[name], COUNT), zero)
    found = steps(name, zero_terminal=zero).numpy()
    assert np.isneginf(found[-1]) == zero
    np.testing.assert_allclose(found[: COUNT - zero], wanted[: COUNT - zero], rtol=0, atol=1e-9)


def test_an_snr_scale_is_a_shift():
    np.testing.assert_allclose(steps(snr_scale=3.0), steps() - math.log(3), atol=1e-12)


def test_tiny_betas_keep_their_digits():
    beta = torch.full((10,), 1e-18, dtype=torch.float64)
    wanted = -np.log(1e-18 * np.arange(1, 11))
    np.testing.assert_allclose(logsnr_of_betas(beta), wanted, rtol=1e-14)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ENDS)
def test_between_two_timesteps_lies_their_share_of_the_density(name, zero, panels):
    level = steps(name, zero_terminal=zero)[: COUNT - zero]
    curve = Steps(steps(name, zero_terminal=zero))
    edges = level.flip(0).numpy()
    at, width = panels(edges, 3)  # exact for the parabola of each cell
    share = (curve.density(torch.from_numpy(at)).numpy() * width).reshape(len(edges) - 1, 3).sum(1)
    np.testing.assert_allclose(share, 1 / COUNT, rtol=1e-8)
    np.testing.assert_allclose(curve.t(level), (np.arange(len(level)) + 0.5) / COUNT, atol=1e-14)


@pytest.mark.parametrize("name", ENDS)
def test_the_sum_over_timesteps_is_the_integral(name, panels):
    """(1/T) Σ g(λ_i), as peers train, against ∫ p g dλ plus the half steps at the two ends."""
    level = steps(name).numpy()
    at, width = panels(level[::-1], 4)

    def g(lam):
        return 1 / (1 + np.exp(lam - 2)) + 0.3 * np.sin(lam)

    inside = float((Steps(steps(name)).density(torch.from_numpy(at)).numpy() * g(at) * width).sum())
    ends = (g(level[0]) + g(level[-1])) / (2 * COUNT)
    assert inside + ends == pytest.approx(g(level).mean(), abs=0.2 / COUNT)  # a fifth of one timestep


@pytest.mark.parametrize(
    ("name", "target"), [("linear", "eps"), ("scaled_linear", "v"), ("squaredcos_cap_v2", "eps"), ("sigmoid", "x")]
)
def test_the_weighted_loss_is_the_loss_over_timesteps(name, target, panels):
    """½∫ w g over a cell is the mean of the target's error under the cubic t, whose share is 1/T: a bound by extremes."""
    schedule = make_schedule(Steps(steps(name)), "steps", None, None)
    w = Weighting(ForeignLoss(Prediction(target), None, schedule))
    error = {"eps": lambda lam: lam * 0 + 1, "x": lambda lam: np.exp(-lam), "v": lambda lam: 1 + np.exp(-lam)}[target]
    edges = steps(name).numpy()[::-1]
    at, width = panels(edges, 8)
    part = 0.5 * (w(torch.from_numpy(at)).numpy() * width).reshape(-1, 8).sum(1)
    low, high = np.sort([error(edges[1:]), error(edges[:-1])], 0) / COUNT
    assert ((part > low * (1 - 1e-9)) & (part < high * (1 + 1e-9))).all()


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


def test_density_is_minus_the_derivative_of_t_and_can_be_derived_again():
    curve = Steps(steps("squaredcos_cap_v2"))
    at = torch.linspace(-9, 9, 101, dtype=torch.float64) + 1e-3
    np.testing.assert_allclose(-slope(curve.t, at), curve.density(at), rtol=1e-9)
    wanted = (curve.density(at + 1e-6) - curve.density(at - 1e-6)) / 2e-6
    np.testing.assert_allclose(slope(curve.density, at), wanted, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("name", ENDS)
def test_the_density_of_a_schedule_in_use_has_one_peak(name):
    """The cubic adds no bumps of its own: eps loss rises once, v loss under the latent schedule never."""
    schedule = make_schedule(Steps(steps(name)), "steps", None, None)
    w = Weighting(ScheduleDensity(schedule))
    assert len(w.rising(max(-12, schedule.logsnr_min), schedule.logsnr_max)) == 1


def test_timesteps_of_improved_ddpm_are_its_continuous_schedule():
    level = steps("squaredcos_cap_v2")
    assert (float(level[0]), float(level[-1])) == pytest.approx((10.09, -19.84), abs=0.01)  # MATH.md
    angle = (np.arange(1, COUNT) / COUNT + 0.008) / 1.008 * np.pi / 2
    first = np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    abar = np.cos(angle) ** 2 / first
    np.testing.assert_allclose(level[: COUNT - 1], np.log(abar) - np.log(1 - abar), atol=1e-9)


def test_timesteps_beyond_the_limit_keep_their_share():
    level = torch.tensor([60.0, 5.0, 0.0, -5.0, -math.inf], dtype=torch.float64)
    curve = Steps(level)
    assert curve.support == (-5, 5)
    assert curve.time.tolist() == pytest.approx([0.7, 0.5, 0.3])
    assert curve.support[1] < LIMIT


@pytest.mark.parametrize("level", [[1.0], [1.0, 1.0], [0.0, 1.0], [60.0, 55.0, 1.0], [math.nan, math.nan, 0.0]])
def test_levels_that_are_no_schedule_are_refused(level):
    with pytest.raises(UsageError, match="must fall"):
        Steps(torch.tensor(level, dtype=torch.float64))


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_flow_matchings_time_shift_is_a_shift_of_the_level(shift):
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    later = shift * t / (1 + (shift - 1) * t)  # as SD3's schedulers write it
    level = 2 * ((1 - later) / later).log()
    curve = Moved(FmOt(), -2 * math.log(shift))
    np.testing.assert_allclose(curve.logsnr(t), level, atol=1e-12)
    np.testing.assert_allclose(curve.t(level), t, atol=1e-14)
    np.testing.assert_allclose(-slope(curve.t, level), curve.density(level), rtol=1e-9)
