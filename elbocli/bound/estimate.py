"""The variational bound of a trained run on a dataset, with the errors it has, and its profile over λ."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import Draws, Measurement
from elbocli.core.adaptive import BinSums, ErrorMoments, bin_edges
from elbocli.core.elbo import bits_per_dimension, by_cell, prior, reconstruction
from elbocli.core.paired import PairedEstimate, PairedMoments
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import parse_weighting
from elbocli.errors import UsageError
from elbocli.files import losslog
from elbocli.runtime.progress import Progress

ENOUGH = 64


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
class Bound:
    """The result as JSON, the curve, and the sums of a loss log [3, bins]."""

    result: dict[str, Any]
    curve: BoundCurve
    sums: Tensor


class Terms:
    """Adds up the bound's terms: a vector per image of prior, reconstruction, and the integral over each cell of λ."""

    def __init__(self, probe: Measurement, schedule: Schedule):
        self.probe, self.schedule = probe, schedule
        self.edges = bin_edges(probe.low, probe.high)
        self.decoder = reconstruction(probe.high)
        self.sums = BinSums(probe.low, probe.high)
        self.rounds = [PairedMoments()]

    def add(self, drawn: Draws) -> None:
        """Take in some images."""
        read = self.decoder[drawn.pixels.long()].flatten(1).sum(1)
        fixed = torch.stack([prior(drawn.x, self.probe.low), read], 1)  # [c, 2]
        part = 0.5 * drawn.error / self.schedule.density(drawn.logsnr) / drawn.error.shape[-1]
        integral = by_cell(part, drawn.logsnr, self.edges)  # [c, 2, cells]
        pairs = torch.cat([fixed[:, None].expand(-1, 2, -1), integral], 2)
        self.rounds[-1].add(pairs)
        self.sums.add(drawn.logsnr.flatten(), drawn.error.flatten() / self.probe.dimensions)

    def estimate(self) -> PairedEstimate:
        """All rounds pooled; a round that has not seen every image yet is left out, unless it is the first."""
        whole = [r.estimate() for r in self.rounds if r.n == self.rounds[0].n and r.n > 1]
        return PairedEstimate.pooled(whole)


def run(probe: Measurement, schedule: str = "", target_se: float | None = None) -> Generator[Progress, None, Bound]:
    """Estimate the bound; returns a Bound.

    schedule: of the draws ('' is fitted to the run's own log); it changes the error, not the expectation.
    target_se: draw on, more images first and then more noise, until the standard error of bpd is below it.
    Raises ElboError.
    """
    plain = parse_weighting("elbo")
    chosen = probe.schedule(schedule, plain) if schedule else probe.fitted(plain)
    if (chosen.logsnr_min, chosen.logsnr_max) != (probe.low, probe.high):
        raise UsageError(
            f"schedule {chosen.base} covers logsnr {chosen.logsnr_min:g} to {chosen.logsnr_max:g} only, and the bound "
            f"needs {probe.low:g} to {probe.high:g}"
        )
    terms, total = Terms(probe, chosen), len(probe.rows)
    if total < 2:
        raise UsageError("a standard error needs at least two images")
    yield Progress(
        0,
        total,
        "img",
        f"{probe.trained.path}: {probe.trained.checkpoint.path.name}; {total} of {len(probe.dataset)} images, "
        f"{probe.settings.draws} draws each, logsnr {probe.low:g} to {probe.high:g}, schedule {chosen.base}",
    )
    while True:
        turn = len(terms.rounds) - 1
        for drawn in probe.draws(plain, chosen, f"bound-{turn}"):
            terms.add(drawn)
            done = terms.rounds[-1].n
            bpd, se = _bpd(terms, probe) if terms.rounds[0].n > 1 else (0.0, np.inf)
            yield Progress(done, total, "img", values={"bpd": bpd, "se": se})
            if target_se is not None and not turn and done >= ENOUGH and se < target_se:
                return _result(terms, probe)
        if target_se is None or se < target_se:
            return _result(terms, probe)
        terms.rounds.append(PairedMoments())


def _bpd(terms: Terms, probe: Measurement) -> tuple[float, float]:
    estimate = terms.estimate()
    every = np.ones_like(estimate.mean) / (probe.dimensions * np.log(2))
    return estimate.value(every), estimate.se(every, len(probe.dataset))


def _result(terms: Terms, probe: Measurement) -> Bound:
    estimate = terms.estimate()
    size, population = len(estimate.mean), len(probe.dataset)
    of = {
        "prior": np.arange(size) == 0,
        "reconstruction": np.arange(size) == 1,
        "diffusion": np.arange(size) > 1,
    }
    terms_said = {name: _said(estimate, mask.astype(float), population, probe.dimensions) for name, mask in of.items()}
    whole = np.ones(size)
    bits = whole / (probe.dimensions * np.log(2))
    result = {
        "bpd": estimate.value(bits),
        "bpd_se": estimate.se(bits, population),
        "bpd_se_noise": estimate.noise_se(bits),
        "bpd_se_population": estimate.se(bits, np.inf),
        "nats": estimate.value(whole),
        "nats_se": estimate.se(whole, population),
        **terms_said,
        "n_images": estimate.n,
        "draws_per_image": probe.settings.draws * len(terms.rounds),
        "schedule": terms.schedule.base,
        **probe.about(),
    }
    return Bound(result, _curve(terms, estimate, population), terms.sums.values)


def _said(estimate: PairedEstimate, of: np.ndarray, population: int, dimensions: int) -> dict[str, float]:
    nats, se = estimate.value(of), estimate.se(of, population)
    return {
        "nats": nats,
        "nats_se": se,
        "bpd": bits_per_dimension(nats, dimensions),
        "bpd_se": bits_per_dimension(se, dimensions),
    }


def _curve(terms: Terms, estimate: PairedEstimate, population: int) -> BoundCurve:
    size = len(estimate.mean)
    upto = [
        ((np.arange(size) == 0) | ((np.arange(size) > 1) & (np.arange(size) <= k))).astype(float)
        for k in range(2, size)
    ]
    return BoundCurve(
        ErrorMoments.of_sums(terms.edges, terms.sums.values),
        torch.tensor([estimate.value(of) for of in upto], dtype=torch.float64),
        torch.tensor([estimate.se(of, population) for of in upto], dtype=torch.float64),
    )


def log_text(probe: Measurement, found: Bound) -> str:
    """The errors as a loss log, so that `adapt` can fit a schedule to a finished run."""
    settings = probe.trained.settings
    header = losslog.header(
        found.curve.moments.edges,
        dimensions=probe.dimensions,
        weighting=settings.weighting,
        schedule=found.result["schedule"],
        prediction=settings.prediction,
    )
    about = probe.trained.about
    return header + losslog.line(int(about["step"]), int(about["images_trained"]), found.sums)
