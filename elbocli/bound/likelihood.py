"""Several estimates of −log p of the same images, each with its error, and image by image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from elbocli.bound.draws import Images, MeasuredNetwork
from elbocli.bound.estimate import BoundEstimate, Terms
from elbocli.bound.estimators import ESTIMATORS, EstimatorTraits
from elbocli.bound.measure import Measurement
from elbocli.bound.methods import Parts, Question, SeenSums, errors_besides
from elbocli.bound.result import Difference, Estimate, Likelihoods
from elbocli.core.elbo import GaussianModel, bits_per_dimension, fit_gaussian, rows_to_fit
from elbocli.core.estimate import PairedMoments, image_errors
from elbocli.core.registry import Declaration
from elbocli.core.schedule import Schedule
from elbocli.core.streams import Stream
from elbocli.core.weighting import parse_weighting
from elbocli.errors import UsageError
from elbocli.files.likelihood_file import ImageTable
from elbocli.runtime.progress import Progress

DEFAULT = "variational"
CHUNK = 256
ROUNDING = 1e-9
"""A standard error is none below this share of the value."""


@dataclass(frozen=True)
class Found:
    """Estimates of the same images. parts: by their specs; rows: which images these are, [N]. bound: the variational one with its
    curve, where the draws were made.
    """

    result: Likelihoods
    parts: dict[str, Parts]
    rows: np.ndarray
    bound: BoundEstimate | None

    def told(self, per_image: str | None) -> dict[str, Any]:
        """It as JSON: of the variational bound alone, as that is told. per_image: the file of all images."""
        only = [each.estimator for each in self.result.estimates] == [DEFAULT]
        if only and self.bound is not None:
            return {**self.bound.bound.json(), **({"per_image": per_image} if per_image else {})}
        return structs.replace(self.result, per_image=per_image).json()

    def halves(self, spec: str) -> np.ndarray:
        """Two independent estimates of each image, [N, 2] nats."""
        return self.parts[spec].nats.sum(2).numpy()

    def table(self, labels: np.ndarray) -> ImageTable:
        """Image by image, in the order of the dataset; several estimators have columns of their own. labels: of all images."""
        order = np.argsort(self.rows)
        rows, numbers = self.rows[order], dict[str, np.ndarray]()
        for each in self.result.estimates:
            halves = self.halves(each.estimator)[order]
            nats, end = halves.mean(1), "" if len(self.parts) == 1 else f"_{each.estimator.partition(':')[0]}"
            per_dimension = each.per_dimension[0] / each.nats if each.nats else 0.0
            name = "bpd" if each.bpd is not None else "nats_per_latent_dimension"
            errors = np.hypot(image_errors(halves), each.solver_nats or 0.0)
            numbers |= {f"nats{end}": nats, f"nats{end}_se": errors, f"{name}{end}": nats * per_dimension}
        return ImageTable(rows, labels[rows], numbers)


def parse_estimators(specs: Iterable[str]) -> list[Declaration[EstimatorTraits]]:
    """Estimators as the user wrote them, none twice. Raises UsageError."""
    found = [ESTIMATORS.parse(spec) for spec in specs]
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise UsageError(f"an estimator is named twice: {', '.join(names)}; one way of each at a time")
    return found


def estimate_likelihoods(
    denoiser: MeasuredNetwork,
    images: Iterable[Images],
    schedule: Schedule,
    estimators: list[Declaration[EstimatorTraits]],
    *,
    draws: int = 16,
    seed: int = 0,
    population: float = math.inf,
    gaussian: GaussianModel | None = None,
    total: int | None = None,
) -> Generator[Progress, None, Found]:
    """Estimate −log p of any images under any denoiser; the last value is Found.

    images: gone through once by the draws, which all that need them share, and again by others. gaussian: of data like
    these, where an estimator needs it. The rest is as in estimate_bound. Raises UsageError, NonFiniteError.
    """
    known = [(some.rows, some.content[0].numel(), some.content.is_floating_point()) for some in images]
    rows = np.array([row for each in known for row in each[0]])
    if len(rows) < 2:
        raise UsageError("a standard error needs at least two images")
    _, size, latent = known[0]
    sums, terms = None, None
    if any(each.traits.drawn for each in estimators):
        sums, terms = SeenSums(gaussian, schedule), Terms(denoiser.low, denoiser.high, schedule, population)
        more = None if gaussian is None else errors_besides(gaussian, latent)
        plain = parse_weighting("elbo")
        for drawn in denoiser.draws(images, plain, schedule, draws, seed, "bound-0", more):
            sums.add(drawn)
            terms.add(drawn)
            value, se = terms.bound()
            values = {"nats/dim" if latent else "bpd": value, "se": se}
            yield Progress(terms.rounds[0].n, total, "img", values=values)
    question = Question(denoiser, images, seed, total, sums.seen() if sums else None)
    parts: dict[str, Parts] = {}
    for each in estimators:
        parts[each.spec] = yield from each(question)
    said = [_estimate(each, parts[each.spec], size, latent, population) for each in estimators]
    pairs = [_difference(a, b, parts) for a, b in itertools.combinations(said, 2)]
    result = Likelihoods(said, pairs, len(rows), draws if terms else 0, schedule.base if terms else "")
    return Found(result, parts, rows, terms.result(draws) if terms else None)


def flat(content: Tensor) -> Tensor:
    """Pixels or latents, as Images has them, in the order in which the network sees them: [N, D]."""
    x = content if content.is_floating_point() else content.permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.flatten(1)


def _estimate(
    declared: Declaration[EstimatorTraits], parts: Parts, size: int, latent: bool, population: float
) -> Estimate:
    moments = PairedMoments()
    moments.add(parts.nats)
    mean, every = moments.estimate(), np.ones(len(parts.names))
    nats = mean.value(every)
    se, population_se = (math.hypot(mean.se(every, number), parts.solver or 0.0) for number in (population, math.inf))
    told = [nats / size, se / size] if latent else [bits_per_dimension(each, size) for each in (nats, se)]
    unit = "nats_per_latent_dimension" if latent else "bpd"
    return Estimate(
        declared.spec,
        declared.traits.bounds,
        nats,
        se,
        mean.noise_se(every),
        population_se,
        {name: float(value) for name, value in zip(parts.names, mean.mean, strict=True)},
        parts.evaluations,
        solver_nats=parts.solver,
        **{unit: told[0], f"{unit}_se": told[1]},
    )


def _difference(one: Estimate, other: Estimate, parts: dict[str, Parts]) -> Difference:
    moments = PairedMoments()
    of, minus = (parts[each.estimator].nats.sum(2, keepdim=True) for each in (one, other))
    moments.add(of - minus)
    found = moments.estimate()
    nats, se = found.value(np.ones(1)), found.noise_se(np.ones(1))
    whole = math.hypot(se, one.solver_nats or 0.0, other.solver_nats or 0.0)
    known = whole > ROUNDING * abs(one.nats)  # else the same draws, and a difference that owes nothing to chance
    return Difference(one.estimator, other.estimator, nats, se, nats / whole if known else 0.0)


def run(
    asked: Measurement, estimators: list[Declaration[EstimatorTraits]], schedule: str = ""
) -> Generator[Progress, None, Found]:
    """Estimate −log p of a dataset's images under a run. schedule: of the draws ('' is fitted to the run's own log).

    The Gaussian is that of the dataset's images, also of those that are not asked about. Raises ElboError.
    """
    chosen, rows = asked.schedule(schedule, parse_weighting("elbo")), asked.rows
    names, n = ", ".join(each.spec for each in estimators), len(asked.dataset)
    about = f"{asked.trained.path}: {asked.trained.checkpoint.path.name}; {len(rows)} of {n} images; {names}"
    yield Progress(0, len(rows), "img", f"{about}; {asked.device}, {asked.precision}")
    gaussian = None
    if any(each.traits.gaussian for each in estimators):
        some = Stream(asked.settings.seed, "bound-gaussian").permutation(0, n)[: rows_to_fit(n, asked.dimensions)]
        parts = [flat(asked.content(some[at : at + CHUNK])) for at in range(0, len(some), CHUNK)]
        gaussian = fit_gaussian(torch.cat(parts))
    settings = asked.settings
    found = yield from estimate_likelihoods(
        asked.denoiser,
        asked,
        chosen,
        estimators,
        draws=settings.draws,
        seed=settings.seed,
        population=n,
        gaussian=gaussian,
        total=len(rows),
    )
    for pair in found.result.differences:
        yield Progress(message=sentence(pair))
    bound = found.bound and replace(found.bound, bound=structs.replace(found.bound.bound, about=asked.about()))
    return replace(found, result=structs.replace(found.result, about=asked.about()), bound=bound)


def sentence(pair: Difference) -> str:
    """A difference in words."""
    said = f"{pair.estimator} minus {pair.minus}: {pair.nats:+.4g} ± {pair.se:.2g} nats an image"
    if pair.in_se == 0:
        return f"{said}, from the same draws"
    whole = abs(pair.nats / pair.in_se)
    solver = f" and ± {math.sqrt(whole**2 - pair.se**2):.2g} of the solver's steps" if whole > 1.01 * pair.se else ""
    return f"{said}{solver}, {pair.in_se:+.1f} standard errors"
