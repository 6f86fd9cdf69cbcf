"""The plan by which examples are drawn: what `elbo sample`, `elbocli.draw`, previews and scores while training have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from elbocli.core.noise import UNIT, Noise, Start
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.runtime.device import Precision, sent
from elbocli.sampling.denoiser import NO_THRESHOLD, Denoiser
from elbocli.sampling.guidance import NO_GUIDANCE, Guidance, Threshold
from elbocli.sampling.samplers import Sampler, choose_space, walk
from elbocli.sampling.spacing import Spacing, logsnr_grid, usual_spacing


@dataclass(frozen=True)
class Sampling:
    """How to draw: a sampler, the noise levels that it walks, guidance, clipping, start and precision.

    levels: rising λ, [steps + 1]; the last is inf, clean data. spacing: SPEC of the choice of the levels.
    threshold: method from THRESHOLDS that clips x̂. start: scale of the first noise, from STARTS.
    precision: of the network, with the device to draw on.
    """

    sampler: Sampler
    levels: tuple[float, ...]
    precision: Precision
    spacing: str = ""
    guidance: Guidance = NO_GUIDANCE
    threshold: Threshold = NO_THRESHOLD
    start: Start = UNIT

    @classmethod
    def on_schedule(
        cls,
        sampler: Sampler,
        schedule: Schedule,
        prediction: Prediction,
        precision: Precision,
        steps: int = 0,
        spacing: Spacing | None = None,
        **options: Any,
    ) -> Sampling:
        """Return the plan that walks levels of a schedule.

        prediction: of the network, by which `space=auto` of a sampler is chosen.
        steps: number of noise levels; 0: the sampler's. spacing: from SPACINGS; None: that of sampler or schedule.
        options: guidance, threshold and start.
        Raises UsageError if the schedule has too few levels.
        """
        sampler = choose_space(sampler, prediction, schedule)
        spacing = spacing or usual_spacing(schedule, sampler)
        levels = logsnr_grid(schedule, steps or sampler.steps, spacing)
        return cls(sampler, tuple(levels), precision, spacing.spec, **options)

    @property
    def steps(self) -> int:
        """Number of steps from noise to data."""
        return len(self.levels) - 1

    @cached_property
    def evaluated(self) -> list[float]:
        """λ of each evaluation of the denoiser, in order; found by walking with a single number in place of an example."""
        evaluated = []

        def denoise(z: Tensor, logsnr: float) -> Any:
            evaluated.append(logsnr)
            return (z, z) if self.sampler.learned else z

        walk(self.sampler, torch.zeros(1, 1), list(self.levels), denoise, lambda: torch.zeros(1, 1))
        return evaluated

    def evaluations(self, guided: bool) -> int:
        """Return the number of network evaluations for an example. guided: whether there is a weak output to guide by."""
        return len(self.evaluated) + (sum(map(self.guidance.active, self.evaluated)) if guided else 0)

    def draw(
        self,
        denoiser: Denoiser,
        noise: Noise,
        indices: Sequence[int],
        labels: Tensor | None = None,
        decode: Callable[[Tensor], Tensor] = lambda x: x,
        before_evaluation: Callable[[int], None] = lambda done: None,
    ) -> Tensor:
        """Draw examples, float32 [B, …], and return what `decode` makes of them; example i depends on the seed and i alone.

        denoiser: of the network; this plan's guidance and threshold replace its own. indices: numbers of the examples, [B].
        labels: class of each example, [B]; None: no classes.
        before_evaluation: function of the number of network evaluations so far, which may raise an error to stop.
        """
        guided = replace(denoiser, guidance=self.guidance, threshold=self.threshold).with_labels(labels)
        draw_noise = noise.walk(indices)
        estimate = guided.for_sampler(self.sampler)

        def next_noise() -> Tensor:
            return sent(draw_noise(), noise.device)

        def watched(z: Tensor, logsnr: float) -> Any:
            before_evaluation(guided.evaluations)
            return estimate(z, logsnr)

        with torch.inference_mode(), self.precision.applied():
            with self.precision.autocast():
                z = next_noise() * self.start(self.levels[0])
                x = walk(self.sampler, z, list(self.levels), watched, next_noise).float()
            return decode(x)
