"""Learned weightings: EDM2's theorem on its schedule, InfoNoise's allocation, their starts and modifiers."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
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
    learned = parse_weighting("uncertainty").knowing(schedule, MIDDLE, error)
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


@pytest.mark.parametrize("loss_weight", [lambda s: 1 / s**2, lambda s: (s**2 + 0.25) / (0.5 * s) ** 2])
def test_infonoise_is_its_papers_allocation_with_any_loss_weight_and_any_schedule(mixture, loss_weight):
    """In the paper's words: the density of σ times the weight on ‖x − x̂‖² is the gated rate of entropy; eq. 13 to 16."""
    error = exact_error(mixture, MIDDLE)
    exponent = 4.0
    onset = 0.01
    sigma = (-MIDDLE / 2).exp()
    rate = error * sigma**2 / sigma**3
    pivot = sigma[rate >= onset * rate.max()].max()
    gated = rate * sigma**exponent / (sigma**exponent + pivot**exponent)
    density = gated / loss_weight(sigma) / -torch.trapezoid(gated, sigma)  # of σ, up to a constant
    allocation = density * loss_weight(sigma)  # ∫ allocation ‖x − x̂‖² dσ = ∫ w ‖ε − ε̂‖² dλ, with ‖x − x̂‖ = σ ‖ε − ε̂‖
    spec = f"infonoise:exponent={exponent},onset={onset}"
    for schedule in (EDM2, parse_schedule("uniform", LOW, HIGH)):
        w = parse_weighting(spec).knowing(schedule, MIDDLE, error)
        np.testing.assert_allclose(w(MIDDLE), allocation * sigma**2 * sigma / 2, rtol=5e-3)
        assert not w.rising(LOW, HIGH), "an ELBO, for the exact denoiser"


def test_infonoise_and_its_schedule_follow_the_errors_together(mixture):
    """The schedule is an importance sampler of the weighting, p ∝ w e; its own errors change both."""
    first = Objective(parse_weighting("infonoise"), parse_schedule("uniform", LOW, HIGH), Prediction("v"))
    online = OnlineObjective(first, adaptive=True, floor=1e-9)
    begun = online.objective
    error = exact_error(mixture, MIDDLE)
    assert torch.allclose(begun.schedule.density(MIDDLE), torch.tensor(1 / (HIGH - LOW)).double())
    online.refit(torch.stack([torch.full_like(error, 1e6), 1e6 * error, 3e6 * error.square()]))
    weighting = online.objective.weighting
    schedule = online.objective.schedule
    share = weighting(MIDDLE) * error
    np.testing.assert_allclose(schedule.density(MIDDLE), share / share.sum() / (MIDDLE[1] - MIDDLE[0]), rtol=0.02, atol=1e-6)
    assert not torch.allclose(begun.weighting(MIDDLE), weighting(MIDDLE), rtol=0.1)


@pytest.mark.parametrize("name", LEARNED_WEIGHTINGS)
def test_every_learned_weighting_passes_the_check_of_plug_ins_and_one_that_is_negative_does_not(name):
    check_learned(LEARNED_WEIGHTINGS[name])
    with pytest.raises(PluginError):
        check_learned(replace(LEARNED_WEIGHTINGS[name], make=lambda logsnr, profile: profile.log_error(logsnr), params={}))


def test_monotone_it_never_rises(mixture):
    error = exact_error(mixture, MIDDLE)
    plain, held = (parse_weighting(text).knowing(EDM2, MIDDLE, error) for text in ("uncertainty", "uncertainty:monotone"))
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
