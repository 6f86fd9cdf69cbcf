"""The classes that samples were drawn with, for metrics that need them."""

from __future__ import annotations

from dataclasses import replace

import torch

from elbocli.core.class_labels import choose_labels
from elbocli.errors import DataError
from elbocli.evaluate.extract import FeatureSource
from elbocli.evaluate.reference import Reference
from elbocli.evaluate.settings import EvalSettings
from elbocli.nn.extractors import Extractor


def labelled(
    source: FeatureSource,
    reference: Reference | None,
    extractor: Extractor | None,
    settings: EvalSettings,
    device: torch.device,
) -> FeatureSource:
    """The source with the labels that a stream was drawn with, if it says none. Before any features are extracted.

    Raises UsageError for a class that isn't there, DataError for one that the network doesn't tell.
    """
    classes = _classes_told(source, extractor, settings.batch, device)
    if classes == 0:  # the first features will say that there are no logits
        return source
    labels = source.labels
    if labels is None:
        names = [] if reference is None else reference.class_names
        labels = choose_labels(settings.classes, source.n, len(names) or classes, settings.seed, names)
        assert labels is not None
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{source.name}: labels from {labels.min()} to {labels.max()}, but the network tells classes 0 to {classes - 1}; "
            "accuracy needs a network of the same classes"
        )
    return replace(source, labels=labels)


def _classes_told(source: FeatureSource, extractor: Extractor | None, batch: int, device: torch.device) -> int:
    """How many classes the network's logits are of; 0 when it has none. It is shown a batch of black images."""
    if source.saved is not None or extractor is None:
        logits = None if source.saved is None else source.saved.logits
    else:
        assert source.reader is not None
        _, height, width, channels = source.reader.shape
        black = torch.zeros(min(batch, source.n), channels, height, width, dtype=torch.uint8, device=device)
        with torch.inference_mode():
            logits = extractor(black)[1]
    return 0 if logits is None else logits.shape[1]
