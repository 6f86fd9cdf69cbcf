"""The probability-flow equation as a density: exact for exact denoisers, of its sampler's order, with an unbiased trace."""

import math

import pytest
import torch
from exact import Mixture

from elbocli.core.elbo import log_density, with_trace
from elbocli.core.streams import Stream

LOW, HIGH = -14.0, 6.0
MIXED = Mixture([0.3, 0.7], [-1.0, 0.5], [0.2, 0.3])


def x_hat(z: torch.Tensor, logsnr: float) -> torch.Tensor:
    """The mixture's exact estimate of the data."""
    level = torch.tensor([logsnr], dtype=torch.float64)
    alpha, sigma = level.sigmoid().sqrt(), (-level).sigmoid().sqrt()
    return (z - sigma * MIXED(z, level.expand(len(z)), None)) / alpha


def noisy_log_p(z: torch.Tensor) -> torch.Tensor:
    """log of the density of z = αx + σε at HIGH."""
    level = torch.tensor(HIGH, dtype=torch.float64)
    alpha2, sigma2 = level.sigmoid(), (-level).sigmoid()
    spread = (alpha2 * MIXED.stds**2 + sigma2).sqrt()
    away = (z[..., None] - alpha2.sqrt() * MIXED.means) / spread
    log_p = MIXED.shares.log() - 0.5 * away**2 - spread.log() - 0.5 * math.log(2 * math.pi)
    return log_p.logsumexp(-1).flatten(1).sum(1)


def test_the_density_is_exact_and_comes_right_with_the_order_of_the_sampler() -> None:
    z = MIXED.draw(20, 2, 1).double()
    exact = noisy_log_p(z)
    for sampler, order in (("heun", 2), ("ddim", 1)):
        coarse, fine = (
            (log_density(z, with_trace(x_hat, None), HIGH, LOW, steps, sampler) - exact).abs().mean()
            for steps in (64, 128)
        )
        assert float((coarse / fine).log2()) == pytest.approx(order, abs=0.3)
        assert float(fine) < 0.05 if order == 2 else 1


def test_random_signs_are_unbiased_for_the_trace() -> None:
    """x̂ = z A: the trace is A's, and the variance of one probe twice the squares off the diagonal of A's even part."""
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, generator=random, dtype=torch.float64)
    count = 4000
    signs = Stream(0, "signs").signs(range(count), (6,)).double()
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 0.03
    assert torch.equal(Stream(0, "signs").signs([7, 3], (6,)).double(), signs[[7, 3]])
    z = torch.zeros(count, 6, dtype=torch.float64)
    one = with_trace(lambda at, level: at @ matrix, [signs])(z, 0.0)[1]
    exact = with_trace(lambda at, level: at @ matrix, None)(z[:2], 0.0)[1]
    assert exact.tolist() == pytest.approx([float(matrix.trace())] * 2)
    assert float(one.mean()) == pytest.approx(float(exact[0]), abs=4 * float(one.std()) / math.sqrt(count))
    even = 0.5 * (matrix + matrix.T)
    wanted = 2 * float(even.square().sum() - even.diagonal().square().sum())
    assert float(one.var()) == pytest.approx(wanted, rel=0.1)
    more = with_trace(lambda at, level: at @ matrix, [signs[:100], signs[100:200]])(z[:100], 0.0)[1]
    assert more.tolist() == pytest.approx(((one[:100] + one[100:200]) / 2).tolist())
