"""The Python API: weightings, schedules, a loss for any network in anyone's loop, samplers, the bound, runs.

`import elbocli` gives these names, and imports nothing heavy until one of them is used. docs/python.md shows them at work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.draws import Images, MeasuredNetwork
from elbocli.bound.estimate import estimate_bound
from elbocli.bound.result import Bound
from elbocli.core.adaptive import AdaptiveSchedule, BinSums, bin_edges, check_floor
from elbocli.core.clipping import parse_clip
from elbocli.core.guidance import Guidance
from elbocli.core.loss import denoising_losses, step_coefficients
from elbocli.core.prediction import Prediction
from elbocli.core.samplers.walk import Sampler, parse_sampler, time_grid, walk
from elbocli.core.schedule import Schedule, check_range
from elbocli.core.spacing import SPACINGS
from elbocli.core.start import STARTS
from elbocli.core.streams import Stream, times
from elbocli.core.uncertainty import followed, uniform_for
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.nn.denoiser import Denoiser
from elbocli.run.open import TrainedRun
from elbocli.runtime.device import Precision, choose_device, sent

Network = Callable[[Tensor, Tensor, Any], Tensor]
"""(z [B, …], logsnr [B], labels) → out [B, …]: any module or function. z is noised data, times the prediction's c_in."""


def weighting(spec: str, *, shift: float = 0.0, monotone: bool = False, size: int | None = None) -> Weighting:
    """w(λ) of a SPEC, as `elbo train --weighting` takes it: `sigmoid:bias=2`, `edm:monotone`, `v-mse@cosine`.

    shift: w(λ) → w(λ − shift). monotone: held constant left of its peak. size: of the images in pixels, for a schedule
    within the spec that depends on it. Raises UsageError for an unknown name or parameter, FormatError for a bad file.
    Source: Kingma & Gao 2023.
    """
    return resolve_weighting(spec, shift=shift, monotone=monotone, size=size)


def schedule(
    spec: str, logsnr_min: float | None = None, logsnr_max: float | None = None, *, size: int | None = None
) -> Schedule:
    """λ(t) of a SPEC or of a file that `elbo adapt` wrote, truncated to [logsnr_min, logsnr_max].

    None leaves that end where the schedule has it. size: of the images in pixels, for schedules that depend on it.
    Raises UsageError, FormatError.
    """
    return resolve_schedule(spec, logsnr_min, logsnr_max, size=size)


def prediction(spec: str) -> Prediction:
    """The prediction of a SPEC, which says what a network outputs: `eps`, `x`, `v`, `u`, `edm:sigma_data=0.5`. Raises UsageError."""
    return Prediction.parse(spec)


