"""Images seen by a denoiser at many noise levels, with their losses. It may be anyone's, and so may the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli.core.elbo import reconstruction, reconstruction_of_numbers
from elbocli.core.loss import Network, check_output, denoising_losses
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.streams import Stream
from elbocli.core.weighting import Weighting
from elbocli.errors import NonFiniteError, UsageError
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
    loss, error: summed over dimensions; error is ‖ε−ε̂‖². more: [parts, B, 2, draws/2], what else was asked of each draw.
    """

    content: Tensor
    logsnr: Tensor
    loss: Tensor
    error: Tensor
    more: Tensor | None = None

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


_table = cache(reconstruction)


def decoder(content: Tensor, logsnr_max: float) -> Tensor:
    """E[−log p(x|z₀)] of each image, [B] nats. content: as Images has it."""
    if content.is_floating_point():
        each = reconstruction_of_numbers(logsnr_max) * content[0].numel()
        return torch.full((len(content),), each, dtype=torch.float64)
    return _table(logsnr_max)[content.long()].flatten(1).sum(1)


class Sight(NamedTuple):
    """Some draws as the network saw them, and its answer: x, eps, x_hat [n, C, H, W] on its device, logsnr [n] float64."""

    x: Tensor
    eps: Tensor
    x_hat: Tensor
    logsnr: Tensor


More = Callable[[Sight], Tensor]
"""A further question to each draw, answered by numbers [parts, n] float64 on the CPU."""


@dataclass(frozen=True)
class MeasuredNetwork:
    """A network, what it outputs, and the range of logsnr that it is asked about.

    network: (z [B, C, H, W] scaled by the prediction's c_in, logsnr [B], labels [B] or None) → [B, C, H, W]. batch: its
    inputs at a time. precision: by the name that Precision has. name: for messages.
    """

    network: Network
    prediction: Prediction
    low: float
    high: float
    device: torch.device = torch.device("cpu")
    precision: str = "fp32"
    batch: int = 256
    name: str = "the network"

    def draws(
        self,
        images: Iterable[Images],
        weighting: Weighting,
        schedule: Schedule,
        count: int,
        seed: int,
        purpose: str,
        more: More | None = None,
    ) -> Iterator[Draws]:
        """All images, each at `count` noise levels, an even number. Another purpose is another independent set.

        more: what else is to be told of each draw. Raises UsageError for an odd number, NonFiniteError.
        """
        if count < 2 or count % 2:
            raise UsageError(f"draws is {count}; it must be even, because two independent halves tell the error")
        offsets, noise = (Stream(seed, f"bound-{what}-{purpose}") for what in ("t", "noise"))
        comb = np.arange(count // 2) / (count // 2)
        for some in images:
            t = (np.stack([offsets.uniform(int(row), 2) for row in some.rows])[:, :, None] + comb) % 1.0
            logsnr = schedule.logsnr(torch.from_numpy(t))
            yield Draws(some.content, logsnr, *self._losses(some, logsnr, weighting, schedule, noise, more))

    def denoise(self, z: Tensor, logsnr: float, labels: Tensor | None) -> Tensor:
        """x̂ [B, C, H, W] at one λ, in the precision of z. labels: on the device, or None."""
        c_in, from_z, from_out = self.prediction.scalars(logsnr)
        precision, level = Precision(self.precision, self.device), torch.full((len(z),), logsnr, device=z.device)
        with precision.applied(), precision.autocast():
            out = check_output(self.network((z * c_in).float(), level, labels), z)
        return z * from_z + out.to(z.dtype) * from_out

    def placed(self, images: Images) -> tuple[Tensor, Tensor | None]:
        """(x [B, C, H, W], labels or None) as the network takes them, on its device."""
        content, send = images.content, partial(sent, device=self.device)
        x = send(content) if content.is_floating_point() else normalised(content, self.device)
        return x, None if images.labels is None else send(images.labels)

    @torch.inference_mode()
    def _losses(
        self,
        images: Images,
        logsnr: Tensor,
        weighting: Weighting,
        schedule: Schedule,
        noise: Stream,
        more: More | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(loss, error, more) at each logsnr."""
        each, precision = logsnr[0].numel(), Precision(self.precision, self.device)
        send = partial(sent, device=self.device)
        x, labels = self.placed(images)
        parts, others = [], []
        for part in torch.arange(logsnr.numel()).split(self.batch):
            image = send(part // each)
            indices = [int(images.rows[k // each]) * each + k % each for k in part.tolist()]
            eps = send(noise.normal(indices, (*x.shape[2:], x.shape[1]))).permute(0, 3, 1, 2)
            level = logsnr.flatten()[part]
            given = None if labels is None else labels[image]
            how = weighting, schedule, self.prediction, send
            with precision.applied(), precision.autocast():
                loss, error, _, out = denoising_losses(self.network, x[image], eps, given, level, *how)
            parts.append(torch.stack([loss, error]))
            if more is not None:
                c = self.prediction.coefficients(level)
                rows = send(torch.stack([c.alpha, c.sigma, c.x_from_z, c.x_from_out]).float())
                alpha, sigma, from_z, from_out = rows.view(4, -1, 1, 1, 1)
                x_hat = torch.addcmul(alpha * x[image], sigma, eps) * from_z + out.float() * from_out
                others.append(more(Sight(x[image], eps, x_hat, level)))
        loss, error = (torch.cat(parts, 1).double().cpu() * x[0].numel()).view(2, *logsnr.shape)
        if not bool(loss.isfinite().all()):
            worst = float(logsnr[~loss.isfinite()][0])
            raise NonFiniteError(
                f"{self.name}: the loss is not finite at logsnr {worst:.4g}; try precision fp32, or a narrower range"
            )
        return loss, error, torch.cat(others, 1).view(-1, *logsnr.shape) if others else None
