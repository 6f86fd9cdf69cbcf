"""Images seen by a denoiser at many noise levels, with their losses. It may be anyone's, and so may the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli.core.loss import denoising_losses, step_coefficients
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.streams import Stream
from elbocli.core.weighting import Weighting
from elbocli.errors import NonFiniteError
from elbocli.runtime.device import Precision, sent
from elbocli.train.batches import normalised


class Images(NamedTuple):
    """Some images. content: pixels [B, H, W, C] uint8, or latents [B, C, H, W] float32, as the network sees them. labels:
    [B], or None. rows: numbers by which their noise is drawn, [B]: no two images have the same.
    """

    content: Tensor
    labels: Tensor | None
    rows: Sequence[int]


class Draws(NamedTuple):
    """Some images and what happened to them. content: as Images has it. logsnr, loss, error: [B, 2, draws/2] float64 on the
    CPU.

    The two halves of an image's draws are independent; within a half, t is a comb with one uniform offset.
    loss, error: summed over dimensions; error is ‖ε−ε̂‖².
    """

    content: Tensor
    logsnr: Tensor
    loss: Tensor
    error: Tensor

    @property
    def levels(self) -> Tensor | None:
        """Pixels as levels of 0 to 255; None for latents, which have none."""
        return None if self.content.is_floating_point() else self.content.long()

    @property
    def x(self) -> Tensor:
        """Pixels in [-1, 1], or latents, float64 on the CPU."""
        return self.content.double() if self.levels is None else self.content.double() / 127.5 - 1

    def shares(self, schedule: Schedule) -> Tensor:
        """The share of each draw in a half's estimate of ½ ∫ ‖ε−ε̂‖² dλ. schedule: the draws'."""
        return 0.5 * self.error / schedule.density(self.logsnr) / self.error.shape[-1]


@dataclass(frozen=True)
class MeasuredNetwork:
    """A network, what it outputs, and the range of logsnr that it is asked about.

    network: (z [B, C, H, W] scaled by the prediction's c_in, logsnr [B], labels [B] or None) → [B, C, H, W]. batch: its
    inputs at a time. precision: by the name that Precision has. name: for messages.
    """

    network: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    prediction: Prediction
    low: float
    high: float
    device: torch.device = torch.device("cpu")
    precision: str = "fp32"
    batch: int = 256
    name: str = "the network"

    def draws(
        self, images: Iterable[Images], weighting: Weighting, schedule: Schedule, count: int, seed: int, purpose: str
    ) -> Iterator[Draws]:
        """All images, each at `count` noise levels, an even number. Another purpose is another independent set.

        Raises NonFiniteError.
        """
        offsets, noise = (Stream(seed, f"bound-{what}-{purpose}") for what in ("t", "noise"))
        comb = np.arange(count // 2) / (count // 2)
        for some in images:
            t = (np.stack([offsets.uniform(int(row), 2) for row in some.rows])[:, :, None] + comb) % 1.0
            logsnr = schedule.logsnr(torch.from_numpy(t))
            yield Draws(some.content, logsnr, *self._losses(some, logsnr, weighting, schedule, noise))

    @torch.inference_mode()
    def _losses(
        self, images: Images, logsnr: Tensor, weighting: Weighting, schedule: Schedule, noise: Stream
    ) -> tuple[Tensor, Tensor]:
        """(loss, error) at each logsnr."""
        each, precision = logsnr[0].numel(), Precision(self.precision, self.device)
        send = partial(sent, device=self.device)
        content = images.content
        x = send(content) if content.is_floating_point() else normalised(content, self.device)
        labels = None if images.labels is None else send(images.labels)
        parts = []
        for part in torch.arange(logsnr.numel()).split(self.batch):
            image = send(part // each)
            indices = [int(images.rows[k // each]) * each + k % each for k in part.tolist()]
            eps = send(noise.normal(indices, (*x.shape[2:], x.shape[1])))
            c = step_coefficients(logsnr.flatten()[part], weighting, schedule, self.prediction, send)
            given = None if labels is None else labels[image]
            with precision.applied(), precision.autocast():
                parts.append(torch.stack(denoising_losses(self.network, x[image], eps.permute(0, 3, 1, 2), given, c)))
        loss, error = (torch.cat(parts, 1).double().cpu() * x[0].numel()).view(2, *logsnr.shape)
        if not bool(loss.isfinite().all()):
            worst = float(logsnr[~loss.isfinite()][0])
            raise NonFiniteError(
                f"{self.name}: the loss is not finite at logsnr {worst:.4g}; try --precision fp32, or a narrower range"
            )
        return loss, error
