"""examples/minelbo.py: its loss, schedules, sampler and bound are elbo's, and a short training learns digits."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import load
from sklearn.datasets import load_digits

import elbocli
from elbocli.core.adaptive import ErrorMoments, fit_schedule
from elbocli.core.streams import Stream

SCRIPT = Path(__file__).parent.parent / "examples" / "minelbo.py"
RANGE = {"logsnr_min": -10.0, "logsnr_max": 10.0}
T = torch.linspace(0, 1, 1001, dtype=torch.float64)


@pytest.fixture(scope="module")
def script():
    return load(SCRIPT)


@pytest.fixture(scope="module")
def pixels():
    """[N, 1, 8, 8] uint8."""
    return torch.from_numpy(np.rint(load_digits().images * 255 / 16).astype(np.uint8))[:, None]


@pytest.fixture(scope="module")
def network(script):
    """An untrained network whose output is not zero."""
    torch.manual_seed(0)
    return script.Network(64)


def test_it_is_short_and_imports_torch_and_numpy_alone():
    text = SCRIPT.read_text()
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in found if isinstance(node, ast.ImportFrom)}
    assert names == {"sys", "numpy", "torch"}
    assert len(text.splitlines()) <= 150


def unlabelled(network):
    """The network as elbo calls one."""
    return lambda z, logsnr, labels: network(z, logsnr)


def test_the_loss_is_elbos(script, network, pixels):
    x = pixels[:128].float() / 127.5 - 1
    eps = torch.randn(128, 1, 8, 8)
    terms = elbocli.DiffusionLoss("sigmoid:bias=2", "cosine", "v", **RANGE)(unlabelled(network), x, eps=eps)
    weighting = script.sigmoid_weighting
    schedule = script.Cosine()
    loss, error = script.losses(network, x, eps, terms.logsnr.double(), weighting, schedule)
    torch.testing.assert_close(loss, terms.loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(error, terms.eps_mse, rtol=1e-5, atol=1e-7)


def test_the_schedules_are_elbos(script):
    errors = 1 / (1 + (script.EDGES[1:] / 2).exp())
    weighting = elbocli.weighting("sigmoid:bias=2")
    # So many errors a bin that none needs its neighbours.
    exact = ErrorMoments(script.EDGES, torch.full_like(errors, 1e18), errors, 2 * errors.square())
    for mine, elbos, within in (
        (script.Cosine(), elbocli.schedule("cosine", -10, 10), 1e-12),
        # elbo takes the mean of w over a bin, where the script takes w in its middle.
        (script.Adaptive(script.sigmoid_weighting, errors), fit_schedule(exact, weighting), 2e-3),
    ):
        logsnr = elbos.logsnr(T)
        torch.testing.assert_close(mine.logsnr(T), logsnr, rtol=0, atol=10 * within)
        inside = logsnr[1:-1] + 1e-4
        torch.testing.assert_close(mine.density(inside), elbos.density(inside), rtol=within, atol=0)


def test_the_sampler_is_elbos(script, network):
    drawn = elbocli.draw(
        unlabelled(network), "v", (1, 8, 8), 4, sampler="ddim", steps=16, schedule="cosine", device="cpu", **RANGE
    )
    z = Stream(0, "sample-1").noise(range(4), (8, 8, 1))
    torch.testing.assert_close(script.sample(network, z, script.Cosine(), 16), drawn, rtol=1e-4, atol=1e-4)


def test_the_bound_is_elbos(script, network, pixels):
    torch.manual_seed(0)
    few = pixels[:200]
    elbos = elbocli.variational_bound(
        unlabelled(network), "v", few.movedim(1, -1).numpy(), schedule="cosine", draws=64, device="cpu", **RANGE
    )
    prior, reconstruction, diffusion = (part.double() for part in script.bound(network, few, script.Cosine()))
    assert float(prior.mean()) == pytest.approx(elbos.prior.nats, rel=1e-5)
    assert float(reconstruction.mean()) == pytest.approx(elbos.reconstruction.nats, rel=0.02)  # drawn, exact in elbo
    noise = elbos.bpd_se_noise * 64 * np.log(2)
    assert float(diffusion.mean()) == pytest.approx(elbos.diffusion.nats, abs=4 * 2**0.5 * noise)
    assert noise < 0.02 * elbos.diffusion.nats


def test_a_short_training_learns(script, pixels, capsys):
    torch.manual_seed(0)
    x = pixels.float() / 127.5 - 1
    network = script.Network(64, 192)

    def loss(schedule):
        logsnr = schedule.logsnr(torch.rand(len(x), dtype=torch.float64))
        with torch.no_grad():
            found, _ = script.losses(network, x, torch.randn_like(x), logsnr, script.sigmoid_weighting, schedule)
        return found

    before = loss(script.Cosine()).mean()
    fitted = script.train(network, x, 300)
    under = {name: loss(schedule) for name, schedule in (("cosine", script.Cosine()), ("adaptive", fitted))}
    assert under["cosine"].mean() < 0.6 * before
    spread = sum(found.var() / len(x) for found in under.values()) ** 0.5
    assert abs(under["cosine"].mean() - under["adaptive"].mean()) < 4 * spread  # the same integral
    assert under["adaptive"].std() < 0.7 * under["cosine"].std()  # estimated better
    drawn = script.sample(network, torch.randn(64, 1, 8, 8), script.Cosine())
    assert (drawn.mean(0) - x.mean(0)).abs().mean() < 0.15
    assert capsys.readouterr().out.startswith("step 0: loss ")
