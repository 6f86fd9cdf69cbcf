"""Whether samples, reference and settings are a protocol's, as far as that is known before features are extracted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from elbocli.core.metrics import Need
from elbocli.core.streams import choose_labels
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import FeatureSource, described
from elbocli.evaluate.protocols import PROTOCOLS, ProtocolTraits, unlike
from elbocli.evaluate.reference import Reference
from elbocli.evaluate.settings import EvalSettings
from elbocli.nn.extractors import DEFAULT, EXTRACTORS, PUBLISHED_INCEPTION, STRICT, Extractor, is_published

UNKNOWN = "not known"
REMEDY = "leave that to the protocol, or add --allow-mismatch, and the result says what deviates"


def check_settings(settings: EvalSettings) -> dict[str, list[Any]]:
    """Settings that deviate from the protocol, with the protocol's. Raises UsageError unless that is allowed."""
    if not settings.protocol:
        return {}
    declared = PROTOCOLS.find(settings.protocol)
    found = unlike(declared, settings.metrics)
    named = EXTRACTORS.named(settings.extractor)
    if named is None or named.name != declared.traits.extractor:
        found["extractor"] = [settings.extractor, declared.traits.extractor]
    if settings.precision != STRICT:
        found["feature_precision"] = [settings.precision, STRICT]
    if found and not settings.allow_mismatch:
        raise UsageError(f"--protocol {declared.name}: {_said(found)}; {REMEDY}")
    return found


def with_classes(source: FeatureSource, settings: EvalSettings) -> FeatureSource:
    """The source with the labels that it was drawn with, by --classes, where it says none and the protocol sets them.

    Raises UsageError for classes that aren't there.
    """
    classes = PROTOCOLS.find(settings.protocol).traits.classes if settings.protocol else 0
    if not classes or source.labels is not None or not settings.classes:
        return source
    return replace(source, labels=choose_labels(settings.classes, source.n, classes, settings.seed))


def check_source(
    source: FeatureSource, reference: Reference | None, extractor: Extractor | None, settings: EvalSettings
) -> dict[str, list[Any]]:
    """Facts on samples and reference that deviate from the protocol, and what they are by it; with what `check_settings`
    finds. Raises DataError unless that is allowed.
    """
    if not settings.protocol:
        return {}
    traits, about = PROTOCOLS.find(settings.protocol).traits, described(source, extractor)
    asked = check_settings(settings)
    found: dict[str, list[Any]] = {}
    if source.n != traits.n:
        found["n"] = [source.n, traits.n]
    if about.extractor != traits.extractor:
        found["extractor"] = [about.extractor or UNKNOWN, traits.extractor]
    elif traits.extractor == DEFAULT and not is_published(DEFAULT, about.weights_sha256):
        found["extractor_weights"] = [f"sha256 {about.weights_sha256 or UNKNOWN}", f"sha256 {PUBLISHED_INCEPTION}…"]
    if about.feature_precision not in (None, STRICT):
        found["feature_precision"] = [about.feature_precision, STRICT]
    found |= _classes(source.labels, traits) | _reference(reference, traits, settings)
    if found and not settings.allow_mismatch:
        raise DataError(
            f"{source.name}: not by --protocol {settings.protocol}: {_said(found)}; score what the protocol takes, or add "
            "--allow-mismatch, and the result says what deviates"
        )
    return {**asked, **found}


def _classes(labels: np.ndarray | None, traits: ProtocolTraits) -> dict[str, list[Any]]:
    if not traits.classes:
        return {}
    wanted = _spread(traits.classes, traits.per_class, traits.per_class)
    if labels is None:
        return {"classes": [f"{UNKNOWN}: samples in .h5 or .npz say them, or --classes", wanted]}
    counts = np.unique(labels, return_counts=True)[1]
    told = _spread(len(counts), int(counts.min()), int(counts.max()))
    return {} if told == wanted else {"classes": [told, wanted]}


def _spread(classes: int, fewest: int, most: int) -> str:
    return f"{classes} with {fewest if fewest == most else f'{fewest} to {most}'} samples each"


def _reference(reference: Reference | None, traits: ProtocolTraits, settings: EvalSettings) -> dict[str, list[Any]]:
    if not traits.ref_images or reference is None:
        return {}
    wanted = f"statistics with {traits.ref_images} images beside them"
    if reference.statistics is None:
        return {"reference": ["images or features without statistics", wanted]}
    images = 0 if reference.source is None else reference.source.n
    if settings.needing(Need.REFERENCE_FEATURES) and images != traits.ref_images:
        return {"reference": [f"statistics with {images} images beside them", wanted]}
    return {}


def _said(found: dict[str, list[Any]]) -> str:
    return "; ".join(f"{key} is {mine}, and by the protocol {theirs}" for key, (mine, theirs) in found.items())
