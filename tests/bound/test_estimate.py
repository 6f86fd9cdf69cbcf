"""Estimates of −log p: exact for exact denoisers, with intervals that cover, the same for any schedule and batch."""

import io
import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from identities import Levels, Mixture
from torch import Tensor

from elbocli.bound import estimate
from elbocli.bound.measure import Measurement, open_measurement
from elbocli.bound.ode import ESTIMATORS
from elbocli.bound.result import Bound, FlowLikelihood
from elbocli.bound.settings import BoundSettings
from elbocli.core.adaptive import ErrorMoments, loss_variance
from elbocli.core.elbo import prior, reconstruction
from elbocli.core.objective import Objective
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting
from elbocli.errors import NonFiniteError, UsageError
from elbocli.files.losslog import read_losslog
from elbocli.runs.examples import ImageBatch
from elbocli.runtime.device import Precision

LOW = -12.0
HIGH = 13.0
NORMAL = Mixture([1.0], [0.4], [0.6])
MIXED = Mixture([0.3, 0.7], [-1.0, 0.5], [0.2, 0.3])
SHARES = torch.linspace(-2, 2, 256, dtype=torch.float64).square().neg().exp()
TOY = Levels(SHARES / SHARES.sum())
FP32 = Precision("fp32", torch.device("cpu"))


def measured(
    network: Any, images: list[ImageBatch], count: float, high: float = HIGH, draws: int = 16, seed: int = 0
) -> Measurement:
    how: Any = {"batch_size": 4096, "draws": draws, "seed": seed, "population": count}
    return Measurement(network, Prediction("eps"), LOW, high, FP32, images, **how)


def images_of(content: Tensor, size: int = 1000) -> list[ImageBatch]:
    """In parts of so many."""
    return [ImageBatch(content[rows], None, rows.tolist()) for rows in torch.arange(len(content)).split(size)]


def bound_of(
    network: Any, images: list[ImageBatch], schedule: str = "uniform", population: float = math.inf, **how: Any
) -> Bound:
    asked = measured(network, images, population, **how)
    return estimate.estimate_bound(asked, parse_schedule(schedule, LOW, asked.high)).bound


# Exact denoisers


def by_ode(network: Any, content: Tensor, spec: str = "ode", **how: Any) -> FlowLikelihood:
    return ESTIMATORS.parse(spec)(measured(network, images_of(content), len(content), **how))


@pytest.mark.parametrize("data", [NORMAL, MIXED, TOY], ids=["normal", "mixture", "levels"])
def test_both_estimates_agree_with_the_exact_likelihood(data):
    content = data.draw(60, 2, 1, 1) if data is TOY else data.draw(60, 1, 2, 1)
    exact = float(data.nats(content).mean())
    bound = bound_of(data, images_of(content), population=60, draws=32)
    flow = by_ode(data, content, draws=32)
    for each in (bound, flow):
        assert abs(each.nats - exact) < 4 * each.nats_se + 2e-4, each
    assert sum(flow.terms.values()) == pytest.approx(flow.nats, rel=1e-9)
    assert flow.nats_se == pytest.approx(np.hypot(flow.nats_se_noise, flow.solver_nats), rel=1e-9)
    assert flow.nats_se_noise < 0.2 * bound.nats_se
    assert FlowLikelihood.of(json.loads(json.dumps(flow.json(), allow_nan=False))) == flow


@pytest.mark.parametrize("data", [MIXED, TOY], ids=["mixture", "levels"])
def test_intervals_hold_the_exact_value(data):
    """20 seeds of the noise, 95 % intervals; the flow's in few steps, too."""
    content = data.draw(40, 1, 1, 1)
    exact = float(data.nats(content).mean())
    hits = [0, 0]
    for seed in range(20):
        bound = bound_of(data, images_of(content), population=40, draws=8, seed=seed)
        flow = by_ode(data, content, "ode:steps=16", draws=8, seed=seed)
        for number, each in enumerate((bound, flow)):
            hits[number] += abs(each.nats - exact) < 1.96 * each.nats_se
    assert min(hits) >= 17, hits


