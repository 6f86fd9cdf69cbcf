"""The variational bound of a denoiser on images, with the errors it has, its profile over λ, and its errors above the least."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import PLAIN, Draws, Images, MeasuredNetwork, Measurement, decoder_nats, open_data
from elbocli.bound.result import Bound, Nats
from elbocli.core.adaptive import BinSums, ErrorMoments, bin_edges
from elbocli.core.elbo import bits_per_dimension, by_cell, prior
from elbocli.core.estimate import PairedEstimate, PairedMoments
from elbocli.core.optimum import copying, excess, excess_by_bin
from elbocli.core.schedule import Schedule
from elbocli.core.streams import Stream
from elbocli.errors import UsageError
from elbocli.files import losslog
from elbocli.files.losslog import read_optimum
from elbocli.files.reading import reading
from elbocli.runtime.progress import log, progress
from elbocli.train.batches import training_rows

ENOUGH = 64
"""Images from which on an error is trusted."""
UNITS = ("bpd", "nats_per_latent_dimension")
"""Units per dimension, of pixels and of latents."""
COLUMNS = ("logsnr_low", "logsnr_high", "draws", "eps_mse", "eps_mse_se", "bound", "bound_se", "excess", "excess_se")


@dataclass(frozen=True)
class BoundEstimate:
    """The bound; and for each bin of λ the sums of a loss log [3, bins], and L(t;x) in nats at its upper edge.

    moments: the error per dimension, of `sums`. excess: the error above the least one, where an optimum is known. _se: standard
    errors.
    """

    bound: Bound
    sums: Tensor
    moments: ErrorMoments
    profile: Tensor
    profile_se: Tensor
    excess: Sequence[Tensor] = ()

    def tsv(self) -> str:
        """The curve over λ as a table with a header."""
        moments = self.moments
        mean = moments.mean.where(moments.count > 0, torch.nan)
        seen = moments.edges[:-1], moments.edges[1:], moments.count, mean, moments.mean_se
        table = torch.stack([*seen, self.profile, self.profile_se, *self.excess], 1)
        rows = [COLUMNS[: table.shape[1]], *([f"{value:.10g}" for value in row] for row in table.tolist())]
        return "".join("\t".join(row) + "\n" for row in rows)

    def log_text(self, asked: Measurement) -> str:
        """The errors as a loss log, so that `adapt` can fit a schedule to a finished run."""
        settings, trained = asked.trained.settings, asked.trained
        header = losslog.header(
            self.moments.edges,
            dimensions=asked.dimensions,
            weighting=settings.weighting,
            schedule=self.bound.schedule,
            prediction=settings.prediction,
        )
        images = int(trained.about.get("images_trained", self.sums[0].sum()))
        return header + losslog.line(max(1, trained.step), images, self.sums)

    def plot(self, out: Path) -> None:
        """Draw panels over λ: the ε error per dimension and L(t;x) in nats, each ± 2 standard errors."""
        from elbocli.cli.figure import ERROR, draw_band, finish, new_figure

        moments, edges, seen = self.moments, self.moments.edges, self.moments.count > 1
        sheet, axes = new_figure([["error"], ["bound"]], 6.0, 5.2)
        draw_band(axes["error"], moments.middle[seen], moments.mean[seen], moments.mean_se[seen])
        draw_band(axes["bound"], edges[1:], self.profile, self.profile_se)
        title = "error, and bound on data as noisy as λ, ± 2 standard errors"
        axes["error"].set(yscale="log", ylabel=ERROR, title=title)
        axes["bound"].set_ylabel(r"$L(\lambda; x)$ in nats")
        axes["bound"].set_ylim(bottom=0)
        finish(sheet, axes, ["bound"], float(edges[0]), float(edges[-1]), out)


class Terms:
    """Adds up the bound's terms: a vector per image of prior, reconstruction, and the integral over each cell of λ.

    schedule: of the draws.
    """

    def __init__(self, denoiser: MeasuredNetwork, schedule: Schedule):
        self.denoiser, self.schedule = denoiser, schedule
        self.low, self.high, self.population = denoiser.low, denoiser.high, denoiser.population
        self.edges, self.sums = bin_edges(self.low, self.high), BinSums(self.low, self.high)
        self.rounds = [PairedMoments()]
        self.dimensions, self.latent = 0, False

    def add(self, drawn: Draws) -> float:
        """Take in some images, all pixels or all latents. Reports the bound per dimension so far, and returns its standard
        error, infinite before the second image.
        """
        self.dimensions, self.latent = drawn.content[0].numel(), drawn.latent
        fixed = torch.stack([prior(drawn.x, self.low), decoder_nats(drawn.content, self.high)], 1)  # [B, 2]
        integral = by_cell(drawn.shares(self.schedule), drawn.logsnr, self.edges)  # [B, 2, cells]
        self.rounds[-1].add(torch.cat([fixed[:, None].expand(-1, 2, -1), integral], 2))
        self.sums.add(drawn.logsnr.flatten(), drawn.error.flatten() / self.dimensions)
        value, se = 0.0, math.inf
        if self.rounds[0].n > 1:
            estimate = self._estimate()
            share = np.full_like(estimate.mean, per_dimension(1.0, self.dimensions, self.latent))
            value, se = estimate.value(share), estimate.se(share, self.population)
        values: dict[str, Any] = {"nats/dim" if self.latent else "bpd": value, "se": se}
        progress(self.rounds[-1].n, self.denoiser.total, "img", **values)
        return se

    def _estimate(self) -> PairedEstimate:
        """All rounds pooled; a round that has not seen every image yet is left out, unless it is the first."""
        return PairedEstimate.pooled([r.estimate() for r in self.rounds if r.n == self.rounds[0].n])

    def result(self) -> BoundEstimate:
        """All of it. Raises UsageError when there is no second image."""
        estimate, population, unit = self._estimate(), self.population, UNITS[self.latent]
        place = np.arange(len(estimate.mean))
        whole = np.ones(len(place))
        share = whole * per_dimension(1.0, self.dimensions, self.latent)
        terms: dict[str, Any] = {}
        for name, chosen in (("prior", place == 0), ("reconstruction", place == 1), ("diffusion", place > 1)):
            of = chosen.astype(float)
            nats = estimate.value(of), estimate.se(of, population)
            terms[name] = Nats(**in_units(*nats, self.dimensions, self.latent))
        shares: dict[str, Any] = {
            unit: estimate.value(share),
            f"{unit}_se": estimate.se(share, population),
            f"{unit}_se_noise": estimate.noise_se(share),
            f"{unit}_se_population": estimate.se(share, np.inf),
        }
        bound = Bound(
            **shares,
            **terms,
            nats=estimate.value(whole),
            nats_se=estimate.se(whole, population),
            n_images=estimate.n,
            draws_per_image=self.denoiser.count * len(self.rounds),
            schedule=self.schedule.base,
        )
        upto = [((place == 0) | ((place > 1) & (place <= k))).astype(float) for k in place[2:]]
        profile = torch.tensor([(estimate.value(of), estimate.se(of, population)) for of in upto], dtype=torch.float64)
        sums = self.sums.values
        return BoundEstimate(bound, sums, ErrorMoments.of_sums(self.edges, sums), *profile.T)


def per_dimension(nats: float, dimensions: int, latent: bool) -> float:
    """Nats in all as bits per dimension; of latents as nats per dimension."""
    return nats / dimensions if latent else bits_per_dimension(nats, dimensions)


def in_units(nats: float, se: float, dimensions: int, latent: bool) -> dict[str, Any]:
    """The fields of a Nats."""
    value, error, unit = *(per_dimension(each, dimensions, latent) for each in (nats, se)), UNITS[latent]
    return {"nats": nats, "nats_se": se, unit: value, f"{unit}_se": error}


def estimate_bound(
    denoiser: MeasuredNetwork,
    images: Iterable[Images],
    schedule: Schedule,
    target_se: float | None = None,
) -> BoundEstimate:
    """Estimate the bound of any denoiser on any images.

    schedule: of the draws, from denoiser.low to denoiser.high; it changes the error, not the expectation. target_se: draw on,
    more images first and then more noise on all of them (`images` is gone through again), until the standard error per
    dimension is below it.
    Raises UsageError for fewer than two images, NonFiniteError.
    """
    terms = Terms(denoiser, schedule)
    for turn in itertools.count():
        se = math.inf
        for drawn in denoiser.draws(images, PLAIN, schedule, f"bound-{turn}"):
            se = terms.add(drawn)
            if target_se is not None and not turn and terms.rounds[0].n >= ENOUGH and se < target_se:
                break
        if target_se is None or not terms.rounds[-1].n or se < target_se:
            break
        terms.rounds.append(PairedMoments())
    return terms.result()


def measure_bound(asked: Measurement, schedule: str = "", target_se: float | None = None) -> BoundEstimate:
    """Estimate the bound of a run on a dataset.

    schedule: of the draws ('' is fitted to the run's own log). target_se: as in estimate_bound. Raises ElboError.
    """
    chosen = asked.schedule(schedule)
    asked.log_start(f"logsnr {asked.low:g} to {asked.high:g}, schedule {chosen.base}")
    return estimate_bound(asked, asked, chosen, target_se)


# Errors above the least ones, and whether a network copies: its errors on its own images beside those on others.


def open_own(asked: Measurement, optimum: Path) -> Measurement:
    """The same run, asked about as many of the images that it was trained on.

    Raises UsageError when the optimum is of other images or levels, and the errors of open_data.
    """
    least, trained = read_optimum(optimum), asked.trained
    known, run = trained.data.payload_sha256, trained.path
    if least.payload_sha256 != known:
        raise UsageError(
            f"{optimum}: is not of the images that {run} was trained on; find it by 'elbo optimum --like {run}'"
        )
    with reading(optimum, kind=UsageError):
        least.least(torch.tensor([asked.low, asked.high], dtype=torch.float64))
    same = asked.dataset.attributes.payload_sha256 == known
    dataset = asked.dataset if same else open_data(trained, None)
    chosen = training_rows(trained.settings, dataset)
    index, rows = (0, np.arange(len(dataset))) if chosen is None else (1, chosen)
    order = Stream(asked.seed, "bound-images").permutation(index, len(rows))
    own = rows[order[: asked.images]]
    return replace(asked, dataset=dataset, rows=own, population=len(dataset), total=len(own))


def add_excess(
    asked: Measurement, own: Measurement, optimum: Path, found: BoundEstimate, schedule: str = ""
) -> tuple[dict[str, Any], BoundEstimate]:
    """Compare errors with the least ones: the result's `excess`, and `found` with that of each bin.

    found: the bound of `asked`. own: of the images that the run was trained on; asked as well unless they are the same.
    The excess is of the loss with the run's weighting, in nats per dimension, which training can still gain.
    """
    least, here, weighting = read_optimum(optimum), found.moments, asked.trained.weighting()
    same = own.dataset is asked.dataset and set(own.rows) == set(asked.rows)
    there = here if same else measure_bound(own, schedule).moments
    errors = least.least(here.edges)
    gains = {"own": excess(there, *errors, weighting)}
    report: dict[str, Any] = {"weighting": weighting.spec, "optimum": str(optimum), "n_own": len(own.rows)}
    if not same:
        gains["new"] = excess(here, *errors, weighting)
        if copies := copying(gains["own"], gains["new"]):
            report["copying"] = {"share": copies.share, "se": copies.se, "verdict": copies.verdict}
            log.info(f"the network {copies.verdict}: {copies.share:.2f} ± {2 * copies.se:.2g} of 1")
    report |= {name: {"nats_per_dimension": gain.value, "se": gain.se} for name, gain in gains.items()}
    return report, replace(found, excess=excess_by_bin(here, *errors))
