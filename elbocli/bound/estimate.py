"""The variational bound of a denoiser on images, with the errors it has, and its profile over λ."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from elbocli.bound.draws import Draws, Images, MeasuredNetwork, decoder
from elbocli.bound.measure import Measurement
from elbocli.bound.result import Bound, LatentBound, LatentTerm, Term
from elbocli.core.adaptive import BinSums, ErrorMoments, bin_edges
from elbocli.core.elbo import bits_per_dimension, by_cell, prior
from elbocli.core.estimate import PairedEstimate, PairedMoments
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
        """The curve as a table with a header."""
        known = self.moments
        mean = known.mean.where(known.count > 0, torch.nan)
        columns = [known.edges[:-1], known.edges[1:], known.count, mean, known.mean_se, self.bound, self.bound_se]
        lines = ["logsnr_low logsnr_high draws eps_mse eps_mse_se bound bound_se".replace(" ", "\t")]
        lines += ["\t".join(f"{v:.10g}" for v in row) for row in torch.stack(columns, 1).tolist()]
        return "\n".join(lines) + "\n"

    def plot(self, out: Path) -> None:
        """Draw panels over λ: the ε error per dimension and L(t;x) in nats, each ± 2 standard errors."""
        from elbocli.cli.figure import ERROR, draw_band, finish, new_figure

        moments, edges, seen = self.moments, self.moments.edges, self.moments.count > 1
        sheet, axes = new_figure([["error"], ["bound"]], 6.0, 5.2)
        draw_band(axes["error"], moments.middle[seen], moments.mean[seen], moments.mean_se[seen])
        draw_band(axes["bound"], edges[1:], self.bound, self.bound_se)
        axes["error"].set_yscale("log")
        axes["error"].set_ylabel(ERROR)
        axes["error"].set_title("error, and bound on data as noisy as λ, ± 2 standard errors")
        axes["bound"].set_ylabel(r"$L(\lambda; x)$ in nats")
        axes["bound"].set_ylim(bottom=0)
        finish(sheet, axes, ["bound"], float(edges[0]), float(edges[-1]), out)


@dataclass(frozen=True)
class BoundEstimate:
    """The bound, its curve, and the sums of a loss log [3, bins]."""

    bound: Bound | LatentBound
    curve: BoundCurve
    sums: Tensor


class Terms:
    """Adds up the bound's terms: a vector per image of prior, reconstruction, and the integral over each cell of λ.

    population: how many images there are (inf: those of a distribution).
    """

    def __init__(self, low: float, high: float, schedule: Schedule, population: float):
        self.low, self.high, self.schedule, self.population = low, high, schedule, population
        self.edges = bin_edges(low, high)
        self.sums = BinSums(low, high)
        self.rounds = [PairedMoments()]
        self.dimensions, self.latent = 0, False

    def add(self, drawn: Draws) -> None:
        """Take in some images: all pixels, or all latents."""
        self.dimensions, self.latent = drawn.content[0].numel(), drawn.levels is None
        fixed = torch.stack([prior(drawn.x, self.low), decoder(drawn.content, self.high)], 1)  # [B, 2]
        integral = by_cell(drawn.shares(self.schedule), drawn.logsnr, self.edges)  # [B, 2, cells]
        self.rounds[-1].add(torch.cat([fixed[:, None].expand(-1, 2, -1), integral], 2))
        self.sums.add(drawn.logsnr.flatten(), drawn.error.flatten() / self.dimensions)

    def estimate(self) -> PairedEstimate:
        """All rounds pooled; a round that has not seen every image yet is left out, unless it is the first."""
        whole = [r.estimate() for r in self.rounds if r.n == self.rounds[0].n and r.n > 1]
        return PairedEstimate.pooled(whole)

    def per_dimension(self, nats: float) -> float:
        """Nats in all as bits per dimension; of latents as nats per dimension."""
        return nats / self.dimensions if self.latent else bits_per_dimension(nats, self.dimensions)

    def bound(self) -> tuple[float, float]:
        """(bound per dimension, standard error) so far; the error is infinite before the second image."""
        if self.rounds[0].n < 2:
            return 0.0, math.inf
        estimate = self.estimate()
        share = np.full_like(estimate.mean, self.per_dimension(1.0))
        return estimate.value(share), estimate.se(share, self.population)

    def result(self, draws: int) -> BoundEstimate:
        """All of it. draws: for each image in each round. Raises UsageError when there is no second image."""
        if self.rounds[0].n < 2:
            raise UsageError("a standard error needs at least two images")
        estimate, population = self.estimate(), self.population
        place = np.arange(len(estimate.mean))
        whole = np.ones(len(place))
        share = whole * self.per_dimension(1.0)
        kind, of = (LatentBound, LatentTerm) if self.latent else (Bound, Term)

        def term(chosen: np.ndarray) -> Any:
            each = estimate.value(chosen.astype(float)), estimate.se(chosen.astype(float), population)
            return of(*each, *map(self.per_dimension, each))

        bound = kind(
            estimate.value(share),
            estimate.se(share, population),
            estimate.noise_se(share),
            estimate.se(share, np.inf),
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
        profile = torch.tensor([(estimate.value(of), estimate.se(of, population)) for of in upto], dtype=torch.float64)
        curve = BoundCurve(ErrorMoments.of_sums(self.edges, self.sums.values), *profile.T)
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
    the standard error per dimension is below it. total: images, for the progress.
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
                value, se = terms.bound()
                yield Progress(seen.n, total, "img", values={"nats/dim" if terms.latent else "bpd": value, "se": se})
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
    chosen = asked.schedule(schedule, parse_weighting("elbo"))
    draws, seed, total, n = asked.settings.draws, asked.settings.seed, len(asked.rows), len(asked.dataset)
    rounds = estimate_bound(
        asked.denoiser, asked, chosen, draws=draws, seed=seed, population=n, target_se=target_se, total=total
    )
    message = (
        f"{asked.trained.path}: {asked.trained.checkpoint.path.name}; {total} of {n} images, {draws} draws each, "
        f"logsnr {asked.low:g} to {asked.high:g}, schedule {chosen.base}; {asked.device}, {asked.precision}"
    )
    yield Progress(0, total, "img", message)
    found = yield from rounds
    return replace(found, bound=structs.replace(found.bound, about=asked.about()))


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
    return header + losslog.line(
        max(1, asked.trained.step), int(about.get("images_trained", found.sums[0].sum())), found.sums
    )
