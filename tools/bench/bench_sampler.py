"""What a sampler costs beside its network, batch 64 of 3x32x32, as `elbo sample` and its peers' own loops run it.

A network that returns its input as v, per evaluation over walks of 20 steps: without noise against diffusers, with noise
against drawing as much and calling the network as often. A preset's network: the share of a walk's time outside of it.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import diffusers
import torch
from compare import Row, compare

from elbocli.core.noise import Noise as SamplingNoise
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.streams import Stream
from elbocli.networks import build, config_of, place
from elbocli.runs.presets import load_preset
from elbocli.sampling.denoiser import Denoiser
from elbocli.sampling.samplers import parse_sampler, walk
from elbocli.sampling.spacing import logsnr_grid

STEPS = 20
SHAPE = (64, 3, 32, 32)
CPU = torch.device("cpu")
BOUND = 0.5
NOISY_BOUND = 1.3
SHARE = 0.02
NOISY_SHARE = 0.05  # numpy needs 2 ms for the noise of a step, and small32 50 ms on two cores
SCHEDULERS: dict[str, dict[str, dict[str, Any]]] = {
    "ddim": {"DDIMScheduler": {"clip_sample": False}, "EulerDiscreteScheduler": {}},  # elbo doesn't clip either
    "heun": {"HeunDiscreteScheduler": {}},
    "dpmpp-2m": {"DPMSolverMultistepScheduler": {}},
}
PREDICTION = Prediction("v")
"""One for all walks, as a run has."""
NOISY = ("ddpm", "dpmpp-2m-sde", "heun:s_churn=40")
LARGE = 2**22
"""Numbers of a tensor as networks have them: having freed one, the allocator keeps what smaller ones free."""
PRESET = "small32"
SIZES = {"image_size": SHAPE[2], "image_channels": SHAPE[1], "num_classes": 0}


class Same(torch.nn.Module):
    """Returns its input."""

    def forward(self, z: torch.Tensor, *_: Any) -> torch.Tensor:
        return z


class Noise:
    """The numbers that `elbo sample` draws, by this thread; and counts."""

    def __init__(self, n: int):
        self.n = n
        self.draws = 0

    def __call__(self) -> torch.Tensor:
        self.draws += 1
        _, channels, height, width = SHAPE
        return Stream(0, f"sample-{self.draws}").noise(range(self.n), (height, width, channels))


def ours(spec: str, z: torch.Tensor, network: torch.nn.Module, noise: Callable[[], torch.Tensor], steps: int = STEPS) -> int:
    """A walk; its evaluations."""
    denoiser = Denoiser(network, PREDICTION)
    sampler = parse_sampler(spec)
    grid = logsnr_grid(parse_schedule(sampler.grid, -12, 12, clip=True), steps)
    walk(sampler, z, grid, denoiser, noise)
    return denoiser.evaluations


def of_diffusers(name: str, options: dict[str, Any], z: torch.Tensor) -> Callable[[], int]:
    """A walk, which says its evaluations."""
    scheduler = getattr(diffusers, name)(prediction_type="v_prediction", **options)
    network = Same()

    def job(z: torch.Tensor = z) -> int:
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            z = scheduler.step(network(scheduler.scale_model_input(z, t), t), t, z).prev_sample
        return len(scheduler.timesteps)

    return job


def against_peers(name: str, z: torch.Tensor, rounds: int) -> Iterator[Row]:
    """One that draws no noise: a row for each peer."""
    peers = {f"diffusers {peer}": of_diffusers(peer, options, z) for peer, options in SCHEDULERS[name].items()}
    evaluations = ours(name, z, Same(), Noise(len(z)))
    for peer, job in peers.items():
        if job() != evaluations:
            raise RuntimeError(f"{name} and {peer} don't evaluate the network equally often")
        mine = lambda: ours(name, z, Same(), Noise(len(z)))  # noqa: E731
        yield compare(f"sampler, {name} / {peer}", mine, job, BOUND, rounds=rounds, per=evaluations)


def against_noise(spec: str, z: torch.Tensor, rounds: int) -> Row:
    """One that draws noise, against nothing but the noise and the network."""
    noise = Noise(len(z))
    network = Same()
    level = torch.zeros(len(z))
    evaluations = ours(spec, z, network, noise)
    draws = noise.draws

    def least() -> None:
        noise = Noise(len(z))
        for _ in range(draws):
            noise()
        for _ in range(evaluations):
            network(z, level)

    mine = lambda: ours(spec, z, network, Noise(len(z)))  # noqa: E731
    return compare(f"sampler, {spec} / noise", mine, least, NOISY_BOUND, rounds=rounds, per=evaluations)


def share(spec: str, z: torch.Tensor, network: torch.nn.Module, small: bool) -> Row:
    """ours: seconds of a walk outside the network, with noise as `elbo sample` draws it; peer: all of it."""
    inside = 0.0

    def timed(*given: Any) -> torch.Tensor:
        nonlocal inside
        start = time.perf_counter()
        out: torch.Tensor = network(*given)
        inside += time.perf_counter() - start
        return out

    wrapped = Same()
    wrapped.forward = timed  # type: ignore[assignment, method-assign]
    pairs = []
    for _ in range(1 if small else 3):
        inside = 0.0
        start = time.perf_counter()
        drawn = SamplingNoise(0, (*SHAPE[2:], SHAPE[1]), CPU).walk(range(len(z)))
        ours(spec, z, wrapped, drawn, steps=2 if small else STEPS)
        total = time.perf_counter() - start
        pairs.append((total - inside, total))
    mine, whole = (median(side) for side in zip(*pairs))
    bound = NOISY_SHARE if spec in NOISY else SHARE
    return Row(f"sampler, {spec} / walk with {PRESET}", mine, whole, median(a / b for a, b in pairs), bound)


def rows(small: bool) -> Iterator[Row]:
    """Yield every sampler, both ways."""
    torch.empty(LARGE).fill_(0)
    z = Noise(2 if small else SHAPE[0])()
    with torch.inference_mode():
        for name in SCHEDULERS:
            yield from against_peers(name, z.contiguous(), 1 if small else 60)
        for spec in NOISY:
            yield against_noise(spec, z, 1 if small else 20)
        network = build(config_of({**load_preset(PRESET).network, **SIZES}, PRESET))
        network = place(network, torch.device("cpu")).eval()
        for spec in (*SCHEDULERS, *NOISY):
            yield share(spec, z, network, small)
