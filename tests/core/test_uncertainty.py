"""The learned weighting is EDM2's in effect: by its own loss with a network for u, and by the theorem on its schedule."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elbocli.api import DiffusionLoss
from elbocli.core.adaptive import (
    BinSums,
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
from elbocli.errors import UsageError

LOW, HIGH = -10.0, 12.0


EDGES = bin_edges(LOW, HIGH)


MIDDLE = bin_middles(EDGES)


EDM2 = parse_schedule("edm2-img512", LOW, HIGH)


def exact_error(mixture: Any, logsnr: Tensor) -> Tensor:
    """E(ε − ε̂)² of the exact denoiser at each λ, by quadrature: [n]."""
    x, eps, chance = mixture.quadrature(80)
    found = []
    for level in logsnr.tolist():
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-level))), math.sqrt(1 / (1 + math.exp(level)))
        z = alpha * x + sigma * eps
        eps_hat = (z - alpha * mixture.denoise(z, level)) / sigma
        found.append((chance * (eps - eps_hat).square()).sum())
    return torch.stack(found)


@pytest.mark.parametrize("name", ["edm2-img512", "laplace:mean=1,scale=2", "uniform", "fm-ot"])
def test_a_schedule_is_the_adaptive_one_of_its_own_learned_weighting(name, mixture):
    """EDM2's theorem: p ∝ w e with w = p/e. The floor adds the only difference, and bins are as fine as it gets."""
    schedule, error = parse_schedule(name, LOW, HIGH), exact_error(mixture, MIDDLE)
    learned = parse_weighting("uncertainty").knowing(schedule, MIDDLE, error)
    moments = ErrorMoments(EDGES, torch.full_like(error, 1e9), error, 3 * error.square())
    fitted = fit_schedule(moments, learned, floor=1e-9)
    assert float((fitted.t(EDGES) - schedule.t(EDGES)).abs().max()) < 1e-3
    # Every t counts alike, whatever the network's error is.
    at = torch.linspace(LOW, HIGH, 199, dtype=torch.float64)[1:-1]
    ratio = learned(at) * exact_error(mixture, at) / schedule.density(at)
    assert float((ratio - 1).abs().max()) < 2e-3


class LogVariance(nn.Module):
    """u(σ), EDM2's way: random Fourier features of ln(σ)/4, and a line of weights."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        turn = torch.Generator().manual_seed(3)
        self.rate = 2 * math.pi * torch.randn(width, generator=turn)
        self.phase = 2 * math.pi * torch.rand(width, generator=turn)
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, sigma: Tensor) -> Tensor:
        features = (sigma.log()[:, None] / 4 * self.rate + self.phase).cos() * math.sqrt(2)
        return features @ self.weight / math.sqrt(len(self.weight))


def small_network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))


def points(count: int, step: int) -> Tensor:
    """Data in the plane: a ring of standard deviation about .5."""
    draw = torch.Generator().manual_seed(step)
    angle = 2 * math.pi * torch.rand(count, generator=draw)
    return 0.7 * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(count, 2, generator=draw)


P_MEAN, P_STD, SIGMA_DATA, STEPS, BATCH = -0.4, 1.0, 0.15, 500, 256
"""The σ of the data is said to be less than it is, so that u has something to learn."""
ASKED = torch.linspace(-3, 4.6, 39, dtype=torch.float64)
"""λ at which weightings are compared: .8 ± 1.9 standard deviations of those that are drawn."""


def test_the_learned_weighting_is_edm2s_with_a_network_for_u():
    """EDM2's loop, restated: D and u by one loss, (ω/e^u) ‖D − x‖²/n + u. Ours is learned by averages of the same errors."""
    network, log_variance = small_network(), LogVariance()
    optimizer = torch.optim.Adam([{"params": network.parameters()}, {"params": log_variance.parameters(), "lr": 1e-2}], 3e-3)
    draw = torch.Generator().manual_seed(2)
    prediction = Prediction(f"edm:sigma_data={SIGMA_DATA}")
    schedule = parse_schedule(f"edm:mean={P_MEAN},std={P_STD}", LOW, HIGH)
    online = OnlineObjective(Objective(parse_weighting("uncertainty"), schedule, prediction))
    sums = BinSums(LOW, HIGH)
    for step in range(STEPS):
        x = points(BATCH, step)
        sigma = (P_MEAN + P_STD * torch.randn(BATCH, generator=draw)).exp()
        y = x + sigma[:, None] * torch.randn(x.shape, generator=draw)
        s = sigma[:, None]
        total = (s**2 + SIGMA_DATA**2).sqrt()
        inputs = torch.cat([y / total, (s.log() / 4).cos(), (s.log() / 4).sin()], 1)
        denoised = SIGMA_DATA**2 / total**2 * y + s * SIGMA_DATA / total * network(inputs)
        error = (denoised - x).square().mean(1)
        omega = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        u = log_variance(sigma)
        (omega / u.exp() * error + u).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        sums.add(-2 * sigma.log().double(), (error / sigma**2).detach())
        if step % 10 == 9:
            online.refit(sums.take())
    ours = online.objective.weighting
    sigma = (-ASKED / 2).exp()
    with torch.no_grad():  # EDM2's effective weight of ‖ε − ε̂‖²: p ω σ² / e^u
        omega = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        theirs = EDM2.density(ASKED) * omega * sigma**2 / log_variance(sigma.float()).double().exp()
    apart = (ours(ASKED) / theirs).log()
    assert float((apart - apart.mean()).abs().max()) < 0.1
    assert float(apart.std()) < 0.04
    assert abs(float(apart.mean())) < 0.05, "the scale is that of u, too: the loss is half of each error over its mean"


def test_it_begins_as_the_plain_squared_error_of_the_networks_output():
    for spec in ("v", "eps", "edm", "u"):
        prediction = Prediction(spec)
        start = OnlineObjective(Objective(parse_weighting("uncertainty"), EDM2, prediction)).objective.weighting
        factor = start(MIDDLE) / EDM2.density(MIDDLE) * prediction.coefficients(MIDDLE).eps_factor
        assert torch.allclose(factor, torch.ones_like(factor), rtol=1e-9)


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
