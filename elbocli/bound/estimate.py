"""The variational bound of a denoiser on images, with the errors it has, and its profile over λ."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.draws import Draws, Images, MeasuredNetwork
from elbocli.bound.measure import Measurement
from elbocli.bound.result import Bound, Term
from elbocli.core.adaptive import BinSums, ErrorMoments, bin_edges
from elbocli.core.elbo import bits_per_dimension, by_cell, prior, reconstruction
from elbocli.core.paired import PairedEstimate, PairedMoments
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import parse_weighting
from elbocli.errors import UsageError
from elbocli.files import losslog
from elbocli.runtime.progress import Progress

ENOUGH = 64
"""Images from which on an error is trusted."""


@dataclass(frozen=True)
class BoundCurve:
    """Per bin of λ: the error per dimension and L(t;x) in nats at its upper edge, each with a standard error."""

    moments: ErrorMoments
    bound: Tensor
    bound_se: Tensor

    def tsv(self) -> str:
        """As a table with a header."""
        columns = {
            "logsnr_low": self.moments.edges[:-1],
            "logsnr_high": self.moments.edges[1:],
            "draws": self.moments.count,
            "eps_mse": self.moments.mean.where(self.moments.count > 0, torch.nan),
            "eps_mse_se": self.moments.mean_se,
            "bound": self.bound,
            "bound_se": self.bound_se,
        }
        rows = zip(*(column.tolist() for column in columns.values()))
        return "\n".join(["\t".join(columns), *("\t".join(f"{v:.10g}" for v in row) for row in rows)]) + "\n"


@dataclass(frozen=True)
class BoundEstimate:
    """The bound, its curve, and the sums of a loss log [3, bins]."""

    bound: Bound
    curve: BoundCurve
    sums: Tensor


class Terms:
    """Adds up the bound's terms: a vector per image of prior, reconstruction, and the integral over each cell of λ.

    population: how many images there are (inf: those of a distribution).
    """

    def __init__(self, low: float, high: float, schedule: Schedule, population: float):
        self.low, self.schedule, self.population = low, schedule, population
        self.edges = bin_edges(low, high)
        self.decoder = reconstruction(high)
        self.sums = BinSums(low, high)
        self.rounds = [PairedMoments()]
        self.dimensions = 0

    def add(self, drawn: Draws) -> None:
        """Take in some images."""
        self.dimensions = drawn.pixels[0].numel()
        read = self.decoder[drawn.pixels.long()].flatten(1).sum(1)
        fixed = torch.stack([prior(drawn.x, self.low), read], 1)  # [B, 2]
        part = 0.5 * drawn.error / self.schedule.density(drawn.logsnr) / drawn.error.shape[-1]
        integral = by_cell(part, drawn.logsnr, self.edges)  # [B, 2, cells]
        pairs = torch.cat([fixed[:, None].expand(-1, 2, -1), integral], 2)
        self.rounds[-1].add(pairs)
        self.sums.add(drawn.logsnr.flatten(), drawn.error.flatten() / self.dimensions)

    def estimate(self) -> PairedEstimate:
        """All rounds pooled; a round that has not seen every image yet is left out, unless it is the first."""
        whole = [r.estimate() for r in self.rounds if r.n == self.rounds[0].n and r.n > 1]
        return PairedEstimate.pooled(whole)

    def bpd(self) -> tuple[float, float]:
        """(bits per dimension, standard error) so far; the error is infinite before the second image."""
        if self.rounds[0].n < 2:
            return 0.0, math.inf
        estimate = self.estimate()
        bits = np.ones_like(estimate.mean) / (self.dimensions * np.log(2))
        return estimate.value(bits), estimate.se(bits, self.population)

    def result(self, draws: int) -> BoundEstimate:
        """All of it. draws: for each image in each round. Raises UsageError when there is no second image."""
        if self.rounds[0].n < 2:
            raise UsageError("a standard error needs at least two images")
        estimate, population = self.estimate(), self.population
        place = np.arange(len(estimate.mean))
        whole = np.ones(len(place))
        bits = whole / (self.dimensions * np.log(2))

        def term(chosen: np.ndarray) -> Term:
            of = chosen.astype(float)
            nats, se = estimate.value(of), estimate.se(of, population)
            return Term(nats, se, bits_per_dimension(nats, self.dimensions), bits_per_dimension(se, self.dimensions))

        bound = Bound(
            bpd=estimate.value(bits),
            bpd_se=estimate.se(bits, population),
            bpd_se_noise=estimate.noise_se(bits),
            bpd_se_population=estimate.se(bits, np.inf),
            nats=estimate.value(whole),
            nats_se=estimate.se(whole, population),
            prior=term(place == 0),
            reconstruction=term(place == 1),
            diffusion=term(place > 1),
            n_images=estimate.n,
            draws_per_image=draws * len(self.rounds),
            schedule=self.schedule.base,
        )
        upto = [((place == 0) | ((place > 1) & (place <= k))).astype(float) for k in place[2:]]
        curve = BoundCurve(
            ErrorMoments.of_sums(self.edges, self.sums.values),
            torch.tensor([estimate.value(of) for of in upto], dtype=torch.float64),
            torch.tensor([estimate.se(of, population) for of in upto], dtype=torch.float64),
        )
        return BoundEstimate(bound, curve, self.sums.values)


def estimate_bound(
    denoiser: MeasuredNetwork,
    images: Iterable[Images],
    schedule: Schedule,
    *,
    draws: int = 16,
    seed: int = 0,
    population: float = math.inf,
    target_se: float | None = None,
    total: int | None = None,
) -> Generator[Progress, None, BoundEstimate]:
    """Estimate the bound of any denoiser on any images; the last value is a BoundEstimate.

    schedule: of the draws, from denoiser.low to denoiser.high; it changes the error, not the expectation. draws: noise
    levels for each image, an even number. population: how many images these are chosen from; inf: a distribution.
    target_se: draw on, more images first and then more noise on all of them (`images` is gone through again), until
    the standard error of bpd is below it. total: images, for the progress.
    Raises UsageError for a schedule of another range or fewer than two images, NonFiniteError.
    """
    low, high = denoiser.low, denoiser.high
    if (schedule.logsnr_min, schedule.logsnr_max) != (low, high):
        raise UsageError(
            f"schedule {schedule.base} covers logsnr {schedule.logsnr_min:g} to {schedule.logsnr_max:g} only, and the bound "
            f"needs {low:g} to {high:g}"
        )
    terms, plain = Terms(low, high, schedule, population), parse_weighting("elbo")

    def rounds() -> Generator[Progress, None, BoundEstimate]:
        while True:
            turn, seen = len(terms.rounds) - 1, terms.rounds[-1]
            for drawn in denoiser.draws(images, plain, schedule, draws, seed, f"bound-{turn}"):
                terms.add(drawn)
                bpd, se = terms.bpd()
                yield Progress(seen.n, total, "img", values={"bpd": bpd, "se": se})
                if target_se is not None and not turn and seen.n >= ENOUGH and se < target_se:
                    return terms.result(draws)
            if not seen.n and turn:
                raise UsageError("the images can't be gone through again, as a target for the error may need")
            if target_se is None or not seen.n or se < target_se:
                return terms.result(draws)
            terms.rounds.append(PairedMoments())

    return rounds()


def run(
    asked: Measurement, schedule: str = "", target_se: float | None = None
) -> Generator[Progress, None, BoundEstimate]:
    """Estimate the bound of a run on a dataset.

    schedule: of the draws ('' is fitted to the run's own log). target_se: as in estimate_bound. Raises ElboError.
    """
    plain = parse_weighting("elbo")
    chosen = asked.schedule(schedule, plain) if schedule else asked.fitted(plain)
    total, draws = len(asked.rows), asked.settings.draws
    rounds = estimate_bound(
        asked.denoiser,
        asked.images,
        chosen,
        draws=draws,
        seed=asked.settings.seed,
        population=len(asked.dataset),
        target_se=target_se,
        total=total,
    )
    message = (
        f"{asked.trained.path}: {asked.trained.checkpoint.path.name}; {total} of {len(asked.dataset)} images, "
        f"{draws} draws each, logsnr {asked.low:g} to {asked.high:g}, schedule {chosen.base}"
    )
    yield Progress(0, total, "img", message)
    found = yield from rounds
    return replace(found, bound=replace(found.bound, about=asked.about()))


def log_text(asked: Measurement, found: BoundEstimate) -> str:
    """The errors as a loss log, so that `adapt` can fit a schedule to a finished run."""
    settings = asked.trained.settings
    header = losslog.header(
        found.curve.moments.edges,
        dimensions=asked.dimensions,
        weighting=settings.weighting,
        schedule=found.bound.schedule,
        prediction=settings.prediction,
    )
    about = asked.trained.about
    return header + losslog.line(int(about["step"]), int(about["images_trained"]), found.sums)
