"""Compare each file with the first: scores in results of `elbo eval`, or Fréchet distances of saved features."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elbocli.core.estimate import Estimate
from elbocli.core.frechet import FeatureMoments, Gaussian, frechet_distance
from elbocli.core.metrics import Role
from elbocli.core.metrics.distances import FID
from elbocli.core.score_errors import Influence, frechet_influence
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.opening import OpenedSet, fingerprint, open_reference
from elbocli.evaluate.result import EvalResult, mismatches, naming_network, numbers, refuse, shared
from elbocli.files.features import SavedFeatures, read_features
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


class Compared(Record):
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
    (first_file, first), *others = results
    compared = []
    for file, other in others:
        refuse(mismatches(other.alike(), first.alike()), file, first_file, ALIKE)
        scores = _differences(first, other)
        if not scores:
            raise DataError(f"{file}: has no score in common with {first_file}; score both with the same --metrics")
        compared.append(Compared(file, scores))
    return compared, shared([result.alike() for _, result in results])


def _differences(first: EvalResult, other: EvalResult) -> list[Difference]:
    seeds, other_seeds = _by_seed(first), _by_seed(other)
    paired = bool(seeds) and set(seeds) == set(other_seeds)
    other_scores, differences = {score.number.key: score for score in other.scores}, []
    for score in first.scores:
        number, other_score = score.number, other_scores.get(score.number.key)
        if number.role not in (Role.NUMBER, Role.LIMIT) or other_score is None or None in (score.value, other_score.value):
            continue
        before, after = first.estimate(score), other.estimate(other_score)
        change, how = after.minus(before), "unpaired"
        if paired:
            change = Estimate.of_repeats([other_seeds[seed][number.key] - seeds[seed][number.key] for seed in seeds])
            how = f"paired by {len(seeds)} seeds"
        differences.append(difference_of(number.name(first.network), before.value, after.value, change, how))
    return differences


def _by_seed(result: EvalResult) -> dict[str, dict[str, Any]]:
    """Return {seed: {score: value}} of two or more sets of samples; {} if there is only one, or seeds are missing or equal."""
    values = {str(seed): repeat.values for repeat in result.repeats if (seed := repeat.facts.made.get("seed")) is not None}
    return values if 1 < len(values) == len(result.repeats) else {}


class Distance(NamedTuple):
    """Fréchet distance of saved features from a reference. influence: effects of the images on the distance."""

    saved: SavedFeatures
    value: float
    influence: Influence

    def minus(self, other: Distance) -> tuple[Estimate, str]:
        """Return the difference, and the method of its standard error."""
        seeds = [(saved.about.made or {}).get("seed") for saved in (self.saved, other.saved)]
        labels: list[Any] = [saved.labels for saved in (self.saved, other.saved)]
        if None not in seeds and seeds[0] == seeds[1] and np.array_equal(*labels):  # image k has equal noise in both files
            return Estimate(self.value - other.value, (self.influence - other.influence).se), "paired by image"
        return Estimate(self.value, self.influence.se).minus(Estimate(other.value, other.influence.se)), "unpaired"


def compare_features(paths: Sequence[Path], ref: Path) -> tuple[list[Compared], dict[str, Any]]:
    """Compare each file's Fréchet distance from a reference with the first file's.

    paths: features saved by `elbo eval --save-features`. ref: statistics or features of the reference.
    Returns: comparison of each further file; metadata that are equal in all files.
    Raises DataError: files are not comparable. Raises UsageError: the reference holds only images.
    """
    with contextlib.ExitStack() as stack:
        reference = open_reference(ref, stack)
    target = reference.statistics or (reference.saved and FeatureMoments.of(reference.saved.features.numpy()))
    if target is None:
        raise UsageError(f"{ref}: has no statistics or features; make statistics: elbo eval {ref} --save-stats ref.npz")
    first, compared = _distance(paths[0], reference, target), []
    about, facts = first.saved.about, _facts(first.saved)
    for path in paths[1:]:
        other = _distance(path, reference, target)
        refuse(mismatches(_facts(other.saved), facts), path, paths[0], ALIKE)
        score = numbers()[FID].name(naming_network(about))
        compared.append(Compared(str(path), [difference_of(score, first.value, other.value, *other.minus(first))]))
    return compared, {
        "n_samples": facts["n_samples"],
        "n_ref": reference.about.n,
        "ref": str(ref),
        "ref_sha256": reference.about.sha256 or reference.about.images_sha256,
        "extractor": about.extractor,
        "extractor_sha256": about.weights_sha256,
        "feature_precision": about.feature_precision,
    }


def _facts(saved: SavedFeatures) -> dict[str, Any]:
    return {"n_samples": len(saved.features), **fingerprint(saved.about)}


def _distance(path: Path, reference: OpenedSet, target: Gaussian) -> Distance:
    saved = read_features(path)
    features = saved.features.numpy()
    (n, width), ref_width = features.shape, len(target.mu)
    if width != ref_width or 1 in (n, reference.n):
        sizes = f"{n} images x {width} features, and {reference.name} has {reference.n or 'any number of'} images x {ref_width}"
        raise DataError(f"{path}: {sizes}; both files need the same extractor, and at least 2 images")
    refuse(mismatches(fingerprint(saved.about), fingerprint(reference.about)), path, reference.name, ALIKE)
    moments = FeatureMoments.of(features)
    influence = frechet_influence(features, moments, target, saved.labels)
    return Distance(saved, frechet_distance(moments, target), influence)
