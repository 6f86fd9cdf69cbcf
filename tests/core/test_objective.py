"""The loss doesn't depend on the schedule, with the package's own code from t to the mean over a batch."""

import math

import numpy as np
import pytest
import torch
from identities import target

from elbocli.core.objective import Objective, check_output
from elbocli.core.prediction import PREDICTIONS, Prediction, alpha, sigma
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting
from elbocli.errors import UsageError

LOW = -8.0
HIGH = 10.0


SCHEDULES = ("cosine", "edm", "fm-ot", "linear-beta", "uniform")


WEIGHTINGS = ("elbo", "sigmoid:bias=2", "edm-monotonic", "iddpm", "fm-ot")


def losses(out, x, eps, lam, objective):
    """(weighted loss, unweighted ε error) of a network that gives `out`."""
    return objective.losses(lambda *_: out, x, eps, None, lam)[:2]


@pytest.fixture(scope="module")
def integrate(panels, mixture):
    """∫ dt over [0, 1] of the mean loss of the exact denoiser, by the code that training uses."""
    x, eps, chance = mixture.quadrature(10)
    edges = torch.linspace(HIGH, LOW, 31, dtype=torch.float64)

    def run(weighting, schedule, prediction="v"):
        w = parse_weighting(weighting)
        s = parse_schedule(schedule, LOW, HIGH)
        p = Prediction(prediction)
        t, share = panels(s.t(edges).numpy())
        lam = s.logsnr(torch.from_numpy(t)).repeat_interleave(len(x))
        data, noise = (v.repeat(len(t)).view(-1, 1, 1, 1) for v in (x, eps))
        z = (alpha(lam) * data.flatten() + sigma(lam) * noise.flatten()).view(-1, 1, 1, 1)
        x_hat = mixture.denoise(z.flatten(), lam).view(-1, 1, 1, 1)
        eps_hat = (z - alpha(lam).view(-1, 1, 1, 1) * x_hat) / sigma(lam).view(-1, 1, 1, 1)
        out = target(p, x_hat, eps_hat, lam)
        loss, _ = losses(out.float(), data.float(), noise.float(), lam, Objective(w, s, p))
        return float(loss.double().view(len(t), -1) @ chance @ torch.from_numpy(share))

    return run


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_loss_is_the_same_under_every_schedule(integrate, weighting):
    found = [integrate(weighting, schedule) for schedule in SCHEDULES]
    assert found[0] > 1e-3
    np.testing.assert_allclose(found, found[0], rtol=1e-6)


@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
def test_the_loss_is_the_same_for_every_prediction(integrate, prediction):
    assert integrate("sigmoid:bias=2", "cosine", prediction) == pytest.approx(
        integrate("sigmoid:bias=2", "uniform", "v"), rel=3e-5
    )


def test_the_loss_is_half_the_weighted_integral_over_logsnr(integrate, panels, mixture):
    """½ ∫ w E‖ε−ε̂‖² dλ, with the error from its definition."""
    at, share = panels(np.linspace(LOW, HIGH, 31))
    x, eps, chance = mixture.quadrature(10)
    total = 0.0
    for lam, part in zip(at, share, strict=True):
        a = math.sqrt(1 / (1 + math.exp(-lam)))
        s = math.sqrt(1 / (1 + math.exp(lam)))
        eps_hat = (a * x + s * eps - a * mixture.denoise(a * x + s * eps, lam)) / s
        total += part * 0.5 / (1 + math.exp(lam - 2)) * float(chance @ (eps - eps_hat) ** 2)
    assert integrate("sigmoid:bias=2", "edm") == pytest.approx(total, rel=1e-6)


def test_jits_loss_and_input_are_those_of_its_code():
    """JiT sees z = (1−τ)x + τε, and divides x − z and x̂ − z by max(τ, .05) before it compares them."""
    x, eps, x_hat = torch.randn(3, 64, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lam = torch.linspace(-12, 12, 64, dtype=torch.float64)
    seen = []
    w = parse_weighting("u-mse:clamped@logit-normal:mean=.8,std=.8")
    s = parse_schedule("logit-normal:mean=.8,std=.8", -15, 15)
    objective = Objective(w, s, Prediction("x-path"))
    loss = objective.losses(lambda z, *_: seen.append(z) or x_hat, x, eps, None, lam).loss
    tau = (-lam / 2).sigmoid().view(-1, 1, 1, 1)
    z = (1 - tau) * x + tau * eps
    scale = tau.clamp(min=0.05)
    wanted = ((x - z) / scale - (x_hat - z) / scale).square().mean((1, 2, 3))
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    np.testing.assert_allclose(seen[0], z, atol=1e-12)


BOUND = Objective(parse_weighting("elbo"), parse_schedule("cosine", -15, 15), Prediction("v"))


def test_losses_are_computed_in_single_precision_under_autocast():
    x, eps, out = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    lam = torch.tensor([-2.0, 3.0], dtype=torch.float64)
    plain = losses(out.bfloat16(), x, eps, lam, BOUND)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses(out.bfloat16(), x, eps, lam, BOUND)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(plain, mixed, strict=True))


def test_the_logged_error_carries_no_gradient():
    x = torch.zeros(1, 1, 2, 2)
    out = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss, error = losses(out, x, x, torch.zeros(1, dtype=torch.float64), BOUND)
    assert loss.requires_grad and not error.requires_grad


@pytest.mark.parametrize("out", [torch.zeros(1), torch.zeros(4, 1, 1, 1), torch.zeros(4, 6, 8, 8), (torch.zeros(4, 3, 8, 8),)])
def test_an_output_that_would_broadcast_is_refused(out):
    z = torch.zeros(4, 3, 8, 8)
    with pytest.raises(UsageError):
        check_output(out, z)


def test_an_output_of_twice_the_channels_holds_a_variance():
    z = torch.zeros(4, 3, 8, 8)
    out = torch.zeros(4, 6, 8, 8)
    assert check_output(out, z, variance=True) is out and check_output(z, z) is z
