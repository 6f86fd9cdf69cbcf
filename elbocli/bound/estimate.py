"""The variational bound on −log p of images, from errors at random noise levels."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import PLAIN, Measurement, RunMeasurement
from elbocli.bound.result import Bound, Nats, nats_fields, unit_of
from elbocli.core.adaptive import BinSums, ErrorMoments, bin_edges
from elbocli.core.elbo import by_cell
from elbocli.core.objective import Objective
from elbocli.core.paired import PairedMoments
from elbocli.core.schedule import Schedule
from elbocli.errors import UsageError
from elbocli.files import losslog
from elbocli.runtime.progress import progress

COLUMNS = ("logsnr_low", "logsnr_high", "draws", "eps_mse", "eps_mse_se", "bound", "bound_se")


@dataclass(frozen=True)
class BoundEstimate:
    """Variational bound of a set of images, with its profile over λ.

    sums: count, sum and sum of squares of the errors ‖ε−ε̂‖²/D in each bin of λ, [3, bins].
    profile: bound L(λ; x) of images noised to the upper edge λ of each bin, in nats, [bins].
    """

    bound: Bound
    sums: Tensor
    moments: ErrorMoments
    profile: Tensor
    profile_se: Tensor

    def tsv(self) -> str:
        """Return a table over λ: the errors of each bin, and the bound at the bin's upper edge."""
        moments = self.moments
        mean = moments.mean.where(moments.count > 0, torch.nan)
        edges = moments.edges
        columns = [edges[:-1], edges[1:], moments.count, mean, moments.mean_se, self.profile, self.profile_se]
        rows = [COLUMNS, *([f"{value:.10g}" for value in row] for row in torch.stack(columns, 1).tolist())]
        return "".join("\t".join(row) + "\n" for row in rows)

    def log_text(self, measured: RunMeasurement) -> str:
        """Return the errors as the text of a loss log."""
        trained = measured.trained
        images = int(trained.about.get("images_trained", self.sums[0].sum()))
        head = losslog.header(
            self.moments.edges,
            dimensions=measured.dimensions,
            schedule=self.bound.schedule,
            weighting=trained.settings.weighting,
            prediction=trained.settings.prediction,
        )
        return head + losslog.line(max(1, trained.step), images, self.sums)


def estimate_bound(measured: Measurement, schedule: Schedule) -> BoundEstimate:
    """Estimate the variational bound of a network on images.

    schedule: distribution of the noise levels; changes only the variance of the estimate.
    Raises UsageError for fewer than two images, NonFiniteError for a NaN or infinite output.
    Source: Kingma et al. 2021, eq. 11 to 17.
    """
    edges = bin_edges(measured.low, measured.high)
    errors = BinSums(measured.low, measured.high)
    terms = PairedMoments()  # of an image's prior, reconstruction, and diffusion term in each bin of λ
    objective = Objective(PLAIN, schedule, measured.prediction)
    coefficients = np.ones(len(edges) + 1)
    for batch in measured.images:
        draws = measured.draw(batch, objective, "bound-0")
        fixed = torch.stack([draws.prior, draws.reconstruction], 1)[:, None].expand(-1, 2, -1)
        terms.add(torch.cat([fixed, by_cell(draws.shares(schedule), draws.logsnr, edges)], 2))
        errors.add(draws.logsnr.flatten(), draws.error.flatten() / batch.content[0].numel())
        coefficients = np.full(len(edges) + 1, 1 / batch.divisor)
        if terms.n > 1:
            means = terms.estimate()
            so_far = {unit_of(batch): means.value(coefficients), "se": means.se(coefficients, measured.population)}
            progress(terms.n, measured.total, "img", **so_far)
    if not terms.n:
        raise UsageError(f"{measured.name}: there are no images to measure; give two or more")
    means = terms.estimate()
    population = measured.population
    unit = unit_of(batch)
    index = np.arange(len(coefficients))

    def nats(chosen: np.ndarray) -> dict[str, Any]:
        return nats_fields(means.value(chosen), means.se(chosen, population), batch)

    whole = nats(np.ones(len(index)))
    # The mean per dimension is a sum over dimensions, which rounds differently from a division of the mean in nats.
    whole |= {unit: means.value(coefficients), f"{unit}_se": means.se(coefficients, population)}
    whole |= {f"{unit}_se_noise": means.noise_se(coefficients), f"{unit}_se_population": means.se(coefficients, math.inf)}
    bound = Bound(
        **whole,
        prior=Nats(**nats(index == 0)),
        reconstruction=Nats(**nats(index == 1)),
        diffusion=Nats(**nats(index > 1)),
        n_images=means.n,
        draws_per_image=measured.draws,
        schedule=schedule.base,
    )
    below = [(index != 1) & (index <= k) for k in index[2:]]
    numbers = [(means.value(chosen), means.se(chosen, population)) for chosen in below]
    profile = torch.tensor(numbers, dtype=torch.float64)
    return BoundEstimate(bound, errors.values, ErrorMoments.of_sums(edges, errors.values), *profile.T)


def measure_bound(measured: RunMeasurement) -> BoundEstimate:
    """Estimate the variational bound of a run on images, at noise levels from a fitted schedule."""
    return estimate_bound(measured, measured.schedule())
