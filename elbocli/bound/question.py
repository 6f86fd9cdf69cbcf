"""Questions to an estimator of −log p, its means and its answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from elbocli.bound.draws import Images, MeasuredNetwork
from elbocli.core.elbo import reconstruction, reconstruction_of_numbers
from elbocli.core.schedule import Schedule

ENOUGH = 16
"""Images from which on they say how much of a known chance to take away from others."""


@dataclass(frozen=True)
class Seen:
    """All draws of all images. logsnr, error, rounded, gaussian, expected: [N, 2, K]: λ, ‖ε−ε̂‖² of the network, of its x̂
    rounded to the nearest level, of the Gaussian, and of that the expectation. prior, read: [N] nats below and above the
    range, as the variational bound has them; below: [N, 2], the Gaussian's up to both ends of the range; nats: [N] its −log p.
    """

    schedule: Schedule
    latent: bool
    logsnr: Tensor
    error: Tensor
    rounded: Tensor
    gaussian: Tensor
    expected: Tensor
    prior: Tensor
    read: Tensor
    below: Tensor
    nats: Tensor

    def integral(self, error: Tensor) -> Tensor:
        """½ ∫ error dλ from each half of the draws. error: [N, 2, K] → [N, 2]."""
        return (0.5 * error / self.schedule.density(self.logsnr)).mean(2)


class Parts(NamedTuple):
    """Two independent estimates of every image. nats: [N, 2, len(names)], which add up. solver: as Estimate has it."""

    names: tuple[str, ...]
    nats: Tensor
    evaluations: int
    solver: float | None = None


@dataclass(frozen=True)
class Question:
    """Means of an estimator: the network, the images, the seed; the draws, where it is declared to need them."""

    denoiser: MeasuredNetwork
    images: Iterable[Images]
    seed: int
    total: int | None = None
    seen: Seen | None = None


def decoder(content: Tensor, logsnr_max: float) -> Tensor:
    """E[−log p(x|z₀)] of each image, [B] nats. content: as Images has it."""
    if content.is_floating_point():
        each = reconstruction_of_numbers(logsnr_max) * content[0].numel()
        return torch.full((len(content),), each, dtype=torch.float64)
    return reconstruction(logsnr_max)[content.long()].flatten(1).sum(1)


def slopes(value: Tensor, known: Tensor) -> Tensor:
    """Multiples of `known`, whose mean is zero, to take away from each image's value, by least squares over the differences of halves
    of other images: the odd ones tell of the even ones. [N, 2], [N, 2] → [N].
    """
    odd = torch.arange(len(value)) % 2 == 1
    found = torch.zeros(len(value), dtype=torch.float64)
    for here, told in ((odd, ~odd), (~odd, odd)):
        if int(told.sum()) >= ENOUGH:
            by, of = known[told].diff(dim=1), value[told].diff(dim=1)
            found[here] = (by * of).sum() / by.square().sum().clamp(min=1e-30)
    return found