def test_the_ode_counts_its_network_evaluations():
    """The solver's error, from the first images in half the steps, comes on top."""
    calls = list[int]()
    found = by_ode(lambda z, *at: calls.append(len(z)) or NORMAL(z, *at), NORMAL.draw(5, 1, 2, 1), "ode:steps=4,draws=6")
    assert sum(calls) == 5 * found.evaluations * 1.5


@pytest.mark.parametrize("count", [150, 40])
def test_intervals_hold_the_value_of_all_images_where_some_are_chosen(count):
    """40 seeds choose 40 of 150 images, or take all 150; with all of them, only the noise makes the estimate uncertain."""
    content = TOY.draw(150, 2, 1, 1)
    exact = float(TOY.nats(content).mean())
    off = []
    for seed in range(40):
        rows = torch.randperm(150, generator=torch.Generator().manual_seed(seed))[:count]
        found = bound_of(TOY, [ImageBatch(content[rows], None, rows.tolist())], population=150, draws=16, seed=seed)
        off.append((found.nats - exact) / found.nats_se)
        assert found.bpd_se_noise <= found.bpd_se <= found.bpd_se_population
        assert count == 40 or found.bpd_se == found.bpd_se_noise
    assert int((np.abs(off) < 1.96).sum()) >= 35 and 0.7 < np.std(off) < 1.4


