"""Results of `elbo eval`, or saved features, compared: the difference of each score to that of the first file, with its
interval.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from elbocli.core.estimate import Estimate, FeatureMoments, frechet_distance, influence
from elbocli.core.metrics import Role
from elbocli.core.metrics.distances import FID
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import fingerprint, naming_network, open_reference
from elbocli.evaluate.result import EvalResult, numbers, refuse, shared
from elbocli.files.features import read_features
from elbocli.files.records import Record, stored

ALIKE = "such numbers don't compare; score both alike"


class Difference(Record, frozen=True, kw_only=True):
    """A number of two files. difference: the other's less the first's, with its standard error and 95 % interval. apart:
    whether 0 lies outside that; None where no standard error is known. how: what the error is of.
    """

    score: str
    first: float
    other: float
    difference: float
    se: float | None
    interval: list[float] | None
    apart: bool | None
    how: str


class Compared(Record, frozen=True, kw_only=True):
    """A file beside the first."""

    file: str
    scores: list[Difference]


@stored("result of elbo compare (JSON)")
class Comparison(Record, frozen=True, kw_only=True):
    """All files beside the first. alike: facts that all have in common, as `elbo eval` names them."""

    REST: ClassVar[str] = "alike"

    first: str
    others: list[Compared]
    alike: dict[str, Any] = {}
    elbo_version: str | None
    command: str | None


def difference_of(score: str, first: float, other: float, estimate: Estimate, how: str) -> Difference:
    """A difference that was estimated, with its interval."""
    ends = estimate.interval
    return Difference(
        score=score,
        first=first,
        other=other,
        difference=estimate.value,
        se=estimate.se,
        interval=[*ends] if ends else None,
        apart=not ends[0] <= 0 <= ends[1] if ends else None,
        how=how if ends else "no standard error: score several seeds of each",
    )


def compare_results(results: Sequence[tuple[str, EvalResult]]) -> tuple[list[Compared], dict[str, Any]]:
    """Each of the results after the first beside it, and the facts that all have in common.

    Raises DataError for what can't be compared.
    """
    (name, first), compared = results[0], []
    seeds = _by_seed(first)
    for beside, other in results[1:]:
        refuse(other.alike(), first.alike(), beside, name, ALIKE)
        theirs, their_seeds, scores = {score.number.key: score for score in other.scores}, _by_seed(other), []
        for mine in first.scores:
            key, number, its = mine.number.key, mine.number, theirs.get(mine.number.key)
            if number.role not in (Role.NUMBER, Role.LIMIT) or its is None or None in (mine.value, its.value):
                continue
            before, after = first.estimate(mine), other.estimate(its)
            change, how = after.minus(before), "unpaired"
            if seeds and set(seeds) == set(their_seeds):
                change = Estimate.of_repeats([their_seeds[seed][key] - seeds[seed][key] for seed in seeds])
                how = f"paired by {len(seeds)} seeds"
            scores.append(difference_of(number.name(first.network), before.value, after.value, change, how))
        if not scores:
            raise DataError(f"{beside}: has no score that {name} has, too; score both with the same --metrics")
        compared.append(Compared(file=beside, scores=scores))
    return compared, shared([result.alike() for _, result in results])


def _by_seed(result: EvalResult) -> dict[str, dict[str, Any]]:
    """The numbers of each repeat by its seed; none unless there are several, each with a seed of its own."""
    found = {str(seed): one.values for one in result.repeats if (seed := one.facts.made.get("seed")) is not None}
    return found if 1 < len(found) == len(result.repeats) else {}


def compare_features(paths: Sequence[Path], ref: Path) -> tuple[list[Compared], dict[str, Any]]:
    """Fréchet distances to one reference: by pairs of images where both sides drew the same noise.

    Raises DataError for files that can't be compared, UsageError for a reference of images.
    """
    with contextlib.ExitStack() as stack:
        reference = open_reference(ref, stack)
    if reference.width is None:
        raise UsageError(f"{ref}: neither statistics nor features; make them: elbo eval {ref} --save-stats ref.npz")
    points: Any = reference.statistics
    if reference.saved is not None:
        points = FeatureMoments.of(reference.saved.features.numpy())
    first: Any = None
    compared = []
    for path in paths:
        saved: Any = read_features(path)
        values, seed = saved.features.numpy(), (saved.about.made or {}).get("seed")
        n, width = values.shape
        if width != reference.width or 1 in (n, reference.n):
            sizes = f"{n} x {width} features, and {ref} has {reference.n or 'any'} x {reference.width}"
            raise DataError(f"{path}: {sizes}; use files made alike, of 2 images at least")
        own, moments = {"n_samples": n, **fingerprint(saved.about)}, FeatureMoments.of(values)
        refuse(own, fingerprint(reference.about), path, ref, ALIKE)
        distance, moved = frechet_distance(moments, points), influence(values, moments, points)
        if first is None:
            first = own, saved, seed, distance, moved
            continue
        facts, before, its_seed, its_distance, its_moved = first
        refuse(own, facts, path, paths[0], ALIKE)
        change, how = _mean(distance, moved).minus(_mean(its_distance, its_moved)), "unpaired"
        if seed is not None and seed == its_seed and np.array_equal(before.labels, saved.labels):
            # image k is of the same noise
            change, how = _mean(distance - its_distance, moved - its_moved), "paired by image"
        title = numbers()[FID].name(naming_network(before.about))
        score = difference_of(title, its_distance, distance, change, how)
        compared.append(Compared(file=str(path), scores=[score]))
    about = first[1].about
    return compared, {
        "n_samples": n,
        "n_ref": reference.about.n,
        "ref": str(ref),
        "ref_sha256": reference.about.sha256 or reference.about.images_sha256,
        "extractor": about.extractor,
        "extractor_sha256": about.weights_sha256,
        "feature_precision": about.feature_precision,
    }


def _mean(value: float, each: np.ndarray) -> Estimate:
    """A value whose error is that of the mean of what each image adds: by the infinitesimal jackknife."""
    return Estimate(value, float(each.std(ddof=1)) / math.sqrt(len(each)))
