"""The Python API: weightings, schedules, a loss for any training loop, samplers, the bound, and trained runs.

Import these names from `elbocli`. docs/python.md is a tutorial.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.estimate import estimate_bound
from elbocli.bound.measure import Measurement
from elbocli.bound.result import Bound
from elbocli.core.adaptive import BinSums, OnlineObjective, check_floor, refuse_adaptive
from elbocli.core.noise import STARTS, Noise
from elbocli.core.objective import LossTerms, NetworkFunction, Objective
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.streams import T_SAMPLINGS, Stream, times
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError
from elbocli.files import losslog
from elbocli.files.dataset import Dataset
from elbocli.files.losslog import LossLogArrays
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.runs.classes import choose_labels, usual_classes
from elbocli.runs.examples import ImageBatch, channels_first, draw_noise
from elbocli.runs.open import TrainedRun
from elbocli.runtime.device import Precision, choose_device, sent
from elbocli.runtime.processes import World
from elbocli.runtime.progress import progress, showing_bar
from elbocli.sampling.denoiser import Denoiser
from elbocli.sampling.guidance import THRESHOLDS
from elbocli.sampling.plan import Sampling
from elbocli.sampling.samplers import USUAL, Sampler, parse_sampler
from elbocli.sampling.settings import SampleSettings
from elbocli.sampling.spacing import SPACINGS
from elbocli.scoring import scoring
from elbocli.scoring.extractors import STRICT
from elbocli.scoring.metrics import metric_options
from elbocli.scoring.result import EvalResult
from elbocli.scoring.sets import Source, array_reader
from elbocli.scoring.settings import EvalSettings, settings_of

LARGEST_RMS = 10.0  # of a batch that DiffusionLoss accepts as data in about [−1, 1]


def weighting(spec: str, *, shift: float = 0.0, monotone: bool = False, size: int | None = None) -> Weighting:
    """Return the weighting w(λ) of a SPEC, `NAME:key=value,…`.

    spec: such as `sigmoid:bias=2`, `edm:monotone` or `v-mse@cosine`; 'elbo list' lists the names.
    shift: replace w(λ) by w(λ − shift).
    monotone: hold w constant left of its peak, so that w never increases in λ.
    size: side of the images in pixels, for a SPEC with a schedule that depends on the image size.
    Raises UsageError for an unknown name or parameter, FormatError for an unreadable file.
    Source: Kingma & Gao 2023.
    """
    return resolve_weighting(spec, shift=shift, monotone=monotone, size=size)


def schedule(spec: str, logsnr_min: float | None = None, logsnr_max: float | None = None, *, size: int | None = None) -> Schedule:
    """Return the schedule λ(t) of a SPEC or a schedule file, truncated to [logsnr_min, logsnr_max].

    spec: `cosine`, `edm:mean=-0.4,std=1`, or the path of a file that `elbo adapt` wrote.
    logsnr_min, logsnr_max: range of λ; None keeps the limit of the schedule.
    size: side of the images in pixels, for a schedule that depends on the image size.
    Raises UsageError for an unknown name or a range that the schedule does not cover, FormatError for an unreadable file.
    """
    return resolve_schedule(spec, logsnr_min, logsnr_max, size=size)


def prediction(spec: str) -> Prediction:
    """Return the prediction of a SPEC: the quantity that a network outputs.

    spec: `eps`, `x`, `v`, `u`, or with a parameter, `edm:sigma_data=0.5`.
    Raises UsageError for an unknown name or parameter.
    """
    return Prediction(spec)


def sampler(spec: str) -> Sampler:
    """Return the sampler of a SPEC, `NAME:key=value,…`.

    spec: such as `ddpm`, `heun:s_churn=40` or `dpmpp-2m`; 'elbo list samplers' lists the names.
    Raises UsageError for an unknown name or parameter.
    """
    return parse_sampler(spec)


class DiffusionLoss:
    """Weighted diffusion loss of any network, for your own training loop.

    Each call noises examples to z = αx + σε at random times, and returns the terms of the weighted loss per dimension:

        L_w/D = ½ E_t[(w/p)(λ_t) ‖ε − ε̂‖²/D]

    with the weighting w and the density p of the schedule. ``elbo train`` minimises the same loss.
    An adaptive schedule is uniform in λ until ``adapt`` refits it. A SPEC is text as on the command line.

    Args:
        weighting (Weighting or str): The weighting w(λ), or its SPEC. Default: ``"sigmoid:bias=2"``
        schedule (Schedule or str): The schedule that draws λ, its SPEC, a file, or ``"adaptive"``. Default: ``"cosine"``
        prediction (Prediction or str): What the network outputs, or its SPEC. Default: ``"v"``
        logsnr_min (float, optional): Lower end of the range of λ. Default: that of a Schedule object, else ``-15``
        logsnr_max (float, optional): Upper end of the range of λ. Default: that of a Schedule object, else ``15``
        floor (float): Least density of an adaptive schedule, as a fraction of the uniform density. Default: ``0.01``
        t_sampling (str): How the times t are drawn: ``"low-discrepancy"`` or ``"independent"``. Default: ``"low-discrepancy"``
        seed (int): Seed of times and noise. Default: ``0``
        rank (int): Rank of this process. Default: ``0``
        ranks (int): Number of processes, which must have equal batch sizes. Default: ``1``

    Shape:
        - x: [B, …], floating point, data scaled to about [−1, 1]
        - Output: ``LossTerms``, whose ``loss`` (in nats per dimension), ``eps_mse`` and ``logsnr`` have shape [B]

    Raises:
        UsageError: for an invalid argument, a weighting that is negative or infinite in the range of λ, or a range that the
            schedule does not cover.
        FormatError: for an unreadable file.

    Source: Kingma & Gao 2023, arXiv:2303.00848.

    Example::

        >>> loss = elbocli.DiffusionLoss("sigmoid:bias=2", "adaptive", "v", logsnr_min=-10, logsnr_max=10)
        >>> for x, labels in loader:
        ...     terms = loss(network, x, labels)
        ...     terms.loss.mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> loss.adapt(loss.take_sums())  # after each epoch: refit the adaptive schedule
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
        weighting = resolve_weighting(weighting) if isinstance(weighting, str) else weighting
        if not isinstance(weighting, Weighting):
            raise UsageError(
                f"weighting is a {type(weighting).__name__}, without a name for logs and checkpoints; declare a function with "
                "@elbocli.plugin.weighting('NAME', monotone=False), and pass 'NAME'"
            )
        check_floor(floor)
        if t_sampling not in T_SAMPLINGS:
            raise UsageError(f"t_sampling is {t_sampling!r}; it must be {' or '.join(T_SAMPLINGS)}")
        if adapts := schedule == "adaptive":
            refuse_adaptive(weighting)
            schedule = "uniform"
        schedule = _on_range(schedule, logsnr_min, logsnr_max, None)
        self.logsnr_min = schedule.logsnr_min
        self.logsnr_max = schedule.logsnr_max
        weighting.check(self.logsnr_min, self.logsnr_max)
        self.online = OnlineObjective(Objective(weighting, schedule, _predicted(prediction, None)), adapts, floor)
        self.edges = self.online.edges
        self.t_sampling = t_sampling
        self.rank = rank
        self.ranks = ranks
        self.step = 0
        self.images = 0
        self._t = Stream(seed, "t")
        self._noise = Stream(seed, "noise")
        self._sums: BinSums | None = None

    @property
    def objective(self) -> Objective:
        """Weighting, schedule and prediction of the next call."""
        return self.online.objective

    @property
    def weighting(self) -> Weighting:
        return self.objective.weighting

    @property
    def schedule(self) -> Schedule:
        return self.objective.schedule

    @property
    def prediction(self) -> Prediction:
        return self.objective.prediction

    def __repr__(self) -> str:
        return f"DiffusionLoss({self._kind()})"

    def __call__(self, network: NetworkFunction, x: Tensor, labels: Any = None, *, eps: Tensor | None = None) -> LossTerms:
        """Compute the loss of a batch, count one step, and record the errors for ``take_sums``.

        Args:
            network (Callable): Module or function ``(z, logsnr, labels) → out``, where ``out`` has the shape of ``z``.
            x (Tensor): Data, [B, …], floating point, scaled to about [−1, 1].
            labels (Any, optional): Passed to the network unchanged. Default: ``None``
            eps (Tensor, optional): Noise of the shape of ``x``. Default: drawn from the seed

        Returns:
            LossTerms: the loss, unweighted error and λ of each example, and the network's output.

        Raises:
            UsageError: if ``x``, ``eps`` or the network's output has the wrong type or shape, or the first ``x`` the wrong scale.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
            raise UsageError(f"x is {getattr(x, 'dtype', type(x))}; give a float tensor of ≥2 dims, pixels by elbocli.normalised")
        size = len(x)
        first = self.rank * len(x)
        t = times(self._t, self.step, size * self.ranks, self.t_sampling)[first : first + size]
        if eps is None:
            places = range(self.images + first, self.images + first + size)
            eps = draw_noise(self._noise, places, x)
        if eps.shape != x.shape:
            raise UsageError(f"eps has shape {[*eps.shape]}; expected the shape of x, {[*x.shape]}")
        if self._sums is None:
            if (rms := float(x.square().mean().sqrt())) > LARGEST_RMS:
                raise UsageError(f"x has a root mean square of {rms:.4g}; scale it to about [−1, 1], pixels by x / 127.5 - 1")
            self._sums = BinSums(self.logsnr_min, self.logsnr_max, device=x.device)
        terms = self.objective.losses(network, x, eps, labels, self.schedule.logsnr(t))
        self._sums.add(terms.logsnr, terms.eps_mse)
        self.step = self.step + 1
        self.images = self.images + size * self.ranks
        return terms

    def take_sums(self) -> Tensor:
        """Return the statistics of ``eps_mse`` in each bin of λ since the last call, and reset them.

        Add up the statistics of all processes, with ``torch.distributed.all_reduce``, before you use them.

        Returns:
            Tensor: count, sum and sum of squares, [3, bins], float64, on the CPU.
        """
        if self._sums is None:
            return torch.zeros(3, len(self.edges) - 1, dtype=torch.float64)
        return self._sums.take()

    def adapt(self, sums: Tensor) -> None:
        """Refit this loss's adaptive schedule or learned weighting, if any, to new errors.

        Args:
            sums (Tensor): Statistics from ``take_sums``, [3, bins], added up over all processes.
        """
        self.online.refit(sums)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as a dict that ``load_state_dict`` restores.

        Call ``take_sums`` first: statistics that were not taken are not part of the state.
        """
        return {"step": self.step, "images": self.images, "adaptive": self.online.state, "loss": self._kind()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned.

        Args:
            state (dict): State of a loss with equal weighting, prediction, range of λ and kind of schedule (adaptive or fixed).

        Raises:
            UsageError: if the state belongs to a loss with other settings.
            KeyError: if an entry is missing.
        """
        if (loss := state.get("loss", self._kind())) != self._kind():
            raise UsageError(
                f"the state is of a loss with {loss}, but this loss has {self._kind()}; make this loss with the state's settings"
            )
        self.step = state["step"]
        self.images = state["images"]
        self.online.restore(state["adaptive"])

    def _kind(self) -> str:
        """Return, as text, the settings that must match when a state is loaded."""
        kind = "" if self.online.errors is None else ", adaptive"
        return f"{self.weighting.spec}, {self.prediction.spec}, logsnr {self.logsnr_min:g} to {self.logsnr_max:g}{kind}"


def _on_range(schedule: Schedule | str, low: float | None, high: float | None, trained: Any, clip: bool = False) -> Schedule:
    """Return a schedule truncated to [low, high].

    low, high: limits of λ. None: those of a Schedule object, within those of `trained`; for a SPEC those of `trained`, else ±15.
    trained: DiffusionLoss or TrainSettings that a network was trained with; None: unknown.
    clip: if `schedule` is a SPEC that reaches only part of [low, high], use this part instead of raising UsageError.
    """
    own = None if isinstance(schedule, str) else schedule
    known = [each for each in (own, trained) if each is not None]
    low = low if low is not None else max((each.logsnr_min for each in known), default=-15.0)
    high = high if high is not None else min((each.logsnr_max for each in known), default=15.0)
    if isinstance(schedule, str):
        return resolve_schedule(schedule, low, high, clip=clip)
    return replace(schedule, logsnr_min=low, logsnr_max=high)


def _predicted(prediction: Prediction | str | None, trained: Any) -> Prediction:
    """Return the prediction of a network. trained: as in `_on_range`. Raises UsageError if unknown or contradictory."""
    if not isinstance(prediction, Prediction | str | None):
        raise UsageError(f"prediction is a {type(prediction).__name__}; give a name, such as 'v', and images as pixels=")
    if prediction is None and trained is None:
        raise UsageError("the network's prediction isn't given; pass prediction=, such as 'v', or the DiffusionLoss as loss=")
    chosen = Prediction(prediction) if isinstance(prediction, str) else prediction
    known = None if trained is None else trained.prediction
    known = Prediction(known) if isinstance(known, str) else known
    if chosen and known and chosen.spec != known.spec:
        raise UsageError(
            f"prediction is {chosen.spec}, but the network was trained to predict {known.spec}; leave prediction out"
        )
    return chosen or known  # type: ignore[return-value]  # one of them is there


def _trained(network: NetworkFunction | TrainedRun, loss: DiffusionLoss | None) -> tuple[NetworkFunction, Any]:
    """Return the network, and the DiffusionLoss or TrainSettings that it was trained with; None: unknown."""
    module = network.network if isinstance(network, TrainedRun) else network
    return module, loss or getattr(module, "train_settings", None)


def _labels(labels: Any, n: int) -> Tensor | None:
    if labels is not None and len(labels) != n:
        raise UsageError(f"labels has {len(labels)} entries for {n} examples; pass one label for each example")
    return None if labels is None else torch.as_tensor(labels)


def draw(
    network: NetworkFunction | TrainedRun,
    prediction: Prediction | str | None = None,
    shape: Sequence[int] = (),
    n: int = 0,
    *,
    loss: DiffusionLoss | None = None,
    labels: Any = None,
    sampler: Sampler | str = USUAL,
    steps: int | None = None,
    schedule: Schedule | str | None = None,
    logsnr_min: float | None = None,
    logsnr_max: float | None = None,
    guidance_scale: float = 1.0,
    spacing: str = "",
    start: str = "unit",
    threshold: str = "none",
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "auto",
    precision: str = "fp32",
    progress_bar: bool = True,
) -> Tensor:
    """Draw n examples from a trained network.

    network: a run, or a callable `(z, logsnr, labels) → out`, in eval mode.
    prediction: what the network outputs; default: that of `loss`, else of the network's run.
    shape: shape of one example, such as (channels, height, width); default: that of a run.
    loss: the DiffusionLoss that trained the network.
    labels: class of each example, [n], where −1 means "no class"; default: for a run, those of `elbo sample`.
        For the data's class frequencies, pass labels of random examples.
    guidance_scale: scale of classifier-free guidance; 1 is none. Others need labels, and a network trained with "no class".
    sampler: a Sampler or its SPEC, `NAME:key=value,…`.
    steps: number of noise levels; default: the sampler's.
    schedule: a Schedule or its SPEC; default: the sampler's.
    spacing: SPEC of the spacing of the noise levels; default: that of sampler or schedule.
    logsnr_min, logsnr_max: range of λ; default: that of `loss`, else of the network's run, within that of a Schedule object; else
        −15 to 15.
    start: `unit` starts from z = ε, `edm` from z = σε.
    threshold: `none`, `static` or `dynamic` clipping of the estimate x̂ of the data.
    seed: seed of the noise; the noise of example i depends only on the seed and i.
    batch_size: examples per call of the network.
    device: a CUDA device becomes torch's current device.
    precision: `fp32` (without TF32), `tf32`, `bf16` or `fp16`.
    progress_bar: whether to show a bar.
    Returns [n, *shape], float32.
    Raises UsageError for an invalid argument, or an output of the wrong shape.
    """
    module, trained = _trained(network, loss)
    if isinstance(network, TrainedRun):
        *sides, channels = network.network.config.shape
        shape = shape or (channels, *sides)
        if labels is None:
            counts = network.class_counts()
            classes = usual_classes(counts, network.path, "examples have classes with these frequencies")
            labels = choose_labels(classes, n, network.network.config.num_classes, seed, counts=counts)
    if not shape or n < 1:
        raise UsageError(f"shape is {tuple(shape)} and n is {n}; pass the shape of one example, and the number of examples")
    settings = SampleSettings.of(
        {"n": n, "steps": steps, "guidance_scale": guidance_scale, "seed": seed, "batch_size": batch_size}
    )
    chosen = parse_sampler(sampler) if isinstance(sampler, str) else sampler
    what = _predicted(prediction, trained)
    schedule = _on_range(schedule or chosen.grid, logsnr_min, logsnr_max, trained, clip=True)
    where = choose_device(str(device))
    labels = _labels(labels, n)
    if guidance_scale != 1 and labels is None:
        raise UsageError(
            f"guidance_scale {guidance_scale:g} needs labels of shape [{n}]; pass labels=, or leave guidance_scale at 1"
        )
    plan = Sampling.on_schedule(
        chosen,
        schedule,
        what,
        Precision(precision, where),
        settings.steps or 0,
        SPACINGS.parse(spacing) if spacing else None,
        guidance=settings.guidance,
        threshold=THRESHOLDS.parse(threshold),
        start=STARTS.parse(start),
    )
    noise = Noise(seed, (*shape[1:], shape[0]), where)
    denoiser = Denoiser(module, what)
    total = n * plan.evaluations(guided=labels is not None)

    def batch(first: int) -> Tensor:
        indices = range(first, min(first + batch_size, n))
        of_batch = None if labels is None else sent(labels[first : indices.stop], where)

        def report(evaluations: int) -> None:
            progress(first * total // n + len(indices) * evaluations, total, "evaluation")

        return plan.draw(denoiser, noise, indices, of_batch, before_evaluation=report)

    with showing_bar(progress_bar, total, "evaluation"):
        drawn = [batch(first) for first in range(0, n, batch_size)]
        progress(total, total, "evaluation")
    return torch.cat(drawn)


def variational_bound(
    network: NetworkFunction | TrainedRun,
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
    batch_size: int = 256,
    device: torch.device | str = "auto",
    precision: str = "fp32",
    progress_bar: bool = True,
) -> Bound:
    """Return the variational bound on −log p of images under a network, with its terms and their standard errors.

    network: a run, or a callable `(z, logsnr, labels) → out`, in eval mode.
    prediction: what the network outputs; default: that of `loss`, else of the network's run.
    loss: the DiffusionLoss that trained the network.
    logsnr_min, logsnr_max: range of λ of training; default: that of `loss`, else of the network's run, within that of a Schedule
        object; else −15 to 15.
    pixels: [N, C, H, W] or [N, H, W, C], uint8, C = 1 or 3, N ≥ 2; the network sees pixels scaled to [−1, 1].
    labels: [N]; None for a network without classes.
    schedule: a Schedule or its SPEC that draws noise levels; affects only the standard errors.
    draws: noise levels per image, an even number.
    population: number of images that `pixels` was sampled from, for the standard errors; inf for a distribution.
    batch_size: inputs per call of the network.
    device: a CUDA device becomes torch's current device. precision: `fp32` (without TF32), `tf32`, `bf16` or `fp16`.
    progress_bar: whether to show a bar.
    Raises UsageError for an invalid argument, NonFiniteError for outputs that are not finite.
    Source: Kingma & Gao 2023; Kingma et al. 2021 for the discrete decoder.
    """
    module, trained = _trained(network, loss)
    what = _predicted(prediction, trained)
    schedule = _on_range(schedule, logsnr_min, logsnr_max, trained)
    low = schedule.logsnr_min
    high = schedule.logsnr_max
    arithmetic = Precision(precision, choose_device(str(device)))
    labels = _labels(labels, len(pixels))
    size = max(1, batch_size // draws)
    images = []
    for first in range(0, len(pixels), size):
        rows = range(first, min(first + size, len(pixels)))
        some = channels_first(torch.as_tensor(pixels[first : rows.stop])).permute(0, 2, 3, 1).cpu()
        images.append(ImageBatch(some, None if labels is None else labels[first : rows.stop], rows))
    how = Measurement(
        module, what, low, high, arithmetic, images, batch_size, draws, seed, population=population, total=len(pixels)
    )
    with showing_bar(progress_bar, len(pixels), "img"):
        return estimate_bound(how, schedule).bound


def score(
    images: Any,
    ref: Any = None,
    metrics: str | None = None,
    *,
    labels: Any = None,
    protocol: str = "",
    extractor: str | None = None,
    extractor_weights: Path | str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "auto",
    precision: str = STRICT,
    allow_mismatch: bool = False,
    progress_bar: bool = True,
    **options: Any,
) -> EvalResult:
    """Score images against a reference, as `elbo eval` does.

    images, ref: uint8 [N, C, H, W] or [N, H, W, C], C = 1 or 3; or a path of images, of saved features, or (ref) of statistics.
        None: the metrics need no reference.
    metrics: names, such as `"fid,is"`; default: those of `protocol`, else fid and, by Inception, is.
    labels: class of each image, [N], if `images` is an array; None: unknown.
    protocol: protocol of published scores, such as `adm`; "": none.
    extractor: name, or path of an exported program; default: that of the protocol or of saved features, else Inception.
    extractor_weights: file of its weights; default: the published weights.
    precision: of the extractor: `fp32` or `bf16`.
    allow_mismatch: whether to accept a reference that was made in another way, and deviations from `protocol`.
    options: of metrics, such as `kid_subset_size=500`.
    Raises UsageError for an invalid argument, FormatError or DataError for images that don't fit the reference or the metrics.
    """
    if unknown := [name for name in options if name not in {option.name for option in metric_options()}]:
        raise UsageError(f"score has no argument {unknown[0]!r}; its options are those of the metrics")
    settings = EvalSettings.of(
        {
            "seed": seed,
            "extractor_weights": extractor_weights,
            "batch_size": batch_size,
            "allow_mismatch": allow_mismatch,
            "precision": precision,
        },
        **settings_of(protocol, {name: value for name, value in options.items() if value is not None}, metrics, extractor),
    )
    samples = _source(images, labels, "images")
    reference = None if ref is None else _source(ref, None, "ref")
    with showing_bar(progress_bar, None, "img"):
        result = scoring.run([samples], reference, settings, World(device=choose_device(str(device))))
    assert result is not None  # this is the only process
    return result


def _source(images: Any, labels: Any, name: str) -> Source:
    """Return images as a source of an evaluation. images, labels: as in `score`. name: of the argument, for messages."""
    if isinstance(images, str | Path):
        return Path(images)
    if not isinstance(images, np.ndarray | Tensor):
        raise UsageError(f"{name} is a {type(images).__name__}; give a path, or an array of images")
    pixels = torch.as_tensor(images)
    if pixels.dtype != torch.uint8 or not len(pixels):
        raise UsageError(f"{name} is {pixels.dtype} {[*pixels.shape]}; give one or more images, uint8 from 0 to 255")
    array = channels_first(pixels).permute(0, 2, 3, 1).cpu().numpy()
    classes = _labels(labels, len(pixels))
    return array_reader(array, None if classes is None else classes.numpy(), name)


def open_run(
    path: Path | str, device: torch.device | str = "auto", weights: str = "ema", plugins: Sequence[Path | str] = ()
) -> TrainedRun:
    """Open a run of `elbo train`, or one of its checkpoints, with the network in eval mode on a device.

    path: folder of the run or of a checkpoint.
    weights: `ema` (the run's first average), `model` (the last weights), the name of another average, or a file of `elbo ema`.
    plugins: plug-in files to run first, after those that $ELBO_PLUGIN names.
    Warns if a damaged checkpoint is skipped, or a plug-in has changed.
    Raises FormatError or DataError for an unusable run, UsageError for an invalid argument.
    """
    from elbocli.files.plugins import run_plugin
    from elbocli.runs.open import open_run as opened

    for file in [*filter(None, os.environ.get("ELBO_PLUGIN", "").split(os.pathsep)), *plugins]:
        run_plugin(Path(file))
    return opened(Path(path), choose_device(str(device)), weights)


def open_dataset(path: Path | str) -> Dataset:
    """Open a dataset of images or latents that `elbo prep` wrote, as a memory map.

    Raises FormatError or DataError for an unusable file.
    """
    return Dataset(Path(path), latents=True)


def read_losslog(path: Path | str) -> LossLogArrays:
    """Read the errors of a training, by interval and bin of λ, as arrays.

    path: run, or a loss log such as losslog.jsonl or validation.jsonl.
    Raises FormatError or DataError for an unusable file.
    """
    return losslog.read_losslog(Path(path)).arrays()
