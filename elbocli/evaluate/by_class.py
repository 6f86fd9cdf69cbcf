"""Numbers of each class by itself: the Fréchet distance of its features, and the share of samples that are told as it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from elbocli.core.estimate import Estimate, error_of_share
from elbocli.core.frechet_error import estimate_of
from elbocli.core.metrics import Features
from elbocli.errors import UsageError
from elbocli.evaluate.extract import FeatureSource
from elbocli.evaluate.reference import Reference
from elbocli.evaluate.result import ClassScore


def check_labels(sources: Sequence[FeatureSource], reference: Reference | None, promised: str = "") -> None:
    """Raise UsageError unless the samples and the images of the reference have labels. promised: those of --classes."""
    if reference is None or reference.source is None:
        raise UsageError("--by-class needs --ref with labelled images: a dataset, or saved features of one")
    needing = [reference.source] if promised else [*sources, reference.source]
    for source in needing:
        if source.labels is None:
            raise UsageError(
                f"{source.name}: --by-class needs labels: images of several classes in .h5 or .npz, or, for the samples, "
                "--classes as given to 'elbo sample'"
            )


def class_scores(
    samples: Features, reference: Features, names: Sequence[str] = (), accuracy: bool = False
) -> list[ClassScore]:
    """Scores of every class that samples or reference have, by its number. accuracy: by the logits, too."""
    own, theirs = samples.labels, reference.labels
    assert own is not None and theirs is not None and samples.values is not None and reference.values is not None
    told = samples.logits.argmax(1).numpy() if samples.logits is not None and accuracy else None
    found = []
    for label in np.union1d(own, theirs).tolist():
        at, there = np.flatnonzero(own == label), np.flatnonzero(theirs == label)
        distance: Estimate | None = None
        share = None
        if min(len(at), len(there)) > 1:
            pair = samples.values[torch.from_numpy(at)], reference.values[torch.from_numpy(there)]
            distance = estimate_of(*(each.numpy() for each in pair))
        if told is not None and len(at):
            share = float((told[at] == label).mean())
        name = names[label] if 0 <= label < len(names) else ""
        found.append(
            ClassScore(
                label=label,
                name=name,
                n=len(at),
                n_ref=len(there),
                frechet_distance=None if distance is None else distance.value,
                frechet_distance_se=None if distance is None else distance.se,
                accuracy=share,
                accuracy_interval=None if share is None else error_of_share(share, len(at))[1],
            )
        )
    return found
