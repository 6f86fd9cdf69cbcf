"""Compare each file with the first: scores in results of `elbo eval`, or Fréchet distances of saved features."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.core.estimate import Estimate
from elbocli.core.frechet import FeatureMoments, frechet_distance
from elbocli.core.metrics import Role
from elbocli.core.metrics.distances import FID
from elbocli.core.score_errors import frechet_influence
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import fingerprint, naming_network, open_reference
from elbocli.evaluate.result import EvalResult, numbers, refuse, shared
from elbocli.files.features import read_features
from elbocli.files.records import Record, Rest, stored

ALIKE = "such scores are not comparable; score both files with the same settings"


class Difference(Record, kw_only=True):
    """Difference of a score between two files, other − first.

    se, interval: standard error and 95 % interval of the difference; None: unknown.
    apart: whether 0 lies outside the interval; None: unknown.
    how: method of the standard error, such as "paired by 3 seeds".
    """

    score: str
    first: float
    other: float
    difference: float
    se: float | None
    interval: list[float] | None
    apart: bool | None
    how: str


class Compared(Record, kw_only=True):
    """Differences between a file's scores and the first file's."""

    file: str
    scores: list[Difference]


@stored("result of elbo compare (JSON)")
class Comparison(Record, kw_only=True):
    """Result of `elbo compare`. alike: metadata that are equal in all files."""

    first: str
    others: list[Compared]
    alike: Rest = {}
    elbo_version: str | None
    command: str | None


def difference_of(score: str, first: float, other: float, estimate: Estimate, how: str) -> Difference:
    """Make the Difference of a score between two files. estimate: other − first, with standard error. how: as in Difference."""
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
    """Compare each result's scores with the first result's. Raises DataError: results are not comparable.

    results: (file, result) pairs.
    Returns: comparison of each further result; metadata that are equal in all results.
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
            raise DataError(f"{beside}: has no score in common with {name}; score both with the same --metrics")
        compared.append(Compared(file=beside, scores=scores))
    return compared, shared([result.alike() for _, result in results])


def _by_seed(result: EvalResult) -> dict[str, dict[str, Any]]:
    """Return {seed: {score: value}} of two or more sets of samples; {} if there is only one, or seeds are missing or equal."""
    found = {str(seed): one.values for one in result.repeats if (seed := one.facts.made.get("seed")) is not None}
    return found if 1 < len(found) == len(result.repeats) else {}


def compare_features(paths: Sequence[Path], ref: Path) -> tuple[list[Compared], dict[str, Any]]:
    """Compare each file's Fréchet distance from a reference with the first file's.

    paths: features saved by `elbo eval --save-features`. ref: statistics or features of the reference.
    Returns: comparison of each further file; metadata that are equal in all files.
    Raises DataError: files are not comparable. Raises UsageError: the reference holds only images.
    """
    with contextlib.ExitStack() as stack:
        reference = open_reference(ref, stack)
    if reference.width is None:
        raise UsageError(f"{ref}: has no statistics or features; make statistics: elbo eval {ref} --save-stats ref.npz")
    points: Any = reference.statistics
    if reference.saved:
        points = FeatureMoments.of(reference.saved.features.numpy())
    first: Any = None
    compared = []
    for path in paths:
        saved: Any = read_features(path)
        values, seed = saved.features.numpy(), (saved.about.made or {}).get("seed")
        n, width = values.shape
        if width != reference.width or 1 in (n, reference.n):
            sizes = f"{n} images x {width} features, and {ref} has {reference.n or 'any number of'} images x {reference.width}"
            raise DataError(f"{path}: {sizes}; both files need the same extractor, and at least 2 images")
        own, moments = {"n_samples": n, **fingerprint(saved.about)}, FeatureMoments.of(values)
        refuse(own, fingerprint(reference.about), path, ref, ALIKE)
        distance, moved = frechet_distance(moments, points), frechet_influence(values, moments, points, saved.labels)
        if first is None:
            first = own, saved, seed, distance, moved
            continue
        facts, before, its_seed, its_distance, its_moved = first
        refuse(own, facts, path, paths[0], ALIKE)
        change, how = Estimate(distance, moved.se).minus(Estimate(its_distance, its_moved.se)), "unpaired"
        if seed is not None and seed == its_seed and np.array_equal(before.labels, saved.labels):
            # image k has the same noise in both files
            change, how = Estimate(distance - its_distance, (moved - its_moved).se), "paired by image"
        score = difference_of(numbers()[FID].name(naming_network(before.about)), its_distance, distance, change, how)
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
