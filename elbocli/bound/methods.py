"""The estimators of −log p: the variational bound, Kong's integral with a Gaussian, and the probability-flow equation.

The first two are ½ ∫ E‖ε−ε̂‖² dλ over noise levels, sampled. The third noises an image to the cleanest level, and follows
it from there to pure noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from elbocli.bound.draws import Draws, Images, MeasuredNetwork, Sight, decoder
from elbocli.core.adaptive import bin_edges
from elbocli.core.elbo import LEVELS, GaussianModel, log_density, prior, with_trace
from elbocli.core.prediction import alpha_sigma
from elbocli.core.schedule import Schedule, cell_of
from elbocli.core.streams import Stream
from elbocli.errors import NonFiniteError, UsageError
from elbocli.runtime.device import sent
from elbocli.runtime.progress import Progress

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


CELLS = 20
"""Cells of λ in which the information estimator chooses its denoiser and how much of the Gaussian it takes away."""
ENOUGH = 16
"""Draws in a cell from which on they may choose."""


def variational(asked: Question) -> Parts:
    """The bound as `elbo bound` has always had it."""
    seen = asked.seen
    assert seen is not None, "declared to need the draws"
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
    seen = asked.seen
    assert seen is not None, "declared to need the draws"
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


CHECKED = 32
"""Images on which the solver is tried with half its steps."""


def ode(asked: Question, steps: float, draws: float, probes: float, exact: float) -> Generator[Progress, None, Parts]:
    """Noise an image to the cleanest level, and follow the equation from there to noise by Heun's method.

    steps: even ones in λ. draws: of the noise and the signs, for each image. probes: vectors of signs for each; exact: images
    of at most so many numbers have the whole trace instead. The decoder is the variational bound's.
    """
    for name, value in (("steps", steps), ("draws", draws), ("probes", probes), ("exact", exact)):
        if value != int(value) or (name in ("steps", "draws") and value % 2):
            even = "an even" if name in ("steps", "draws") else "a whole"
            raise UsageError(f"ode: {name} is {value:g}; it must be {even} number")
    count, how = int(steps), (int(draws), int(probes), int(exact))
    found, reads, coarse, fine = [], [], [], []
    # All walks of a piece take a quarter of the network's batch: backward passes keep more.
    for some in _pieces(asked.images, max(1, asked.denoiser.batch // 4 // int(draws))):
        found.append(_flow(asked, some, count, *how))
        reads.append(decoder(some.content, asked.denoiser.high)[:, None].expand(-1, 2))
        done = sum(map(len, found))
        if len(found) == 1 or done <= CHECKED:
            coarse.append(_flow(asked, some, count // 2, *how)[..., 0].mean())
            fine.append(found[-1][..., 0].mean())
        yield Progress(done, asked.total, "img")
    of_q, square = torch.cat(found).unbind(2)
    flowed = of_q - slopes(of_q, square)[:, None] * square
    # The method is of second order: half the steps have four times the error.
    solver = float(torch.stack(coarse).mean() - torch.stack(fine).mean()) / 3
    nats = torch.stack([torch.cat(reads), flowed], 2)
    return Parts(("reconstruction", "flow"), nats, 2 * count * int(draws), solver)


def _pieces(images: Iterable[Images], size: int) -> Iterable[Images]:
    """The images, at most `size` at a time."""
    for some in images:
        for start in range(0, len(some.rows), size):
            of = slice(start, start + size)
            yield Images(some.content[of], None if some.labels is None else some.labels[of], some.rows[of])


def _flow(asked: Question, images: Images, steps: int, draws: int, probes: int, exact: int) -> Tensor:
    """[B, 2, 2]: E[log q(z₀|x)] − log p(z₀) of each half of the draws; and ½‖ε‖² of the noise less its expectation."""
    denoiser = asked.denoiser
    noise, random_signs = (Stream(asked.seed, f"bound-ode-{what}") for what in ("noise", "signs"))
    x, labels = denoiser.placed(images)
    size, low, high = x[0].numel(), denoiser.low, denoiser.high
    alpha, sigma = alpha_sigma(high)
    rows = [int(row) * draws + k for row in images.rows for k in range(draws)]

    def drawn(values: Tensor) -> Tensor:
        return sent(values, x.device).permute(0, 3, 1, 2).double()

    shape = (*x.shape[2:], x.shape[1])
    eps = drawn(noise.normal(rows, shape))
    signs = [drawn(random_signs.signs([row * probes + k for row in rows], shape)) for k in range(probes)]
    z = alpha * x.double().repeat_interleave(draws, 0) + sigma * eps
    given = None if labels is None else labels.repeat_interleave(draws, 0)
    denoise = with_trace(lambda at, level: denoiser.denoise(at, level, given), None if size <= exact else signs)
    with torch.no_grad():
        log_p = log_density(z, denoise, high, low, steps)
    if not bool(log_p.isfinite().all()):
        raise NonFiniteError(f"{denoiser.name}: the flow is not finite; try precision fp32, or a narrower range")
    log_q = -size * (0.5 * math.log(2 * math.pi * math.e) + math.log(sigma))
    square = 0.5 * eps.square().flatten(1).sum(1) - 0.5 * size
    return torch.stack([log_q - log_p, square], 1).cpu().view(-1, 2, draws // 2, 2).mean(2)
