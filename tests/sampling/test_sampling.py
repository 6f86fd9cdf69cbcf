"""Drawings as their authors program them: ADM's and EDM's walks restated, their noise, roundings and clips; guidance, grids."""

import math

import identities
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from identities import betas

from elbocli.core.noise import STARTS, Noise
from elbocli.core.pixels import ROUNDINGS, SIGNED, to_levels
from elbocli.core.prediction import Prediction, alpha_sigma
from elbocli.core.schedule import parse_schedule
from elbocli.core.streams import Stream
from elbocli.errors import UsageError
from elbocli.files.schedule_file import resolve_schedule, to_text
from elbocli.runtime.device import Precision
from elbocli.sampling.denoiser import Denoiser
from elbocli.sampling.guidance import THRESHOLDS, Guidance
from elbocli.sampling.plan import Sampling
from elbocli.sampling.samplers import SAMPLERS, parse_sampler, walk
from elbocli.sampling.spacing import SPACINGS, logsnr_grid, schedule_of_levels, usual_spacing

LEVELS = {"linear": "t-linear", "cosine": "t-squaredcos"}

# ADM's diffusion by its papers (Dhariwal & Nichol 2021; Nichol & Dhariwal 2021): nothing of elbo is used


def subset(count, words):
    """Timesteps that `250` or `ddim25` takes of so many, rising."""
    if words.startswith("ddim"):
        wanted = int(words[4:])
        gap = next(gap for gap in range(1, count) if (count + gap - 1) // gap == wanted)
        return list(range(0, count, gap))
    wanted = int(words)
    at = 0.0
    found = []
    while len(found) < wanted:
        found.append(round(at))
        at += (count - 1) / (wanted - 1)
    return found


class Spaced:
    """The process of a subset of timesteps: betas such that its ᾱ are the original ones there."""

    def __init__(self, name, count, words):
        self.timesteps = subset(count, words)
        whole = np.cumprod(1 - betas(name, count))
        self.abar = whole[self.timesteps]
        before = np.append(1.0, self.abar[:-1])
        self.beta = 1 - self.abar / before
        self.before = before
        self.posterior = self.beta * (1 - before) / (1 - self.abar)
        self.smallest = np.log(np.append(self.posterior[1], self.posterior[1:]))
        self.largest = np.log(self.beta)

    def walk(self, network, z, noise, clip=False):
        """x from z at the last timestep. network(z, timestep) → (ε̂, v) with v ∈ [−1, 1]."""
        for i in reversed(range(len(self.beta))):
            eps, v = network(z, self.timesteps[i])
            x = (z - (1 - self.abar[i]) ** 0.5 * eps) / self.abar[i] ** 0.5
            x = x.clamp(-1, 1) if clip else x
            of_x = self.before[i] ** 0.5 * self.beta[i] / (1 - self.abar[i])
            of_z = (1 - self.before[i]) * (1 - self.beta[i]) ** 0.5 / (1 - self.abar[i])
            mean = of_x * x + of_z * z
            share = (v + 1) / 2
            log_variance = share * self.largest[i] + (1 - share) * self.smallest[i]
            z = mean if i == 0 else mean + (0.5 * log_variance).exp() * noise()
        return z


# Spacings


@pytest.mark.parametrize("words", ["250", "2", "1000", "ddim25", "ddim1000"])
@pytest.mark.parametrize("name", LEVELS)
def test_a_grid_has_adms_abar_at_every_step_and_ends_clean(name, words):
    steps = int(words.removeprefix("ddim"))
    spacing = SPACINGS["stride" if "ddim" in words else "timesteps"]
    grid = logsnr_grid(parse_schedule(LEVELS[name]), steps, spacing)
    abar = Spaced(name, 1000, words).abar[::-1]
    assert len(grid) == steps + 1 and grid[-1] == math.inf
    np.testing.assert_allclose(grid[:-1], np.log(abar) - np.log1p(-abar), rtol=0, atol=1e-11)


@given(st.integers(2, 3000), st.data())
def test_any_subset_is_adms(count, data):
    steps = data.draw(st.integers(2, count))
    schedule = parse_schedule(f"t-squaredcos:count={count}")
    numbers = np.interp(logsnr_grid(schedule, steps)[:-1], schedule.curve.level, np.arange(count)[::-1])  # type: ignore[attr-defined]
    assert numbers[::-1].round(6).tolist() == subset(count, str(steps))


def test_declared_timesteps_are_walked_as_adm_does_and_others_evenly(tmp_path):
    declared = parse_schedule("t-linear")
    config = tmp_path / "scheduler_config.json"
    config.write_text('{"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}')
    same = resolve_schedule(str(config))
    names = [usual_spacing(each).name for each in (declared, parse_schedule("cosine"), same)]
    assert names == ["timesteps", "even", "even"]
    assert logsnr_grid(same, 250, SPACINGS["timesteps"]) == logsnr_grid(declared, 250) != logsnr_grid(same, 250)


def test_only_timesteps_within_the_range_are_visited_and_a_shift_moves_them():
    whole = logsnr_grid(parse_schedule("t-linear"), 1000)
    cut = parse_schedule("t-linear", -5.0, 5.0)
    inside = [at for at in whole if -5 <= at <= 5]
    assert logsnr_grid(cut, len(inside))[:-1] == inside
    moved = logsnr_grid(parse_schedule("t-linear:shift=1"), 1000)
    np.testing.assert_allclose(moved[:-1], np.array(whole[:-1]) + 1, rtol=1e-14)
    assert logsnr_grid(parse_schedule("t-linear"), 1) == [whole[0], math.inf]


@pytest.mark.parametrize(
    ("schedule", "steps", "spacing", "word"),
    [("cosine", 10, "timesteps", "no timesteps"), ("t-linear", 1001, "timesteps", "1000"), ("t-linear", 300, "stride", "334")],
)
def test_timesteps_that_a_schedule_lacks_are_refused(schedule, steps, spacing, word):
    with pytest.raises(UsageError, match=word):
        logsnr_grid(parse_schedule(schedule), steps, SPACINGS[spacing])


# Walks


def draws(seed=0, size=(64,)):
    """Noise by torch's generator, float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("name", "steps", "clip"), [("linear", 250, "none"), ("cosine", 50, "static")])
def test_with_a_learned_variance_a_walk_is_adms(name, steps, clip):
    """A network of 2C channels, whose v goes beyond [−1, 1] as real ones do, through the denoiser that elbo draws with."""
    whole = np.cumprod(1 - betas(name, 1000))
    levels = np.log(whole / (1 - whole))

    def outputs(z, timestep):
        """ε̂ of data that are normal with variance .3, and a v that depends on everything."""
        abar = whole[timestep]
        eps = (1 - abar) ** 0.5 * z / (1 - abar + 0.3 * abar)
        return eps + 0.1 * (z.flip(-1) / 3).sin(), (3 * z.flip(-2) + timestep / 100).sin() * 1.3

    def network(z, logsnr, labels):
        return torch.cat(outputs(z, int(np.abs(levels - float(logsnr[0])).argmin())), 1)

    draw = draws(0, (2, 3, 4, 4))
    size = (2, 3, 4, 4)
    wanted = Spaced(name, 1000, str(steps)).walk(outputs, draw(), draw, clip == "static")
    sampler = parse_sampler("ddpm-learned")
    draw = draws(0, size)
    denoiser = Denoiser(network, Prediction("eps"), threshold=THRESHOLDS.parse(clip))
    grid = logsnr_grid(parse_schedule(LEVELS[name]), steps)
    found = walk(sampler, draw(), grid, denoiser.for_sampler(sampler), draw)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert denoiser.evaluations == steps
    with pytest.raises(UsageError):
        Denoiser(lambda z, *_: z, Prediction("eps")).with_variance(torch.zeros(1, 3, 2, 2), 0.0)


@pytest.mark.parametrize(("spec", "steps"), [("heun", 18), ("edm-imagenet64", 18), ("edm-imagenet64", 256)])
def test_from_its_own_start_a_walk_is_edms_to_rounding(mixture, spec, steps):
    def d(y, sigma):
        logsnr = -2 * math.log(sigma)
        return mixture.denoise(y * alpha_sigma(logsnr)[0], logsnr)

    sampler = parse_sampler(spec)
    draw = draws()
    grid = logsnr_grid(parse_schedule("edm-sample"), steps)
    wanted = identities.algorithm_2(d, draws(), steps, *[*sampler.params.values()][:4], edm2=True)
    found = walk(sampler, draw() * STARTS["edm"](grid[0]), grid, mixture.denoise, draw)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)
    assert STARTS["unit"](grid[0]) == 1


# Guidance


def test_guidance_is_dits_and_the_variance_is_the_one_with_the_class():
    """DiT guides ε̂ of the first three of four channels, and leaves the rest as the class has it."""
    z = draws(1, (2, 4, 3, 3))()
    tables = {label: draws(2 + label, (2, 8, 3, 3))() for label in (-1, 5)}
    prediction = Prediction("eps")
    labels = torch.tensor([5, 5])
    at = 0.7
    guided = Denoiser(lambda z, logsnr, labels: tables[int(labels[0])], prediction, Guidance(1.5, channels=3), labels)
    eps = tables[5][:, :4].clone()
    eps[:, :3] = tables[-1][:, :3] + 1.5 * (eps[:, :3] - tables[-1][:, :3])
    alpha, sigma = alpha_sigma(at)
    x_hat, gamma = guided.with_variance(z, at)
    np.testing.assert_allclose(x_hat, (z - sigma * eps) / alpha, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gamma, (tables[5][:, 4:] + 1) / 2, rtol=1e-14)
    assert guided.evaluations == 2
    np.testing.assert_allclose(guided(z, at), x_hat, rtol=1e-14)


@pytest.mark.parametrize(("logsnr", "active"), [(-3.1, False), (-3, True), (0, True), (4, True), (4.1, False)])
def test_guidance_acts_on_its_interval_ends_included_and_never_at_scale_one(logsnr, active):
    assert Guidance(2.0, -3.0, 4.0).active(logsnr) is Guidance(0.0, -3.0, 4.0).active(logsnr) is active
    assert not Guidance(1.0).active(logsnr) and Guidance(1.5).active(logsnr)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (math.nan, 1), (0, math.nan)])
def test_an_empty_interval_is_refused(low, high):
    with pytest.raises(UsageError):
        Guidance(2.0, low, high)


# Clips


def estimate(scale, seed=0):
    return scale * torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", THRESHOLDS)
@given(st.floats(0.01, 20))
def test_a_clip_leaves_its_input_alone_and_what_lies_inside_as_it_is(name, scale):
    x = estimate(scale)
    before = x.clone()
    inside = x / x.abs().max()
    clip = THRESHOLDS.parse(name)
    clip(x)
    assert torch.equal(x, before)
    assert torch.equal(clip(inside), inside)


@given(st.floats(0.01, 20))
def test_static_cuts_at_the_range_of_pixels(scale):
    x = estimate(scale)
    np.testing.assert_array_equal(THRESHOLDS.parse("static")(x), np.clip(x.numpy(), -1, 1))


@given(st.floats(0.5, 20), st.floats(1, 100))
def test_dynamic_is_imagens_thresholding_of_each_image(scale, percentile):
    """The percentile by numpy's definition of the nearest rank from above."""
    x = estimate(scale) * torch.tensor([0.01, 1.0, 3.0]).view(3, 1, 1, 1)
    found = THRESHOLDS.parse(f"dynamic:percentile={percentile}")(x)
    for image, cut in zip(x.numpy(), found.numpy()):
        s = max(1, np.quantile(np.abs(image), percentile / 100, method="inverted_cdf"))
        np.testing.assert_allclose(cut, np.clip(image, -s, s) / s, rtol=1e-12)


# Roundings


UNSIGNED = (255.0, 0.0)


PEERS = {
    # Levels of float32 pixels by numpy, in the order of operations of whoever publishes figures.
    ("edm", SIGNED): lambda x: np.clip(x * np.float32(127.5) + np.float32(128), 0, 255),
    ("adm", SIGNED): lambda x: np.clip((x + np.float32(1)) * np.float32(127.5), 0, 255),
    ("edm2", UNSIGNED): lambda x: np.clip(x, 0, 1) * np.float32(255),
    ("nearest", SIGNED): lambda x: np.clip(np.round((x + np.float32(1)) * np.float32(127.5)), 0, 255),
    ("nearest", UNSIGNED): lambda x: np.clip(np.round(x * np.float32(255)), 0, 255),
}


def around_boundaries(span):
    """Every level and every half, each with its nine nearest float32 numbers; and far beyond both ends."""
    divisor, offset = span
    at = (np.arange(-2, 514) / 2 / divisor + offset).astype(np.float32)
    found = [at]
    for way in (np.float32(-np.inf), np.float32(np.inf)):
        step = at
        for _ in range(4):
            step = np.nextafter(step, way)
            found.append(step)
    return np.concatenate([*found, np.array([-1e6, -3, 3, 1e6], np.float32)])


@pytest.mark.parametrize(("name", "span"), PEERS, ids=str)
def test_a_rounding_is_its_authors_at_every_boundary(name, span):
    x = around_boundaries(span)
    found = to_levels(torch.from_numpy(x).view(1, 1, 1, -1), ROUNDINGS.find(name), span)
    assert found.dtype == torch.uint8 and found.shape == (1, 1, len(x), 1)
    np.testing.assert_array_equal(found.flatten().numpy(), PEERS[name, span](x).astype(np.uint8))


@pytest.mark.parametrize("name", ROUNDINGS)
def test_pixels_are_left_as_they_were_and_channels_come_last(name):
    x = torch.rand(2, 3, 4, 5) * 2 - 1
    before = x.clone()
    flat = to_levels(x.view(1, 1, 1, -1), ROUNDINGS[name]).view(2, 3, 4, 5)
    assert torch.equal(to_levels(x, ROUNDINGS[name]), flat.permute(0, 2, 3, 1))
    assert torch.equal(x, before)


# Noise


# Grids


@pytest.mark.parametrize("count", [2, 3, 16])
def test_levels_come_back_from_a_file_as_they_were(count, tmp_path):
    levels = sorted((torch.rand(count, generator=torch.Generator().manual_seed(count)).double() * 19 - 9.7).tolist())
    file = tmp_path / "grid.yaml"
    file.write_text(to_text(schedule_of_levels(levels), grid="solver"))
    schedule = resolve_schedule(str(file), -10.0, 10.0, clip=True)
    assert logsnr_grid(schedule, count) == pytest.approx([*levels, math.inf], rel=0, abs=1e-12)


def test_an_image_has_the_noise_of_its_streams_in_any_batch():
    whole = Noise(5, (5, 4, 3), torch.device("cpu")).walk([2, 8])
    part = Noise(5, (5, 4, 3), torch.device("cpu")).walk([8])
    for call in (1, 2):
        drawn = whole()
        assert torch.equal(drawn, Stream(5, f"sample-{call}").noise([2, 8], (5, 4, 3)))
        assert torch.equal(drawn[1:], part())


@pytest.mark.parametrize("spec", SAMPLERS)
@pytest.mark.parametrize("interval", [(-math.inf, math.inf), (-2.0, 3.0)])
def test_a_plan_knows_how_often_it_asks_the_network(spec, interval):
    """Also the weak output of guidance, within the interval alone."""
    sampler = parse_sampler(spec)
    calls = []

    def network(z, logsnr, labels):
        calls.append(float(logsnr[0]))
        return torch.cat([z, z], 1) if sampler.learned else z

    where = Precision("fp32", torch.device("cpu"))
    schedule = parse_schedule("cosine", -10, 10)
    guidance = Guidance(2.0, *interval)
    plan = Sampling.on_schedule(sampler, schedule, Prediction("v"), where, 7, guidance=guidance)
    denoiser = Denoiser(network, Prediction("v"))
    drawn = plan.draw(denoiser, Noise(0, (4, 4, 2), where.device), range(3), torch.zeros(3, dtype=torch.long))
    assert drawn.shape == (3, 2, 4, 4) and len(calls) == plan.evaluations(guided=True)
    assert plan.steps == 7 and plan.evaluations(guided=False) == len(plan.evaluated)
    alone = plan.draw(denoiser, Noise(0, (4, 4, 2), where.device), [1], torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(alone[0], drawn[1])