def sampler(spec: str) -> Sampler:
    """A sampler as `elbo sample --sampler` takes it: `ddpm`, `heun:s_churn=40`, `dpmpp-2m`. Raises UsageError."""
    return parse_sampler(spec)


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch, a number per example: [B] each, on the device of the batch.

    loss: ½ (w/p) ‖ε−ε̂‖²/D in nats per dimension, to be averaged and differentiated. eps_mse: ‖ε−ε̂‖²/D, unweighted and
    without gradient. logsnr: the λ that each example was shown at.
    """

    loss: Tensor
    eps_mse: Tensor
    logsnr: Tensor


class DiffusionLoss:
    """The weighted loss L_w of any network, sampled under any schedule: what `elbo train` minimises, for one's own loop.

    weighting, schedule, prediction: objects, or SPECs; the schedule may be "adaptive". logsnr_min, logsnr_max: the range
    of λ; those of a Schedule object if it is one. floor: least density of an adaptive schedule, as a share of uniform.
    seed: times and noise are functions of it and of how many images came before. rank, ranks: this process of how many,
    each with batches of the same size; together they draw a batch of low-discrepancy times.
    Raises UsageError. Source: Kingma & Gao 2023, the weighted loss, importance-sampled by the schedule.
    """

    def __init__(
        self,
        weighting: Weighting | str = "sigmoid:bias=2",
        schedule: Schedule | str = "cosine",
        prediction: Prediction | str = "v",
        *,
        logsnr_min: float = -15.0,
        logsnr_max: float = 15.0,
        floor: float = 0.01,
        t_sampling: str = "low-discrepancy",
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.weighting = resolve_weighting(weighting) if isinstance(weighting, str) else weighting
        self.prediction = Prediction.parse(prediction) if isinstance(prediction, str) else prediction
        if not isinstance(schedule, str):
            logsnr_min, logsnr_max = schedule.logsnr_min, schedule.logsnr_max
        check_range(logsnr_min, logsnr_max)
        check_floor(floor)
        if not 0 <= rank < ranks:
            raise UsageError(f"rank {rank} of {ranks} ranks; it must be at least 0 and below their number")
        self.logsnr_min, self.logsnr_max, self.floor = logsnr_min, logsnr_max, floor
        self.edges = bin_edges(logsnr_min, logsnr_max)
        if adapts := schedule == "adaptive":
            schedule = uniform_for(self.weighting)
        self.schedule = resolve_schedule(schedule, logsnr_min, logsnr_max) if isinstance(schedule, str) else schedule
        self.adaptive = AdaptiveSchedule(self.edges) if adapts or self.weighting.learned else None
        self._follow()
        self.t_sampling, self.rank, self.ranks, self.step, self.images = t_sampling, rank, ranks, 0, 0
        self._t, self._noise = Stream(seed, "t"), Stream(seed, "noise")
        self._sums: BinSums | None = None

    def __call__(self, network: Network, x: Tensor, labels: Any = None, *, eps: Tensor | None = None) -> LossTerms:
        """Show the network a batch at one λ for each example, and score what it says.

        x: [B, …] float32, data scaled to about [−1, 1]. labels: handed to the network as they are. eps: noise shaped
        like x, drawn here unless given. Counts a step; the errors are remembered for `take_sums`.
        """
        size, first = len(x), self.rank * len(x)
        t = times(self._t, self.step, size * self.ranks, self.t_sampling)[first : first + size]
        logsnr = self.schedule.logsnr(t)
        if eps is None:
            places = range(self.images + first, self.images + first + size)
            eps = sent(self._noise.normal(places, (*x.shape[2:], x.shape[1])), x.device).movedim(-1, 1)
        send = partial(sent, device=x.device)
        c = step_coefficients(logsnr, self.weighting, self.schedule, self.prediction, send, dimensions=x.dim() - 1)
        loss, error = denoising_losses(network, x, eps, labels, c)
        if self._sums is None:
            self._sums = BinSums(self.logsnr_min, self.logsnr_max, device=x.device)
        self._sums.add(c.logsnr, error)
        self.step, self.images = self.step + 1, self.images + size * self.ranks
        return LossTerms(loss, error, c.logsnr)

    def take_sums(self) -> Tensor:
        """[3, bins] float64 on the CPU: count, sum and sum of squares of eps_mse in each bin of λ since the last call.

        Each process has its own: add them up (`torch.distributed.all_reduce`) before they are logged or adapted to.
        Waits for the device.
        """
        if self._sums is None:
            return torch.zeros(3, len(self.edges) - 1, dtype=torch.float64)
        return self._sums.take()

    def adapt(self, sums: Tensor) -> None:
        """Let an adaptive schedule or a learned weighting follow the errors that `take_sums` gave; else change nothing."""
        if self.adaptive is not None:
            self.adaptive.update(sums)
        self._follow()

    def _follow(self) -> None:
        now = self.weighting, self.schedule, self.prediction, self.floor
        self.weighting, self.schedule = followed(self.adaptive, *now)

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint needs to go on as if nothing had happened. Take the sums before, or they are lost."""
        state = None if self.adaptive is None else self.adaptive.state.clone()
        return {"step": self.step, "images": self.images, "adaptive": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`. Raises KeyError when it is none."""
        self.step, self.images = state["step"], state["images"]
        if self.adaptive is not None:
            self.adaptive.state.copy_(state["adaptive"])
        self._follow()


@torch.inference_mode()
def draw(
    network: Network,
    prediction: Prediction | str,
    shape: tuple[int, ...],
    n: int,
    *,
    labels: Tensor | None = None,
    sampler: Sampler | str = "ddpm",
    steps: int | None = None,
    schedule: Schedule | str | None = None,
    logsnr_min: float = -15.0,
    logsnr_max: float = 15.0,
    guidance: float = 1.0,
    spacing: str = "",
    start: str = "unit",
    clip: str = "none",
    seed: int = 0,
    batch: int = 64,
    device: torch.device | str = "auto",
    precision: str = "fp32",
) -> Tensor:
    """Draw n examples [n, *shape] float32 from a trained network: example i is a function of the seed and i alone.

    shape: (channels, height, width), or any other. labels: [n], −1 being no class, which guidance other than 1 needs the
    network to know. steps, schedule: the sampler's usual ones unless given; a Schedule object brings its own range.
    spacing: the schedule's usual one unless given. start: `unit` noise, or `edm`. precision: fp32, which is strict; tf32,
    bf16 or fp16. A CUDA device becomes the current one. The network should be in eval mode. Raises UsageError.
    """
    chosen = parse_sampler(sampler) if isinstance(sampler, str) else sampler
    what = Prediction.parse(prediction) if isinstance(prediction, str) else prediction
    if schedule is None or isinstance(schedule, str):
        schedule = resolve_schedule(schedule or chosen.usual.grid, logsnr_min, logsnr_max, clip=True)
    spaced = SPACINGS.parse(spacing) if spacing else None
    grid, place = time_grid(schedule, steps or chosen.usual.steps, spaced), choose_device(str(device))
    scale = STARTS.parse(start)(grid[0])
    if labels is not None and len(labels) != n:
        raise UsageError(f"{len(labels)} labels for {n} examples; give one for each")
    drawn, arithmetic = [], Precision(precision, place)
    for first in range(0, n, batch):
        indices = range(first, min(first + batch, n))
        mine = None if labels is None else sent(labels[first : first + batch], place)
        calls = count(1)

        def noise(indices: range = indices, calls: Iterator[int] = calls) -> Tensor:
            eps = Stream(seed, f"sample-{next(calls)}").normal(indices, (*shape[1:], shape[0]))
            return sent(eps, place).movedim(-1, 1)

        denoiser = Denoiser(network, what, Guidance(guidance), mine, clip=parse_clip(clip))  # type: ignore[arg-type]
        with arithmetic.applied(), arithmetic.autocast():
            drawn.append(walk(chosen, noise() * scale, grid, denoiser.asked_by(chosen), noise))
    return torch.cat(drawn)


def variational_bound(
    network: Network,
    prediction: Prediction | str,
    pixels: np.ndarray | Tensor,
    labels: Tensor | None = None,
    *,
    logsnr_min: float = -15.0,
    logsnr_max: float = 15.0,
    schedule: Schedule | str = "uniform",
    draws: int = 16,
    population: float = math.inf,
    seed: int = 0,
    batch: int = 256,
    device: torch.device | str = "auto",
    precision: str = "fp32",
) -> Bound:
    """The variational bound on −log p of images under anyone's network, with its terms and their standard errors.

    pixels: [N, H, W, C] uint8, at least two; the network sees them in [−1, 1]. labels: [N], or None. logsnr_min,
    logsnr_max: the levels the bound goes over, which the network must have been trained on. schedule: of the draws; it
    changes the errors, not the expectation. draws: noise levels for each image, an even number. population: how many
    images these are chosen from, for the errors of bpd and nats; inf is a distribution. batch: inputs of the network at a
    time. device, precision: as `draw` takes them. Raises UsageError, NonFiniteError. Source: Kingma & Gao 2023; Kingma et al. 2021 for the discrete decoder.
    """
    what = Prediction.parse(prediction) if isinstance(prediction, str) else prediction
    if torch.as_tensor(pixels[:1]).is_floating_point():
        raise UsageError(f"pixels are {pixels.dtype}; expected uint8, levels from 0 to 255")
    if isinstance(schedule, str):
        schedule = resolve_schedule(schedule, logsnr_min, logsnr_max)
    low, high, place = schedule.logsnr_min, schedule.logsnr_max, choose_device(str(device))
    measured = MeasuredNetwork(network, what, low, high, place, precision, batch)
    size = max(1, batch // draws)
    parts = [range(first, min(first + size, len(pixels))) for first in range(0, len(pixels), size)]
    images = [
        Images(torch.as_tensor(pixels[p.start : p.stop]).cpu(), None if labels is None else labels[p.start : p.stop], p)
        for p in parts
    ]
    rounds = estimate_bound(measured, images, schedule, draws=draws, seed=seed, population=population)
    while True:
        try:
            next(rounds)
        except StopIteration as end:
            return end.value.bound


def open_run(path: Path | str, device: torch.device | str = "auto", weights: str = "ema") -> TrainedRun:
    """A run that `elbo train` wrote, or one of its checkpoints, with its network in eval mode on the device.

    weights: `ema` (the run's first average), `model` (the last weights), another average's name, or a file of
    `elbo ema`. Raises FormatError, DataError, UsageError.
    """
    from elbocli.run.open import open_run as opened

    which = (weights, "") if weights in ("ema", "model") else ("ema", weights)
    return opened(Path(path), choose_device(str(device)), lambda text: None, *which)


def open_dataset(path: Path | str) -> Dataset:
    """A dataset that `elbo prep` packed, images or latents, read through a memory map. Raises FormatError, DataError."""
    return Dataset(Path(path), latents=True)
