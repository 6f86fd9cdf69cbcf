"""−log p by the probability-flow equation: noise an image to the cleanest level, and follow it from there to pure noise."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable

import torch
from torch import Tensor

from elbocli.bound.draws import Images
from elbocli.bound.question import Parts, Question, decoder, slopes
from elbocli.core.elbo import log_density, with_trace
from elbocli.core.prediction import alpha_sigma
from elbocli.core.streams import Stream
from elbocli.errors import NonFiniteError, UsageError
from elbocli.runtime.device import sent
from elbocli.runtime.progress import Progress

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
    walked = _Walks(asked, int(draws), int(probes), int(exact))
    found, reads, coarse, fine = [], [], [], []
    for some in walked.pieces():
        found.append(walked.flow(some, int(steps)))
        reads.append(decoder(some.content, asked.denoiser.high)[:, None].expand(-1, 2))
        done = sum(map(len, found))
        if len(found) == 1 or done <= CHECKED:
            coarse.append(walked.flow(some, int(steps) // 2)[..., 0].mean())
            fine.append(found[-1][..., 0].mean())
        yield Progress(done, asked.total, "img")
    of_q, square = torch.cat(found).unbind(2)
    flowed = of_q - slopes(of_q, square)[:, None] * square
    # The method is of second order: half the steps have four times the error.
    solver = float(torch.stack(coarse).mean() - torch.stack(fine).mean()) / 3
    nats = torch.stack([torch.cat(reads), flowed], 2)
    return Parts(("reconstruction", "flow"), nats, 2 * int(steps) * int(draws), solver)


class _Walks:
    """−log p of images by the probability-flow equation."""

    def __init__(self, asked: Question, draws: int, probes: int, exact: int):
        self.asked, self.draws, self.probes, self.exact = asked, draws, probes, exact
        self.noise, self.signs = (Stream(asked.seed, f"bound-ode-{what}") for what in ("noise", "signs"))

    def pieces(self) -> Iterable[Images]:
        """The images, as many at a time as all walks of them take a quarter of the network's batch: backward passes keep
        more.
        """
        size = max(1, self.asked.denoiser.batch // 4 // self.draws)
        for some in self.asked.images:
            for start in range(0, len(some.rows), size):
                of = slice(start, start + size)
                yield Images(some.content[of], None if some.labels is None else some.labels[of], some.rows[of])

    def flow(self, images: Images, steps: int) -> Tensor:
        """[B, 2, 2]: E[log q(z₀|x)] − log p(z₀) of each half of the draws; and ½‖ε‖² of the noise less its expectation."""
        denoiser, draws = self.asked.denoiser, self.draws
        x, labels = denoiser.placed(images)
        size, low, high = x[0].numel(), denoiser.low, denoiser.high
        alpha, sigma = alpha_sigma(high)
        rows = [int(row) * draws + k for row in images.rows for k in range(draws)]

        def drawn(values: Tensor) -> Tensor:
            return sent(values, x.device).permute(0, 3, 1, 2).double()

        shape = (*x.shape[2:], x.shape[1])
        eps = drawn(self.noise.normal(rows, shape))
        signs = [drawn(self.signs.signs([row * self.probes + k for row in rows], shape)) for k in range(self.probes)]
        z = alpha * x.double().repeat_interleave(draws, 0) + sigma * eps
        given = None if labels is None else labels.repeat_interleave(draws, 0)
        denoise = with_trace(
            lambda at, level: denoiser.denoise(at, level, given), None if size <= self.exact else signs
        )
        with torch.no_grad():
            log_p = log_density(z, denoise, high, low, steps)
        if not bool(log_p.isfinite().all()):
            raise NonFiniteError(f"{denoiser.name}: the flow is not finite; try precision fp32, or a narrower range")
        log_q = -size * (0.5 * math.log(2 * math.pi * math.e) + math.log(sigma))
        square = 0.5 * eps.square().flatten(1).sum(1) - 0.5 * size
        return torch.stack([log_q - log_p, square], 1).cpu().view(-1, 2, draws // 2, 2).mean(2)
