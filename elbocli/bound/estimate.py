"""The variational bound of a denoiser on images, with the errors it has, its profile over λ, and its errors above the least."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import PLAIN, Draws, Images, MeasuredNetwork, Measurement, open_data
from elbocli.bound.result import Bound, Nats
from elbocli.core.adaptive import BinSums, ErrorMoments, bin_edges
from elbocli.core.elbo import GaussianModel, by_cell
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
        trained = asked.trained
        specs = {"weighting": trained.settings.weighting, "prediction": trained.settings.prediction}
        about = {"dimensions": asked.dimensions, "schedule": self.bound.schedule, **specs}
        images = int(trained.about.get("images_trained", self.sums[0].sum()))
        return losslog.header(self.moments.edges, **about) + losslog.line(max(1, trained.step), images, self.sums)

    def plot(self, out: Path) -> None:
        """Draw panels over λ: the ε error per dimension and L(t;x) in nats, each ± 2 standard errors."""
        from elbocli.cli.figure import ERROR, draw_band, finish, new_figure

        moments, edges, seen = self.moments, self.moments.edges, self.moments.count > 1
        sheet, axes = new_figure([["error"], ["bound"]], 6.0, 5.2)
        draw_band(axes["error"], moments.middle[seen], moments.mean[seen], moments.mean_se[seen])
        draw_band(axes["bound"], edges[1:], self.profile, self.profile_se)
        title = "error, and bound on data as noisy as λ, ± 2 standard errors"
        axes["error"].set(yscale="log", ylabel=ERROR, title=title)
        axes["bound"].set(ylabel=r"$L(\lambda; x)$ in nats")
        axes["bound"].set_ylim(bottom=0)
        finish(sheet, axes, ["bound"], float(edges[0]), float(edges[-1]), out)


def in_units(nats: float, se: float, some: Images) -> dict[str, float]:
    """The fields of a Nats, for images like these."""
    unit = UNITS[some.latent]
    return {"nats": nats, "nats_se": se, unit: nats / some.divisor, f"{unit}_se": se / some.divisor}


def estimate_bound(
    denoiser: MeasuredNetwork,
    images: Iterable[Images],
    schedule: Schedule,
    target_se: float | None = None,
    gaussian: GaussianModel | None = None,
    kept: list[Draws] | None = None,
) -> BoundEstimate:
    """Estimate the bound of any denoiser on any images.

    schedule: of the draws, from denoiser.low to denoiser.high; it changes the error, not the expectation. target_se: draw on,
    more images first and then more noise on all of them (`images` is gone through again), until the standard error per
    dimension is below it. gaussian: as MeasuredNetwork.draw takes it. kept: takes all draws.
    Raises UsageError for fewer than two images, NonFiniteError.
    """
    low, high, population = denoiser.low, denoiser.high, denoiser.population
    edges, sums, rounds, se = bin_edges(low, high), BinSums(low, high), list[PairedMoments](), math.inf

    def pooled() -> PairedEstimate:
        """All rounds; one that has not seen every image yet is left out, unless it is the first."""
        return PairedEstimate.pooled([each.estimate() for each in rounds if each.n == rounds[0].n])

    while not rounds or (target_se is not None and rounds[-1].n and se >= target_se):
        rounds.append(PairedMoments())
        for some in images:
            drawn = denoiser.draw(some, PLAIN, schedule, f"bound-{len(rounds) - 1}", gaussian)
            if kept is not None:
                kept.append(drawn)
            fixed = torch.stack([drawn.below, drawn.above], 1)[:, None].expand(-1, 2, -1)
            integral = by_cell(drawn.shares(schedule), drawn.logsnr, edges)  # [B, 2, cells]
            rounds[-1].add(torch.cat([fixed, integral], 2))
            sums.add(drawn.logsnr.flatten(), drawn.error.flatten() / some.content[0].numel())
            if rounds[0].n > 1:
                estimate, unit = pooled(), UNITS[some.latent]
                share = np.full(len(estimate.mean), 1 / some.divisor)
                value, se = estimate.value(share), estimate.se(share, population)
                progress(rounds[-1].n, denoiser.total, "img", "", **{unit: value, "se": se})
            if target_se is not None and len(rounds) == 1 and rounds[0].n >= ENOUGH and se < target_se:
                break
    estimate = pooled()
    place = np.arange(len(estimate.mean))
    whole, diffusion = np.ones(len(place)), place > 1

    def nats(of: np.ndarray) -> tuple[float, float]:
        return estimate.value(of), estimate.se(of, population)

    parts = {"prior": place == 0, "reconstruction": place == 1, "diffusion": diffusion}
    terms: dict[str, Any] = {name: Nats(**in_units(*nats(of), some)) for name, of in parts.items()}
    terms |= {
        unit: value,
        f"{unit}_se": se,
        f"{unit}_se_noise": estimate.noise_se(share),
        f"{unit}_se_population": estimate.se(share, np.inf),
    }
    total, total_se = nats(whole)
    draws = denoiser.count * len(rounds)
    bound = Bound(
        **terms, nats=total, nats_se=total_se, n_images=estimate.n, draws_per_image=draws, schedule=schedule.base
    )
    upto = [nats((place == 0) | (diffusion & (place <= k))) for k in place[2:]]
    profile = torch.tensor(upto, dtype=torch.float64)
    return BoundEstimate(bound, sums.values, ErrorMoments.of_sums(edges, sums.values), *profile.T)


def measure_bound(asked: Measurement, schedule: str = "", target_se: float | None = None) -> BoundEstimate:
    """Estimate the bound of a run on a dataset.

    schedule: of the draws ('' is fitted to the run's own log). target_se: as in estimate_bound. Raises ElboError.
    """
    chosen = asked.schedule(schedule)
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