@pytest.mark.parametrize(
    ("of", "network"),
    [((0.4, 0.6), (0.4, 0.6)), ((0.4, 0.6), (-1.0, 2.5)), ((0.4, 0.6), (0.0, 0.05)), ((0.0, 0.05), (0.0, 0.05))],
)
def test_of_latents_it_is_the_cross_entropy_with_the_density_of_an_exact_denoiser(of, network):
    """−log p(x) for every x; of concentrated latents it is negative, since a density may exceed 1."""
    x = of[0] + of[1] * torch.randn(150, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    mean, std = network
    found = bound_of(Mixture([1.0], [mean], [std]), images_of(x), population=150, high=16.0, draws=64)
    exact = float(-torch.distributions.Normal(mean, std).log_prob(x.double()).mean())
    value, se = found.per_dimension
    assert abs(value - exact) < 4 * se + 1e-3 * abs(exact) and se < 0.05 * abs(exact)
    assert found.nats == pytest.approx(36 * value) and (exact < 0) == (of == (0.0, 0.05))
    assert found.reconstruction.nats == pytest.approx(36 * 0.5 * math.log(2 * math.pi * math.e * math.exp(-16)))
    told = json.dumps(found.json())
    assert Bound.of(json.loads(told)) == found and "bpd" not in told


@pytest.mark.parametrize("schedule", ["uniform", "cosine"])
def test_of_pixels_it_is_the_entropy_in_bits(schedule):
    """−log₂ p of a level is −log₂ of the density times the width of a level, on average."""
    levels = (127.5 * (Mixture([1.0], [0.1], [0.3]).draw(400, 4, 4, 1) + 1)).round().clamp(0, 255).byte()
    network = Mixture([1.0], [0.1], [0.3])
    how = {"high": 12.0, "draws": 64}
    found = bound_of(network, images_of(levels, 37), schedule, **how)
    entropy = 0.5 * np.log2(2 * np.pi * np.e * 0.3**2) + np.log2(127.5)
    assert abs(found.bpd - entropy) < 4 * found.bpd_se_population + 0.002
    assert found.n_images == 400 and found.about == {} and found.bpd_se == found.bpd_se_population
    assert found.bpd == pytest.approx(bound_of(network, images_of(levels), schedule, **how).bpd)


def test_fewer_than_two_images_or_draws_and_odd_ones_are_refused():
    for count, draws in ((0, 2), (1, 2), (4, 1), (4, 5)):
        with pytest.raises(UsageError):
            bound_of(NORMAL, images_of(NORMAL.draw(count, 1, 1, 1)) if count else [], draws=draws)


# A run


def bpd(run: Path, schedule: str = "", **settings: Any) -> Bound:
    """The bound; its JSON reads back as it was."""
    asked = open_measurement(run, None, BoundSettings(**settings))
    chosen = parse_schedule(schedule, asked.low, asked.high) if schedule else asked.schedule()
    found: Bound = estimate.estimate_bound(asked, chosen).bound
    assert Bound.of(json.loads(json.dumps(found.json(), allow_nan=False))) == found
    return found


def test_schedules_and_batches_change_the_error_only(trained):
    first, *others = (bpd(trained, spec, images=100, draws=8) for spec in ("uniform", "cosine", ""))
    for other in others:
        assert 0 < abs(other.bpd - first.bpd) < 4 * np.hypot(first.bpd_se_noise, other.bpd_se_noise)
    assert others[1].schedule == "fitted:second-moment"
    few, many = (bpd(trained, images=30, draws=6, batch_size=batch) for batch in (4, 512))
    assert few.bpd == pytest.approx(many.bpd, rel=1e-5)
    assert few.bpd_se == pytest.approx(many.bpd_se, rel=1e-3)


def test_the_terms_add_up_and_prior_and_reconstruction_are_exact(trained, digits):
    with h5py.File(digits, "r", locking=False) as file:
        pixels = torch.from_numpy(file["images"][()]).long()
    found = bpd(trained, draws=2)
    for unit in ("nats", "bpd"):
        parts = sum(getattr(term, unit) for term in (found.prior, found.reconstruction, found.diffusion))
        assert parts == pytest.approx(getattr(found, unit), rel=1e-12)
    assert found.bpd * 64 * np.log(2) == pytest.approx(found.nats)
    x = (pixels.double() / 127.5 - 1).permute(0, 3, 1, 2)
    assert found.prior.nats == pytest.approx(float(prior(x, -10).mean()), rel=1e-6)
    wanted = float(reconstruction(10.0)[pixels].flatten(1).sum(1).mean())
    assert found.reconstruction.nats == pytest.approx(wanted, rel=1e-9)
    assert found.prior.nats_se == found.reconstruction.nats_se == 0


def test_the_curve_ends_at_the_bound_and_the_log_has_its_draws(trained):
    asked = open_measurement(trained, None, BoundSettings(images=40))
    found = estimate.measure_bound(asked)
    result = found.bound
    assert float(found.profile[-1]) == pytest.approx(result.prior.nats + result.diffusion.nats, rel=1e-12)
    assert bool((found.profile.diff() >= 0).all()) and bool((found.profile_se >= 0).all())
    head, *lines = (line.split("\t") for line in found.tsv().splitlines())
    assert head[:3] == ["logsnr_low", "logsnr_high", "draws"] and len(lines) == 100
    assert sum(float(line[2]) for line in lines) == 40 * 16
    assert torch.equal(read_losslog(io.BytesIO(found.log_text(asked).encode())).sums, found.sums)


@pytest.fixture(scope="module")
def logged(trained: Path) -> ErrorMoments:
    """Errors of all images by one seed."""
    return estimate.measure_bound(open_measurement(trained, None, BoundSettings(draws=24, batch_size=2048))).moments


@pytest.mark.parametrize("schedule", ["cosine", "edm", ""])
def test_the_variance_that_a_log_predicts_is_the_one_measured(trained, logged, schedule):
    """From the errors of one seed, for independent t, against the losses of another seed."""
    other = open_measurement(trained, None, BoundSettings(draws=24, batch_size=2048, seed=1))
    weighting = parse_weighting("sigmoid:bias=2")
    chosen = parse_schedule(schedule, other.low, other.high) if schedule else other.schedule(weighting)
    loss = torch.cat(
        [drawn.loss.flatten() for drawn in other.draw_all(Objective(weighting, chosen, other.prediction), "variance")]
    )
    predicted, _ = loss_variance(logged, weighting, chosen.density)
    assert predicted == pytest.approx(float(loss.var() / loss.mean().square()), rel=0.1)


def test_a_network_that_fails_is_not_averaged(trained):
    asked = open_measurement(trained, None, BoundSettings(images=20))
    for parameter in asked.trained.network.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        estimate.measure_bound(asked)
