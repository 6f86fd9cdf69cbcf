"""Learned weightings: EDM2's theorem on its schedule, their starts and modifiers."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from elbocli.api import DiffusionLoss
from elbocli.core.adaptive import (
    ErrorMoments,
    OnlineObjective,
    bin_edges,
    bin_middles,
    fit_schedule,
)
from elbocli.core.objective import Objective
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting, through
from elbocli.core.weighting_curves import LEARNED_WEIGHTINGS, check_learned
from elbocli.errors import PluginError, UsageError

LOW = -10.0
HIGH = 12.0


EDGES = bin_edges(LOW, HIGH)


MIDDLE = bin_middles(EDGES)


EDM2 = parse_schedule("edm2-img512", LOW, HIGH)


def exact_error(mixture: Any, logsnr: Tensor) -> Tensor:
    """E(ε − ε̂)² of the exact denoiser at each λ, by quadrature: [n]."""
    x, eps, chance = mixture.quadrature(80)
    found = []
    for level in logsnr.tolist():
        alpha = math.sqrt(1 / (1 + math.exp(-level)))
        sigma = math.sqrt(1 / (1 + math.exp(level)))
        z = alpha * x + sigma * eps
        eps_hat = (z - alpha * mixture.denoise(z, level)) / sigma
        found.append((chance * (eps - eps_hat).square()).sum())
    return torch.stack(found)


@pytest.mark.parametrize("name", ["edm2-img512", "laplace:mean=1,scale=2", "uniform", "fm-ot"])
def test_a_schedule_is_the_adaptive_one_of_its_own_learned_weighting(name, mixture):
    """EDM2's theorem: p ∝ w e with w = p/e. The floor adds the only difference, and bins are as fine as it gets."""
    schedule = parse_schedule(name, LOW, HIGH)
    error = exact_error(mixture, MIDDLE)
    learned = parse_weighting("uncertainty").with_errors(schedule, MIDDLE, error)
    moments = ErrorMoments(EDGES, torch.full_like(error, 1e9), error, 3 * error.square())
    fitted = fit_schedule(moments, learned, floor=1e-9)
    assert float((fitted.t(EDGES) - schedule.t(EDGES)).abs().max()) < 1e-3
    # Every t counts alike, whatever the network's error is.
    at = torch.linspace(LOW, HIGH, 199, dtype=torch.float64)[1:-1]
    ratio = learned(at) * exact_error(mixture, at) / schedule.density(at)
    assert float((ratio - 1).abs().max()) < 2e-3


def test_it_begins_as_the_plain_squared_error_of_the_networks_output():
    for spec in ("v", "eps", "edm", "u"):
        prediction = Prediction(spec)
        start = OnlineObjective(Objective(parse_weighting("uncertainty"), EDM2, prediction)).objective.weighting
        factor = start(MIDDLE) / EDM2.density(MIDDLE) * prediction.coefficients(MIDDLE).eps_factor
        assert torch.allclose(factor, torch.ones_like(factor), rtol=1e-9)


@pytest.mark.parametrize("name", LEARNED_WEIGHTINGS)
def test_every_learned_weighting_passes_the_check_of_plug_ins_and_one_that_is_negative_does_not(name):
    check_learned(LEARNED_WEIGHTINGS[name])
    with pytest.raises(PluginError):
        check_learned(replace(LEARNED_WEIGHTINGS[name], make=lambda logsnr, profile: profile.log_error(logsnr), params={}))


def test_monotone_it_never_rises(mixture):
    error = exact_error(mixture, MIDDLE)
    plain, held = (parse_weighting(text).with_errors(EDM2, MIDDLE, error) for text in ("uncertainty", "uncertainty:monotone"))
    assert plain.rising(LOW, HIGH) and not held.rising(LOW, HIGH)
    assert bool((held(MIDDLE) >= plain(MIDDLE)).all())


def test_a_curve_through_values_is_smooth_and_exact_for_parabolas():
    at = torch.linspace(-2.2, 2.2, 101, dtype=torch.float64)
    knots = torch.linspace(-2, 2, 9, dtype=torch.float64)
    inside = at[(at > -1.5) & (at < 1.5)]
    assert torch.allclose(through(inside, knots, knots.square()), inside.square(), atol=1e-12)
    assert torch.allclose(through(at, knots, 3 * knots - 1), 3 * at - 1, atol=1e-12)
    assert torch.allclose(through(knots, knots, knots.sin()), knots.sin(), atol=1e-15)
    near = torch.tensor([0.5 - 1e-7, 0.5 + 1e-7], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(through(near, knots, knots.exp()).sum(), near)
    assert float(slope.diff().abs()) < 1e-5, "no bend at a knot"


def test_alone_it_says_no_weight_and_an_adaptive_schedule_is_refused():
    alone = parse_weighting("Uncertainty", monotone=True)
    assert alone.spec == "uncertainty:monotone" == parse_weighting(alone.spec).spec
    assert alone.learned and not parse_weighting("edm").learned
    with pytest.raises(UsageError):
        alone(MIDDLE)
    with pytest.raises(UsageError):
        DiffusionLoss("uncertainty", "adaptive")
