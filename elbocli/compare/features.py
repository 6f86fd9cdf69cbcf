"""Saved features compared by their Fréchet distances to one reference: by pairs of images where both drew the same noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import equal

from elbocli.compare.result import Compared, Difference, refuse_unlike
from elbocli.core.estimate import Estimate, FeatureMoments
from elbocli.core.frechet import Gaussian, frechet_distance, influence
from elbocli.core.metrics.distances import FID
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import fingerprint
from elbocli.evaluate.result import numbers
from elbocli.files.features import SUFFIX, FeatureFacts, SavedFeatures, is_statistics, read_features, read_statistics
from elbocli.files.hashing import file_sha256
from elbocli.nn.extractors import is_published


class Distance(NamedTuple):
    """The distance of saved features, and the amount by which each image moves it, times n: [n]."""

    saved: SavedFeatures
    value: float
    influence: np.ndarray


def compare_features(paths: Sequence[Path], ref: Path) -> tuple[list[Compared], dict[str, Any]]:
    """The files after the first beside it, and the facts that all have in common.

    Raises DataError for files that can't be compared, UsageError for a reference of images.
    """
    reference, about, digest = _reference(ref)
    read = [_several(path) for path in paths]
    known = [{"n_samples": len(saved.features), **fingerprint(saved.about)} for saved in read]
    for path, saved, facts in zip(paths, read, known, strict=True):
        if (width := saved.features.shape[1]) != len(reference.mu):
            raise DataError(f"{path}: {width} features an image, and {ref} has {len(reference.mu)}; use one made alike")
        refuse_unlike((str(ref), fingerprint(about)), (str(path), facts))
        refuse_unlike((str(paths[0]), known[0]), (str(path), facts))
    first, *others = (_distance(saved, reference) for saved in read)
    made = first.saved.about
    published = is_published(made.extractor, made.weights_sha256, made.feature_precision)
    title = numbers()[FID].name(None if published else str(made.extractor))
    compared = []
    for path, other in zip(paths[1:], others, strict=True):
        if paired := _paired(first.saved, other.saved):
            difference = _mean(other.value - first.value, other.influence - first.influence)
        else:
            difference = _mean(other.value, other.influence).minus(_mean(first.value, first.influence))
        how = "paired by image" if paired else "unpaired"
        score = Difference.found(title, first.value, other.value, difference, how)
        compared.append(Compared(file=str(path), scores=[score]))
    return compared, {
        "n_samples": len(read[0].features),
        "n_ref": about.n,
        "ref": str(ref),
        "ref_sha256": digest,
        "extractor": made.extractor,
        "extractor_sha256": made.weights_sha256,
        "feature_precision": made.feature_precision,
    }


def _mean(value: float, each: np.ndarray) -> Estimate:
    """A value whose error is that of the mean of what each image adds: by the infinitesimal jackknife."""
    return Estimate(value, float(each.std(ddof=1)) / math.sqrt(len(each)))


def _paired(first: SavedFeatures, other: SavedFeatures) -> bool:
    """Whether image k of both was drawn from the same noise, and of the same class where there are any."""
    seeds = [(each.about.made or {}).get("seed") for each in (first, other)]
    if seeds[0] is None or seeds[0] != seeds[1] or (first.labels is None) != (other.labels is None):
        return False
    return first.labels is None or other.labels is None or equal(first.labels, other.labels)


def _distance(saved: SavedFeatures, reference: Gaussian) -> Distance:
    features = saved.features.numpy()
    own = FeatureMoments.of(features)
    return Distance(saved, frechet_distance(own, reference), influence(features, own, reference))


def _several(path: Path) -> SavedFeatures:
    """Saved features of two images at least."""
    saved = read_features(path)
    if len(saved.features) < 2:
        raise DataError(f"{path}: one image is no distribution; name a file of more")
    return saved


def _reference(path: Path) -> tuple[Gaussian, FeatureFacts, str | None]:
    """Moments of the reference, how they were made, and a digest."""
    if path.suffix == SUFFIX:
        saved = _several(path)
        return FeatureMoments.of(saved.features.numpy()), saved.about, saved.about.images_sha256
    if path.suffix == ".npz" or is_statistics(path):
        statistics = read_statistics(path)
        return statistics, statistics.about, file_sha256(path)
    raise UsageError(
        f"{path}: neither statistics (.npz) nor features ({SUFFIX}); make them: elbo eval {path} --save-features ref{SUFFIX}"
    )
