"""The data's Gaussian: its integral is the sum of the errors, its likelihood the density's."""

import math

import pytest
import torch

from elbocli.core.elbo import GaussianModel, fit_gaussian, rows_to_fit


def correlated(count: int, dimensions: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    turn = torch.randn(dimensions, dimensions, generator=random, dtype=torch.float64)
    return 0.3 + torch.randn(count, dimensions, generator=random, dtype=torch.float64) @ turn / dimensions


@pytest.mark.parametrize("kept", [5, 3, 0])
def test_the_closed_integral_is_that_of_the_expected_error(kept: int) -> None:
    """By the trapezoid rule; also where some directions share a variance."""
    x = correlated(40, 5)
    whole = fit_gaussian(x)
    model = GaussianModel(whole.mean, whole.directions[:, :kept], whole.variances[:kept], 0.02)
    levels = torch.linspace(-30, 6, 4001, dtype=torch.float64)
    some = x[:3]
    expected = torch.stack([model.errors(some, torch.zeros_like(some), levels[k].expand(3))[1] for k in range(4001)])
    wanted = 0.5 * torch.trapezoid(expected, levels, dim=0)
    assert model.upto(some, levels[-1:])[:, 0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kept", [4, 2])
def test_the_error_is_that_of_the_exact_denoiser(kept: int) -> None:
    """ε̂ = σ (α²Σ + σ²)⁻¹ (z − αμ), solved as a matrix; and its mean over the noise is the expectation."""
    x = correlated(60, 4)
    whole = fit_gaussian(x)
    model = GaussianModel(whole.mean, whole.directions[:, :kept], whole.variances[:kept], 0.3)
    covariance = model.directions @ (model.variances - model.rest).diag() @ model.directions.T
    covariance += model.rest * torch.eye(4, dtype=torch.float64)
    for level in (-6.0, 0.0, 5.0):
        logsnr = torch.tensor(level, dtype=torch.float64)
        alpha, sigma = logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()
        eps = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        z = alpha * x + sigma * eps
        inverse = torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(4, dtype=torch.float64))
        wanted = (eps - sigma * (z - alpha * model.mean) @ inverse).square().sum(1)
        found, _ = model.errors(x, eps, logsnr.expand(60))
        assert found == pytest.approx(wanted, rel=1e-9)
    many = torch.randn(20000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found, expected = model.errors(x[:1].expand(20000, 4), many, torch.zeros(20000, dtype=torch.float64))
    assert float(found.mean()) == pytest.approx(float(expected[0]), abs=4 * float(found.std()) / math.sqrt(20000))


def test_the_likelihood_is_the_density() -> None:
    x = correlated(50, 6)
    model = fit_gaussian(x)
    covariance = model.directions @ model.variances.diag() @ model.directions.T
    wanted = -torch.distributions.MultivariateNormal(model.mean, covariance).log_prob(x)
    assert model.nats(x) == pytest.approx(wanted, rel=1e-9)


def test_the_integral_up_to_clean_data_is_the_likelihood_less_the_decoders_part() -> None:
    """½ ∫_{−∞}^λ E dλ + ½ D log(2πe e^{−λ}) → −log p(x) as λ grows."""
    x = correlated(50, 3)
    model, high = fit_gaussian(x), torch.tensor([30.0])
    assert model.upto(x, high)[:, 0] + 1.5 * (math.log(2 * math.pi * math.e) - 30) == pytest.approx(
        model.nats(x), abs=1e-6
    )


def test_few_images_in_many_dimensions_make_one_that_is_sound() -> None:
    """Both ways of solving agree, no variance is zero, and constant images are no error."""
    few = correlated(5, 12)
    model = fit_gaussian(few)
    covariance = model.directions @ (model.variances - model.rest).diag() @ model.directions.T
    covariance += model.rest * torch.eye(12, dtype=torch.float64)
    assert model.others == 8 and float(torch.linalg.eigvalsh(covariance).min()) > 0
    away = few - few.mean(0)
    assert float(covariance.trace()) == pytest.approx(float(away.square().sum() / 5), rel=1e-9)
    assert bool(fit_gaussian(torch.zeros(4, 3)).nats(torch.zeros(1, 3)).isfinite().all())


def test_so_many_images_as_the_memory_holds() -> None:
    assert rows_to_fit(300, 64) == 300 and rows_to_fit(10**6, 64) == 4096
    assert rows_to_fit(10**6, 3 * 64 * 64) * 3 * 64 * 64 <= 1 << 24
