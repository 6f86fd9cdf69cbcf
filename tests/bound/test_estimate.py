"""The bound of a run: the same whatever the schedule, honest about its error, and the theorem it rests on."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from made_data import SPACE

from elbocli.bound import estimate, judge
from elbocli.bound.measure import ALL, Images, MeasuredNetwork, Measurement, open_measurement
from elbocli.bound.result import Bound, Theorem
from elbocli.core.adaptive import ErrorMoments, loss_variance
from elbocli.core.elbo import prior, reconstruction
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting
from elbocli.errors import DataError, NonFiniteError, UsageError
from elbocli.files.losslog import read_logs


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def probe(run: Path, data: Path | None = None, **settings: Any) -> Measurement:
    return open_measurement(run, data, **settings)


def bpd(run: Path, schedule: str = "", target_se: float | None = None, **settings: Any) -> Bound:
    """The bound; its JSON reads back as it was."""
    found: Bound = estimate.measure_bound(probe(run, **settings), schedule, target_se).bound
    assert Bound.of(json.loads(json.dumps(found.json(), allow_nan=False))) == found
    return found


@pytest.fixture(scope="module")
def long_run(trained: Path) -> float:
    """The bound on all 300 images, from 160 noise levels each."""
    return bpd(trained, images=ALL, draws=160, batch=2048, seed=999).bpd


@pytest.mark.slow
def test_intervals_hold_the_long_run_value(trained: Path, long_run: float) -> None:
    """40 seeds choose 60 of 300 images and 4 noise levels for each; 95 % intervals."""
    found = [bpd(trained, images=60, draws=4, seed=seed) for seed in range(40)]
    off = np.array([(f.bpd - long_run) / f.bpd_se for f in found])
    assert int((np.abs(off) < 1.96).sum()) >= 36
    assert 0.7 < off.std() < 1.4


@pytest.mark.slow
def test_intervals_of_the_noise_alone_are_honest_too(trained: Path, long_run: float) -> None:
    found = [bpd(trained, images=ALL, draws=2, seed=seed) for seed in range(40)]
    off = np.array([(f.bpd - long_run) / f.bpd_se for f in found])
    assert int((np.abs(off) < 1.96).sum()) >= 36
    assert all(f.bpd_se == f.bpd_se_noise <= f.bpd_se_population for f in found)


@pytest.mark.parametrize("schedule", ["uniform", "cosine", "fitted:std"])
def test_the_schedule_changes_the_error_only(trained: Path, long_run: float, schedule: str) -> None:
    found = bpd(trained, schedule, images=ALL, draws=8)
    assert abs(found.bpd - long_run) < 4 * found.bpd_se
    assert found.schedule == schedule


def test_the_batch_changes_nothing(trained: Path) -> None:
    few, many = (bpd(trained, images=30, draws=6, batch=batch) for batch in (4, 512))
    assert few.bpd == pytest.approx(many.bpd, rel=1e-5)
    assert few.bpd_se == pytest.approx(many.bpd_se, rel=1e-3)


def test_the_terms_add_up_to_the_bound(trained: Path) -> None:
    found = bpd(trained, images=50)
    for unit in ("nats", "bpd"):
        parts = sum(getattr(term, unit) for term in (found.prior, found.reconstruction, found.diffusion))
        assert parts == pytest.approx(getattr(found, unit), rel=1e-12)
    assert found.bpd * 64 * np.log(2) == pytest.approx(found.nats)


def test_prior_and_reconstruction_are_exact(trained: Path, digits: Path) -> None:
    with h5py.File(digits, "r", locking=False) as file:
        pixels = torch.from_numpy(file["images"][()]).long()
    found = bpd(trained, images=ALL, draws=2)
    x = (pixels.double() / 127.5 - 1).permute(0, 3, 1, 2)
    assert found.prior.nats == pytest.approx(float(prior(x, -10).mean()), rel=1e-6)
    wanted = float(reconstruction(10.0)[pixels].flatten(1).sum(1).mean())
    assert found.reconstruction.nats == pytest.approx(wanted, rel=1e-9)
    assert found.prior.nats_se == found.reconstruction.nats_se == 0


def test_the_curve_ends_at_the_bound_without_its_reconstruction(trained: Path) -> None:
    found = estimate.measure_bound(probe(trained, images=40))
    result, curve = found.bound, found
    assert float(curve.profile[-1]) == pytest.approx(result.prior.nats + result.diffusion.nats, rel=1e-12)
    assert bool((curve.profile.diff() >= 0).all()) and bool((curve.profile_se >= 0).all())
    lines = curve.tsv().splitlines()
    assert lines[0].split("\t")[:3] == ["logsnr_low", "logsnr_high", "draws"] and len(lines) == 101
    assert sum(float(line.split("\t")[2]) for line in lines[1:]) == 40 * 16


def test_drawing_goes_on_until_the_error_is_small_enough(trained: Path) -> None:
    """More images first, then more noise on all of them."""
    rough = bpd(trained, images=ALL, draws=2)
    some = bpd(trained, target_se=rough.bpd_se_population * 1.5, images=ALL, draws=2, batch=64)
    assert some.n_images < 300 and some.bpd_se < rough.bpd_se_population * 1.5
    fine = bpd(trained, target_se=rough.bpd_se / 2, images=ALL, draws=2)
    assert fine.n_images == 300 and fine.draws_per_image >= 6
    assert fine.bpd_se < rough.bpd_se / 2


def test_the_errors_can_be_kept_as_a_loss_log(trained: Path) -> None:
    asked = probe(trained, images=50)
    found = estimate.measure_bound(asked)
    log = read_logs([io.BytesIO(found.log_text(asked).encode())])
    assert torch.equal(log.sums, found.sums) and float(found.sums[0].sum()) == 800


@pytest.fixture(scope="module")
def logged(trained: Path) -> ErrorMoments:
    """Errors per λ of all images."""
    moments: ErrorMoments = estimate.measure_bound(probe(trained, images=ALL, draws=24, batch=2048)).moments
    return moments


@pytest.mark.parametrize("schedule", ["cosine", "edm", "uniform", "fitted:loss", "fitted:std"])
def test_the_variance_that_a_log_predicts_is_the_one_measured(
    trained: Path, logged: ErrorMoments, schedule: str
) -> None:
    """From the errors of one seed, for independent t, against the losses of another seed under each schedule."""
    asked = probe(trained, images=ALL, draws=24, batch=2048, seed=1)
    weighting = parse_weighting("sigmoid:bias=2")
    chosen = asked.schedule(schedule, weighting)
    loss = torch.cat([drawn.loss.flatten() for drawn in asked.draw_all(weighting, chosen, "variance")])
    predicted, _ = loss_variance(logged, weighting, chosen.density)
    assert predicted == pytest.approx(float(loss.var() / loss.mean().square()), rel=0.1)


# Anyone's denoiser


class Gaussian:
    """The exact denoiser of independent N(mean, scale²) numbers, as the network of an ε prediction."""

    mean, scale = 0.1, 0.3

    def __call__(self, z: torch.Tensor, logsnr: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is None and z.dtype == logsnr.dtype == torch.float32
        alpha, sigma = (signed.sigmoid().sqrt()[:, None, None, None] for signed in (logsnr, -logsnr))
        return sigma * (z - alpha * self.mean) / (sigma**2 + (alpha * self.scale) ** 2)


def images_of_a_gaussian(count: int) -> list[Images]:
    """4 x 4 pixels of 256 levels, in parts of unequal size."""
    draw = np.random.default_rng(0).normal(Gaussian.mean, Gaussian.scale, (count, 4, 4, 1))
    pixels = torch.from_numpy((127.5 * (draw + 1)).round().clip(0, 255).astype(np.uint8))
    rows = torch.arange(count).split(37)
    return [Images(pixels[part], None, part.tolist()) for part in rows]


def bound_of(images: Any, **options: Any) -> Bound:
    target_se = options.pop("target_se", None)
    denoiser = MeasuredNetwork(Gaussian(), Prediction("eps"), -12, 12, **options)
    return estimate.estimate_bound(denoiser, images, parse_schedule("uniform", -12, 12), target_se).bound


def test_the_bound_of_the_exact_denoiser_is_the_entropy_of_its_images() -> None:
    """−log₂ p of a level is −log₂ of the density times the width of a level, on average."""
    found = bound_of(images_of_a_gaussian(400), draws=64)
    entropy = 0.5 * np.log2(2 * np.pi * np.e * Gaussian.scale**2) + np.log2(127.5)
    assert abs(found.bpd - entropy) < 4 * found.bpd_se_population + 0.002
    assert found.n_images == 400 and found.about == {} and found.bpd_se == found.bpd_se_population


def test_the_parts_in_which_images_come_and_the_batch_change_nothing() -> None:
    parts = images_of_a_gaussian(80)
    pixels, rows = torch.cat([part.content for part in parts]), [row for part in parts for row in part.rows]
    whole = bound_of([Images(pixels, None, rows)])
    assert bound_of(iter(parts)).bpd == pytest.approx(whole.bpd, rel=1e-6)


def test_a_target_is_reached_by_more_noise_on_all_images() -> None:
    rough = bound_of(images_of_a_gaussian(80), population=80)
    assert bound_of(images_of_a_gaussian(80), population=80, target_se=0.9 * rough.bpd_se).draws_per_image > 16
    with pytest.raises(UsageError):
        bound_of([])


# What can't be asked


def test_latents_are_nothing_for_a_network_of_pixels(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "latents.h5"
    with h5py.File(path, "w") as file:
        file["latents"] = np.zeros((4, 8, 2, 2), np.float16)
        file["labels"] = np.zeros(4, np.int64)
        file.attrs.update({"format": "elbo-dataset", "version": 1, **SPACE.attributes()})
    with pytest.raises(UsageError):
        probe(trained, path)


@pytest.mark.parametrize("draws", [1, 5])
def test_draws_come_in_two_halves(trained: Path, draws: int) -> None:
    asked, plain = probe(trained, draws=draws), parse_weighting("elbo")
    with pytest.raises(UsageError):
        next(asked.draw_all(plain, asked.schedule("uniform", plain), "a test"))


def test_images_of_another_size_are_refused(trained: Path, digits_folder: Path, tmp_path: Path, elbo: Any) -> None:
    path = tmp_path / "other.h5"
    assert elbo("prep", digits_folder, path, "--size", 16, "--channels", 1).returncode == 0
    with pytest.raises(UsageError):
        probe(trained, path)


def test_a_dataset_that_has_changed_is_not_taken_for_the_runs_own(trained: Path, tmp_path: Path) -> None:
    text = (trained / "config.yaml").read_text()
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    digest = next(line for line in text.splitlines() if "payload_sha256" in line)
    (copy / "config.yaml").write_text(text.replace(digest, digest[: digest.index(":")] + ": 'abc'"))
    with pytest.raises(DataError):
        probe(copy)


def test_a_network_that_fails_is_not_averaged(trained: Path) -> None:
    asked = probe(trained, images=20)
    for parameter in asked.trained.network.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        estimate.measure_bound(asked)


# The theorem on a user's network


def test_both_sides_agree_and_say_how_well(trained: Path) -> None:
    specs = ["elbo", "sigmoid:bias=2", "edm-monotonic", "edm", "fm-ot"]
    asked = probe(trained, images=ALL, draws=32, batch=1024)
    found = judge.check_theorem(asked, [parse_weighting(spec) for spec in specs])
    assert found.agree
    for check, spec in zip(found.checks, specs, strict=True):
        assert abs(check.difference_in_se) <= 4
        assert 0 < check.left.relative_se < 0.01 and 0 < check.right.relative_se < 0.01
        assert check.monotone == (spec != "edm")
        told = check.json()
        assert ("p_w" in told) == ("augmented_elbo" in told) == check.monotone != ("signed_mass" in told)
    assert Theorem.of(json.loads(json.dumps(found.json(), allow_nan=False))) == found


def test_for_the_elbo_itself_the_augmented_data_is_the_data(trained: Path) -> None:
    """p_w is all at λmax, and both sides are the bound's diffusion term."""
    found = judge.check_theorem(probe(trained, images=ALL), [parse_weighting("elbo")]).checks[0]
    assert found.p_w.at_logsnr_max == 1 and not any(found.p_w.mass)
    plain = bpd(trained, images=ALL)
    wanted = plain.prior.nats + plain.diffusion.nats
    assert abs(found.augmented_elbo.nats - wanted) < 5 * (found.augmented_elbo.se + plain.nats_se)


def test_the_sides_are_drawn_apart(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two sweeps share their noise; another purpose gives other noise levels and other errors."""
    asked, purposes, whole = probe(trained, images=20), [], Measurement.draw_all

    def draw_all(self: Any, weighting: Any, schedule: Any, purpose: str) -> Any:
        purposes.append(purpose)
        return whole(self, weighting, schedule, purpose)

    monkeypatch.setattr(Measurement, "draw_all", draw_all)
    judge.check_theorem(asked, [parse_weighting(spec) for spec in ("elbo", "elbo", "edm")])
    assert len(purposes) == len(set(purposes)) == 4
    plain = parse_weighting("elbo")
    one, other = (next(whole(asked, plain, asked.schedule(), purpose)) for purpose in purposes[:2])
    assert float((one.logsnr == other.logsnr).double().mean()) < 0.01
    assert float((one.error == other.error).double().mean()) < 0.01
