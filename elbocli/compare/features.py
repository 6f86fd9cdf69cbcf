"""Saved features compared by their Fréchet distances to one reference: by pairs of images where both drew the same noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import equal

from elbocli.compare.result import Compared, Difference, drawn_differently, refuse_unlike
from elbocli.core.estimate import Estimate
from elbocli.core.feature_moments import FeatureMoments
from elbocli.core.frechet import Gaussian, frechet_distance
from elbocli.core.frechet_error import influence
from elbocli.core.metrics.fid import DISTANCE
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import fingerprint, mismatches
from elbocli.evaluate.result import numbers
from elbocli.files.feature_facts import FeatureFacts
from elbocli.files.features import SUFFIX, SavedFeatures, read_features
from elbocli.files.hashing import file_sha256
from elbocli.files.statistics import is_statistics, read_statistics
from elbocli.nn.extractors import is_published


@dataclass(frozen=True)
class Distance:
    """A file's distance, and the amount by which each image moves it, times n: [n]."""

    name: str
    saved: SavedFeatures
    value: float
    influence: np.ndarray

    @property
    def estimate(self) -> Estimate:
        """The distance with its standard error, by the infinitesimal jackknife."""
        return _mean(self.value, self.influence)


def compare_features(paths: Sequence[Path], ref: Path) -> tuple[list[Compared], dict[str, Any]]:
    """The files after the first beside it, and the facts that all have in common.

    Raises DataError for files that can't be compared, UsageError for a reference of images.
    """
    reference, about, digest = _reference(ref)
    read = [read_features(path) for path in paths]
    for path, saved in zip(paths, read, strict=True):
        _check(path, saved, ref, about, len(reference.mu))
        refuse_unlike((str(paths[0]), _facts(read[0])), (str(path), _facts(saved)))
    found = [_distance(str(path), saved, reference) for path, saved in zip(paths, read, strict=True)]
    facts = read[0].about
    network = (
        None if is_published(facts.extractor, facts.weights_sha256, facts.feature_precision) else str(facts.extractor)
    )
    title = numbers()[DISTANCE].name(network)
    alike = {
        "n_samples": len(read[0].features),
        "n_ref": about.n,
        "ref": str(ref),
        "ref_sha256": digest,
        "extractor": facts.extractor,
        "extractor_sha256": facts.weights_sha256,
        "feature_precision": facts.feature_precision,
    }
    return [_compared(title, found[0], each) for each in found[1:]], alike


def _compared(title: str, first: Distance, other: Distance) -> Compared:
    made, theirs = (each.saved.about.made or {} for each in (first, other))
    values, names = (first.value, other.value), (first.name, other.name)
    if _paired(first.saved, other.saved):
        difference, how = _mean(other.value - first.value, other.influence - first.influence), "paired by image"
    else:
        difference, how = other.estimate.minus(first.estimate), "unpaired"
    score = Difference.told(title, names, values, difference, how)
    return Compared(file=other.name, differ=drawn_differently(made, theirs), scores=[score])


def _mean(value: float, each: np.ndarray) -> Estimate:
    """A value whose error is that of the mean of what each image adds."""
    return Estimate(value, float(each.std(ddof=1)) / math.sqrt(len(each)))


def _paired(first: SavedFeatures, other: SavedFeatures) -> bool:
    """Whether image k of both was drawn from the same noise, and of the same class where there are any."""
    seeds = [(each.about.made or {}).get("seed") for each in (first, other)]
    if seeds[0] is None or seeds[0] != seeds[1] or (first.labels is None) != (other.labels is None):
        return False
    return first.labels is None or other.labels is None or equal(first.labels, other.labels)


def _distance(name: str, saved: SavedFeatures, reference: Gaussian) -> Distance:
    features = saved.features.numpy()
    own = FeatureMoments.of(features)
    value = frechet_distance(own, reference)
    return Distance(name, saved, value, influence(features, own, reference))


def _facts(saved: SavedFeatures) -> dict[str, Any]:
    """Everything that must be the same for distances to be comparable."""
    return {"n_samples": len(saved.features), **fingerprint(saved.about)}


def _reference(path: Path) -> tuple[Gaussian, FeatureFacts, str | None]:
    """Moments of the reference, how they were made, and a digest."""
    if path.suffix == SUFFIX:
        saved = read_features(path)
        if len(saved.features) < 2:
            raise DataError(f"{path}: one image is no distribution; name a reference of more")
        return FeatureMoments.of(saved.features.numpy()), saved.about, saved.about.images_sha256
    if path.suffix == ".npz" or is_statistics(path):
        statistics = read_statistics(path)
        return statistics, statistics.about, file_sha256(path)
    raise UsageError(
        f"{path}: neither statistics (.npz) nor features ({SUFFIX}); make them: elbo eval {path} --save-features ref{SUFFIX}"
    )


def _check(path: Path, saved: SavedFeatures, ref: Path, about: FeatureFacts, width: int) -> None:
    """Raise DataError when features and reference don't go together."""
    if len(saved.features) < 2:
        raise DataError(f"{path}: one image is no distribution; score at least 2")
    if saved.features.shape[1] != width:
        raise DataError(
            f"{path}: {saved.features.shape[1]} features an image, and {ref} has {width}; use one made alike"
        )
    differ = mismatches(fingerprint(saved.about), fingerprint(about))
    if differ:
        said = "; ".join(f"{key} is {own}, that of {ref} {theirs}" for key, (own, theirs) in differ.items())
        raise DataError(f"{path}: {said}: such distances compare with no others; use a reference made alike")
