"""−log p by the integral ½ ∫ E‖ε−ε̂‖² dλ over noise levels, sampled: the variational bound, and Kong's with a Gaussian."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from elbocli.bound.draws import Draws, Sight
from elbocli.bound.question import Parts, Question, Seen, decoder, slopes
from elbocli.core.adaptive import bin_edges
from elbocli.core.elbo import LEVELS, GaussianModel, prior
from elbocli.core.schedule import Schedule, cell_of

CELLS = 20
"""Cells of λ in which the information estimator chooses its denoiser and how much of the Gaussian it takes away."""
ENOUGH = 16
"""Draws in a cell from which on they may choose."""


def variational(asked: Question) -> Parts:
    """The bound as `elbo bound` has always had it."""
    seen = _drawn(asked)
    fixed = [part[:, None].expand(-1, 2) for part in (seen.prior, seen.read)]
    names = ("prior", "reconstruction", "diffusion")
    return Parts(names, torch.stack([*fixed, seen.integral(seen.error)], 2), seen.logsnr[0].numel())


def information(asked: Question) -> Parts:
    """The integral over all of λ: closed where a Gaussian or the levels alone say it, sampled between.

    Below the range of the network the data's Gaussian denoises; above it the softmax over the levels does, or for latents
    the Gaussian. Within it, in each of CELLS cells, x̂ or x̂ rounded does, whichever errs less on the other half of the
    draws. The Gaussian takes chance away twice. From each draw β times what its own error, of the same noise, lies above its
    expectation (β of the cell, from the other half); and from the sum γ times what its sampled integral lies above the
    closed one (γ from other images). Both are by least squares; where the data are Gaussian, both are 1 and nothing is
    left to chance.
    """
    seen = _drawn(asked)
    edges = bin_edges(seen.schedule.logsnr_min, seen.schedule.logsnr_max, CELLS)
    cell, noise = cell_of(seen.logsnr, edges), seen.gaussian - seen.expected
    error = seen.error.clone()
    for half, k in itertools.product((0, 1), range(CELLS)):
        told, here, chosen = cell[:, 1 - half] == k, cell[:, half] == k, seen.error
        if int(told.sum()) < ENOUGH:
            continue
        if not seen.latent and seen.rounded[:, 1 - half][told].mean() < seen.error[:, 1 - half][told].mean():
            chosen = seen.rounded
        by = [
            torch.ones(int(told.sum()), dtype=torch.float64),
            *(each[:, 1 - half][told] for each in (seen.expected, noise)),
        ]
        beta = torch.linalg.lstsq(torch.stack(by, 1), chosen[:, 1 - half][told][:, None], driver="gelsd").solution[2, 0]
        error[:, half][here] = chosen[:, half][here] - beta * noise[:, half][here]
    sampled = seen.integral(error)
    away = seen.integral(seen.expected) - (seen.below[:, 1] - seen.below[:, 0])[:, None]
    inside = sampled - slopes(sampled, away)[:, None] * away
    above = seen.nats - seen.below[:, 1] if seen.latent else seen.read
    fixed = [part[:, None].expand(-1, 2) for part in (seen.below[:, 0], above)]
    names = ("prior", "reconstruction", "diffusion")
    return Parts(names, torch.stack([*fixed, inside], 2), seen.logsnr[0].numel())


def _drawn(asked: Question) -> Seen:
    assert asked.seen is not None, "declared to need the draws"
    return asked.seen


def errors_besides(gaussian: GaussianModel, latent: bool) -> Callable[[Sight], Tensor]:
    """The errors of each draw that the information estimator needs: [rounded, gaussian, expected]."""

    def told(sight: Sight) -> Tensor:
        rounded = torch.zeros(len(sight.x), dtype=torch.float64)
        if not latent:
            half = (LEVELS - 1) / 2
            level = ((sight.x_hat + 1) * half).round_().clamp_(0, LEVELS - 1).mul_(1 / half).sub_(1)
            rounded = (sight.x - level).square().flatten(1).sum(1).double().cpu() * sight.logsnr.exp()
        return torch.stack([rounded, *gaussian.errors(sight.x, sight.eps, sight.logsnr)])

    return told


class SeenSums:
    """Takes in draws, and gives all of them. gaussian: None where no estimator needs it; zeros take its place."""

    def __init__(self, gaussian: GaussianModel | None, schedule: Schedule):
        self.gaussian, self.schedule, self.latent = gaussian, schedule, False
        self.edges = torch.tensor([schedule.logsnr_min, schedule.logsnr_max], dtype=torch.float64)
        self.parts: list[tuple[Tensor, ...]] = []

    def add(self, drawn: Draws) -> None:
        """Take in some images, drawn with errors_besides where there is a Gaussian."""
        self.latent = drawn.levels is None
        x = drawn.x if self.latent else drawn.x.permute(0, 3, 1, 2)  # as the network, and so the Gaussian, sees it
        read = decoder(drawn.content, self.schedule.logsnr_max)
        ends = prior(drawn.x, self.schedule.logsnr_min), read
        more = torch.zeros(3, *drawn.error.shape, dtype=torch.float64) if drawn.more is None else drawn.more
        closed = torch.zeros(len(x), len(self.edges), dtype=torch.float64), torch.zeros_like(read)
        if self.gaussian is not None:
            closed = self.gaussian.upto(x, self.edges), self.gaussian.nats(x)
        self.parts.append((drawn.logsnr, drawn.error, *more, *ends, *closed))

    def seen(self) -> Seen:
        """All of them."""
        return Seen(self.schedule, self.latent, *(torch.cat(column) for column in zip(*self.parts, strict=True)))
