"""The Python API: weightings, schedules, a loss for any network in anyone's loop, samplers, the bound, runs.

`import elbocli` gives these names, and imports nothing heavy until one of them is used. docs/python.md shows them at work.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.bound.estimate import estimate_bound
from elbocli.bound.measure import Images, MeasuredNetwork
from elbocli.bound.result import Bound
from elbocli.core.adaptive import AdaptiveSchedule, BinSums, bin_edges, check_floor, followed, refuse_adaptive
from elbocli.core.loss import LossTerms, Network, denoising_losses
from elbocli.core.prediction import Prediction
from elbocli.core.samplers import Sampler, parse_sampler, time_grid, walk
from elbocli.core.sampling import CLIPS, SPACINGS, STARTS, Guidance
from elbocli.core.schedule import Schedule
from elbocli.core.streams import T_SAMPLINGS, Stream, times, walk_noise
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.nn.denoiser import Denoiser
from elbocli.run.open import TrainedRun
from elbocli.runtime.device import Precision, choose_device, sent
from elbocli.train.batches import channels_first

LARGEST_RMS = 10.0
"""Root mean square of a batch above which data are not scaled to about [−1, 1]."""


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
    return Prediction(spec)


def sampler(spec: str) -> Sampler:
    """A sampler as `elbo sample --sampler` takes it: `ddpm`, `heun:s_churn=40`, `dpmpp-2m`. Raises UsageError."""
    return parse_sampler(spec)


class DiffusionLoss:
    """The weighted loss L_w of any network, sampled under any schedule: what `elbo train` minimises, for one's own loop.

    weighting, schedule, prediction: objects, or SPECs; the schedule may be "adaptive". logsnr_min, logsnr_max: the range
    of λ; unless given, that of a Schedule object, or −15 to 15. floor: least density of an adaptive schedule, as a share of
    uniform. seed: times and noise are functions of it and of how many images came before. rank, ranks: this process of how
    many, each with batches of the same size; together they draw a batch of low-discrepancy times.
    Raises UsageError. Source: Kingma & Gao 2023, the weighted loss, importance-sampled by the schedule.
    """

    def __init__(
        self,
        weighting: Weighting | str = "sigmoid:bias=2",
        schedule: Schedule | str = "cosine",
        prediction: Prediction | str = "v",
        *,
        logsnr_min: float | None = None,
        logsnr_max: float | None = None,
        floor: float = 0.01,
        t_sampling: str = "low-discrepancy",
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.weighting = resolve_weighting(weighting) if isinstance(weighting, str) else weighting
        self.prediction = Prediction(prediction) if isinstance(prediction, str) else prediction
        check_floor(floor)
        if t_sampling not in T_SAMPLINGS:
            raise UsageError(f"t_sampling is {t_sampling!r}; it must be {' or '.join(T_SAMPLINGS)}")
        if adapts := schedule == "adaptive":
            refuse_adaptive(self.weighting)
            schedule = "uniform"
        self.schedule = _on_range(schedule, logsnr_min, logsnr_max, None)
        self.logsnr_min, self.logsnr_max, self.floor = self.schedule.logsnr_min, self.schedule.logsnr_max, floor
        self.edges = bin_edges(self.logsnr_min, self.logsnr_max)
        self.adaptive = AdaptiveSchedule(self.edges) if adapts or self.weighting.learned else None
        self._follow()
        self.t_sampling, self.rank, self.ranks, self.step, self.images = t_sampling, rank, ranks, 0, 0
        self._t, self._noise = Stream(seed, "t"), Stream(seed, "noise")
        self._sums: BinSums | None = None

    def __repr__(self) -> str:
        return f"DiffusionLoss({self._loss()})"

    def __call__(self, network: Network, x: Tensor, labels: Any = None, *, eps: Tensor | None = None) -> LossTerms:
        """Show the network a batch at one λ for each example, and score its output.

        x: [B, …] float32, data scaled to about [−1, 1]; the first batch is checked for that. labels: handed to the network
        as they are. eps: noise shaped like x, drawn here unless given. Counts a step; the errors are remembered for
        `take_sums`. Raises UsageError.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
            raise UsageError("x: expected a tensor of floats [B, …]; elbocli.normalised makes them of pixels")
        size, first = len(x), self.rank * len(x)
        t = times(self._t, self.step, size * self.ranks, self.t_sampling)[first : first + size]
        if eps is None:
            places = range(self.images + first, self.images + first + size)
            eps = sent(self._noise.normal(places, (*x.shape[2:], x.shape[1])), x.device).movedim(-1, 1)
        if eps.shape != x.shape:
            raise UsageError(f"eps is {[*eps.shape]}; expected a tensor shaped like x, {[*x.shape]}")
        if self._sums is None:
            if (rms := float(x.square().mean().sqrt())) > LARGEST_RMS:
                raise UsageError(
                    f"x has a root mean square of {rms:.4g}; scale it to about [−1, 1], pixels by x / 127.5 - 1"
                )
            self._sums = BinSums(self.logsnr_min, self.logsnr_max, device=x.device)
        how = self.weighting, self.schedule, self.prediction, partial(sent, device=x.device)
        terms = denoising_losses(network, x, eps, labels, self.schedule.logsnr(t), *how)
        self._sums.add(terms.logsnr, terms.eps_mse)
        self.step, self.images = self.step + 1, self.images + size * self.ranks
        return terms

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
        return {"step": self.step, "images": self.images, "adaptive": state, "loss": self._loss()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`. Raises KeyError when it is none, UsageError when it is of another loss."""
        if (loss := state.get("loss", self._loss())) != self._loss():
            raise UsageError(f"the state is of another loss: {loss}; this one is {self._loss()}")
        self.step, self.images = state["step"], state["images"]
        if self.adaptive is not None:
            self.adaptive.state.copy_(state["adaptive"])
        self._follow()

    def _loss(self) -> str:
        """All that the state depends on; a schedule that stays is not among it."""
        kind = "" if self.adaptive is None else ", adaptive"
        return f"{self.weighting.spec}, {self.prediction.spec}, logsnr {self.logsnr_min:g} to {self.logsnr_max:g}{kind}"


def _on_range(
    schedule: Schedule | str, low: float | None, high: float | None, usual: Any, clip: bool = False
) -> Schedule:
    """A schedule truncated to [low, high]. None: the end that a Schedule object has, else `usual` has, else −15 or 15."""
    ends = usual if isinstance(schedule, str) else schedule
    low = low if low is not None else ends.logsnr_min if ends else -15.0
    high = high if high is not None else ends.logsnr_max if ends else 15.0
    if isinstance(schedule, str):
        return resolve_schedule(schedule, low, high, clip=clip)
    return replace(schedule, logsnr_min=low, logsnr_max=high)


def _predicted(prediction: Prediction | str | None, loss: DiffusionLoss | None) -> Prediction:
    """The prediction given, else that of the loss."""
    if prediction is None and loss is None:
        raise UsageError("say what the network predicts: prediction='v', or loss=, its DiffusionLoss")
    chosen = prediction or loss.prediction  # type: ignore[union-attr]
    return Prediction(chosen) if isinstance(chosen, str) else chosen


def _labels(labels: Any, n: int) -> Tensor | None:
    if labels is not None and len(labels) != n:
        raise UsageError(f"{len(labels)} labels for {n} examples; give one for each")
    return None if labels is None else torch.as_tensor(labels)


@torch.inference_mode()
def draw(
    network: Network,
    prediction: Prediction | str | None = None,
    shape: Sequence[int] = (),
    n: int = 0,
    *,
    loss: DiffusionLoss | None = None,
    labels: Any = None,
    sampler: Sampler | str = "ddpm",
    steps: int | None = None,
    schedule: Schedule | str | None = None,
    logsnr_min: float | None = None,
    logsnr_max: float | None = None,
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

    prediction, logsnr_min, logsnr_max: those of `loss` unless given; without it the range is −15 to 15, and a Schedule
    object brings its own. shape: (channels, height, width), or any other. labels: [n], −1 being no class, which guidance
    other than 1 needs the network to know. steps, schedule, spacing: the sampler's usual ones unless given. start: `unit`
    noise, or `edm`. precision: fp32, which is strict; tf32, bf16 or fp16. A CUDA device becomes the current one. The
    network should be in eval mode. Raises UsageError.
    """
    chosen, what = parse_sampler(sampler) if isinstance(sampler, str) else sampler, _predicted(prediction, loss)
    steps = chosen.traits.steps if steps is None else steps
    schedule = _on_range(schedule or chosen.traits.grid, logsnr_min, logsnr_max, loss, clip=True)
    grid = time_grid(schedule, steps, SPACINGS.parse(spacing) if spacing else None)
    place, scale, labels = choose_device(str(device)), STARTS.parse(start)(grid[0]), _labels(labels, n)
    if guidance != 1 and labels is None:
        raise UsageError(f"guidance {guidance:g} needs labels, [{n}]; without them there is nothing to guide to")
    drawn, arithmetic = [], Precision(precision, place)
    for first in range(0, n, batch):
        indices = range(first, min(first + batch, n))
        mine = None if labels is None else sent(labels[first : first + batch], place)
        eps = walk_noise(seed, indices, (*shape[1:], shape[0]))

        def noise(eps: Any = eps) -> Tensor:
            return sent(eps(), place).movedim(-1, 1)

        denoiser = Denoiser(network, what, Guidance(guidance), mine, clip=CLIPS.parse(clip))
        with arithmetic.applied(), arithmetic.autocast():
            drawn.append(walk(chosen, noise() * scale, grid, denoiser.asked_by(chosen), noise))
    return torch.cat(drawn)


def variational_bound(
    network: Network,
    prediction: Prediction | str | None = None,
    pixels: Any = (),
    labels: Any = None,
    *,
    loss: DiffusionLoss | None = None,
    logsnr_min: float | None = None,
    logsnr_max: float | None = None,
    schedule: Schedule | str = "uniform",
    draws: int = 16,
    population: float = math.inf,
    seed: int = 0,
    batch: int = 256,
    device: torch.device | str = "auto",
    precision: str = "fp32",
) -> Bound:
    """The variational bound on −log p of images under anyone's network, with its terms and their standard errors.

    prediction, logsnr_min, logsnr_max: as `draw` takes them; the network must have been trained on these levels.
    pixels: [N, C, H, W] or [N, H, W, C] uint8, C being 1 or 3, at least two; the network sees them in [−1, 1]. labels: [N],
    or None. schedule: of the draws; it changes the errors, not the expectation. draws: noise levels for each image, an even
    number. population: how many images these are chosen from, for the errors of bpd and nats; inf is a distribution. batch:
    inputs of the network at a time. device, precision: as `draw` takes them.
    Raises UsageError, NonFiniteError. Source: Kingma & Gao 2023; Kingma et al. 2021 for the discrete decoder.
    """
    what, schedule = _predicted(prediction, loss), _on_range(schedule, logsnr_min, logsnr_max, loss)
    low, high, place = schedule.logsnr_min, schedule.logsnr_max, choose_device(str(device))
    measured = MeasuredNetwork(network, what, low, high, place, precision, batch, draws, seed, population=population)
    labels, size, images = _labels(labels, len(pixels)), max(1, batch // draws), []
    for first in range(0, len(pixels), size):
        rows = range(first, min(first + size, len(pixels)))
        some = channels_first(torch.as_tensor(pixels[first : rows.stop])).permute(0, 2, 3, 1).cpu()
        images.append(Images(some, None if labels is None else labels[first : rows.stop], rows))
    return estimate_bound(measured, images, schedule).bound


def open_run(
    path: Path | str, device: torch.device | str = "auto", weights: str = "ema", plugins: Sequence[Path | str] = ()
) -> TrainedRun:
    """A run that `elbo train` wrote, or one of its checkpoints, with its network in eval mode on the device.

    weights: `ema` (the run's first average), `model` (the last weights), another average's name, or a file of
    `elbo ema`. plugins: files to run first, as `--plugin` does, after those that ELBO_PLUGIN names. Warns of a damaged
    checkpoint that is passed over, and of a plug-in that has changed. Raises FormatError, DataError, UsageError.
    """
    from elbocli.files.plugins import run_plugin
    from elbocli.run.open import open_run as opened

    for file in [*filter(None, os.environ.get("ELBO_PLUGIN", "").split(os.pathsep)), *plugins]:
        run_plugin(Path(file))
    return opened(Path(path), choose_device(str(device)), weights)


def open_dataset(path: Path | str) -> Dataset:
    """A dataset that `elbo prep` packed, images or latents, read through a memory map. Raises FormatError, DataError."""
    return Dataset(Path(path), latents=True)
