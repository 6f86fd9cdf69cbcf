"""Whether samples, reference, metrics and protocol suit each other, as far as that is known before features are extracted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.class_labels import choose_labels
from elbocli.core.metrics import METRICS, Need
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import FeatureSource, Reference, described, fingerprint, mismatches
from elbocli.evaluate.settings import PROTOCOLS, EvalSettings, ProtocolTraits, unlike
from elbocli.files.features import SUFFIX
from elbocli.nn.extractors import DEFAULT, EXTRACTORS, PUBLISHED_INCEPTION, STRICT, Extractor, is_published


def possible(
    settings: EvalSettings,
    sources: Sequence[FeatureSource],
    reference: Reference | None,
    held_out: FeatureSource | None = None,
) -> EvalSettings:
    """The settings, without metrics that need a reference where only statistics or features are to be saved.

    Raises UsageError for what can't be had, DataError for too few images.
    """
    saving = [path for path in (settings.save_stats, settings.save_features) if path is not None]
    if saving and len(sources) > 1:
        raise UsageError(f"{saving[0]} can hold one set of samples; name one at a time")
    if settings.save_features is not None and settings.save_features.suffix != SUFFIX:
        raise UsageError(f"{settings.save_features}: features are saved as {SUFFIX}; name it so")
    if reference is None and (needing := settings.needing(Need.REFERENCE)):
        if not saving:
            raise UsageError(
                f"{needing[0]} needs --ref (a dataset, saved features or statistics); or add --save-stats FILE to make one"
            )
        kept = {name: options for name, options in settings.metrics.items() if name not in needing}
        settings = replace(settings, metrics=kept)
    if reference is not None:
        if reference.source is not None:
            _check_count(reference.source, settings, 1)
        elif needing := settings.needing(Need.REFERENCE_FEATURES):
            raise UsageError(
                f"{reference.path}: holds statistics only, and {needing[0]} needs the reference's images: name a dataset, "
                "or features saved by --save-features"
            )
    if held_out is not None:
        _check_count(held_out, settings, 2)
    elif needing := settings.needing(Need.HELD_OUT):
        raise UsageError(f"{needing[0]} needs --held-out: images like those of --ref that the model was not trained on")
    for source in sources:
        _check_count(source, settings, 0)
        if source.n != sources[0].n:
            raise DataError(
                f"{source.name}: {source.n} images, but {sources[0].name} has {sources[0].n}; scores of different n have "
                "no common mean"
            )
        if settings.save_stats is not None and source.n < 2:
            raise DataError(f"{source.name}: one image is no distribution; statistics need at least 2")
        if settings.needing(Need.LABELS) and source.labels is None and not settings.classes:
            raise UsageError(
                f"{source.name}: accuracy needs labels: samples of several classes in .h5 or .npz, or --classes as given "
                "to 'elbo sample'"
            )
    return settings


def _check_count(source: FeatureSource, settings: EvalSettings, side: int) -> None:
    """Raise DataError when a metric needs more images of it. side: 0 of samples, 1 of the reference."""
    for name in settings.metrics:
        needed, fewer = settings.least(name)[side], METRICS[name].traits.fewer
        if source.n < needed:
            hint = f", or {fewer}" if fewer else ""
            raise DataError(f"{source.name}: {source.n} images; --metrics {name} needs at least {needed}{hint}")


def check_made_alike(
    source: FeatureSource, reference: Reference | None, extractor: Extractor | None, settings: EvalSettings
) -> dict[str, list[Any]]:
    """Facts in which samples and reference were made differently, with both values.

    Raises DataError unless that is allowed, UsageError when a metric isn't defined for the network.
    """
    mine = fingerprint(described(source, extractor))
    for options in settings.metrics.values():
        options.check(mine.get("extractor"))
    if reference is None:
        return {}
    found = mismatches(mine, reference.fingerprint(extractor))
    if found and not settings.allow_mismatch:
        said = "; ".join(f"{key} is {theirs}, that of {source.name} {own}" for key, (own, theirs) in found.items())
        raise DataError(
            f"{reference.path}: {said}: such scores compare with no others; use a reference made alike, or --allow-mismatch"
        )
    return found


def check_held_out_alike(
    held_out: FeatureSource, source: FeatureSource, extractor: Extractor | None, settings: EvalSettings
) -> None:
    """Raise DataError unless the held-out images were made as the samples were, or another way is allowed."""
    pair = (fingerprint(described(each, extractor)) for each in (source, held_out))
    if (found := mismatches(*pair)) and not settings.allow_mismatch:
        said = "; ".join(f"{key} is {theirs}, that of {source.name} {own}" for key, (own, theirs) in found.items())
        raise DataError(f"{held_out.name}: {said}; use held-out images made alike, or --allow-mismatch")


def check_spatial(
    sources: Sequence[FeatureSource], reference: Reference | None, extractor: Extractor | None, name: str
) -> None:
    """Raise UsageError unless both sides have spatial features, which the metric of that name needs."""
    for source in sources:
        if source.saved is not None and source.saved.spatial is None:
            raise UsageError(
                f"{source.name}: saved without spatial features, which {name} needs; save it with --metrics {name}"
            )
    if reference is not None and reference.has_spatial is False:
        raise UsageError(
            f"{reference.path}: holds no spatial features, which {name} needs; save it with --metrics {name}"
        )
    if extractor is not None and extractor.spatial is None:
        raise UsageError(
            f"{extractor.name} has no spatial features, and {name} needs them; it is defined for {DEFAULT}"
        )


def check_repeats_alike(sources: Sequence[FeatureSource], extractor: Extractor | None) -> None:
    """Raise DataError unless all were made in one way: other numbers have no common mean."""
    first = fingerprint(described(sources[0], extractor))
    for source in sources[1:]:
        for key, (own, others) in mismatches(fingerprint(described(source, extractor)), first).items():
            raise DataError(
                f"{source.name}: {key} is {own}, that of {sources[0].name} {others}; such scores have no common mean"
            )


def check_features(
    found: dict[str, Tensor], source: FeatureSource, reference: Reference | None, settings: EvalSettings
) -> None:
    """Raise DataError or UsageError when the first features show that the others won't do either."""
    if (needing := settings.needing(Need.LOGITS)) and "logits" not in found:
        raise UsageError(
            f"{source.name}: its features come without logits, and {needing[0]} needs them; choose other --metrics"
        )
    width = None if reference is None else reference.width
    if width not in (None, found["values"].shape[1]):
        raise DataError(
            f"{source.name}: {found['values'].shape[1]} features an image, and the reference has {width}; use one made "
            "alike"
        )


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
    if source.saved is not None or extractor is None:
        logits = None if source.saved is None else source.saved.logits
    else:
        assert source.reader is not None
        _, height, width, channels = source.reader.shape
        black = torch.zeros(min(settings.batch, source.n), channels, height, width, dtype=torch.uint8, device=device)
        with torch.inference_mode():
            logits = extractor(black)[1]
    classes, labels = 0 if logits is None else logits.shape[1], source.labels
    if classes == 0:  # the first features will say that there are no logits
        return source
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
