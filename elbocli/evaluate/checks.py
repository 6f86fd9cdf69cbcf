"""Whether samples, reference, metrics and protocol suit each other, as far as that is known before features are extracted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from elbocli.core.metrics import METRICS, Need, asked
from elbocli.core.streams import choose_labels
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import FeatureSource, Reference, described, fingerprint
from elbocli.evaluate.result import differing, mismatches
from elbocli.evaluate.settings import PROTOCOLS, EvalSettings
from elbocli.files.features import SUFFIX
from elbocli.nn.extractors import DEFAULT, EXTRACTORS, PUBLISHED_INCEPTION, STRICT, Extractor, is_published

Deviations = dict[str, list[Any]]
"""Facts that are others than they should be, each with what it should be."""
UNKNOWN = "not known"


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
                f"{source.name}: {source.n} images, but {sources[0].name} has {sources[0].n}; score as many of each"
            )
        if settings.save_stats is not None and source.n < 2:
            raise DataError(f"{source.name}: one image is no distribution; statistics need at least 2")
        if settings.needing(Need.LABELS) and source.labels is None and not settings.classes:
            raise UsageError(
                f"{source.name}: accuracy needs labels: samples of several classes in .h5 or .npz, or --classes as given "
                "to 'elbo sample'"
            )
    if settings.neighbours is not None:
        _check_images(sources, reference)
    return settings


def _check_count(source: FeatureSource, settings: EvalSettings, side: int) -> None:
    """Raise DataError when a metric needs more images of it. side: 0 of samples, 1 of the reference, 2 held out."""
    for name, options in settings.metrics.items():
        traits = METRICS[name].traits
        needed = [*traits.least(options), 0][side]
        if source.n < needed:
            hint = f", or {traits.fewer}" if traits.fewer else ""
            raise DataError(f"{source.name}: {source.n} images; --metrics {name} needs at least {needed}{hint}")


def _check_images(sources: Sequence[FeatureSource], reference: Reference | None) -> None:
    """Raise UsageError unless images of one set of samples and of the reference, of one size, can be read twice."""
    if len(sources) > 1:
        raise UsageError("--neighbours shows one set of samples; name one at a time")
    if reference is None or reference.source is None:
        raise UsageError("--neighbours needs --ref with images: a dataset, .npz, .npy or a folder")
    pair = sources[0], reference.source
    for source in pair:
        if source.saved is not None:
            raise UsageError(f"{source.name}: saved features have no images, which --neighbours shows; name the images")
    if sources[0].alone or Path(sources[0].name).is_fifo():
        raise UsageError("--neighbours reads the samples twice, which a stream can't be; name a file")
    if len({source.reader.shape[1:] for source in pair if source.reader is not None}) > 1:
        raise UsageError(f"--neighbours: {pair[0].name} and {pair[1].name} have images of different sizes or channels")


def check_made_alike(
    sources: Sequence[FeatureSource],
    reference: Reference | None,
    held_out: FeatureSource | None,
    extractor: Extractor | None,
    settings: EvalSettings,
) -> list[Deviations]:
    """Facts in which each of the samples and the reference were made differently, with both values.

    Raises DataError unless that is allowed, UsageError when a metric isn't defined for the network.
    """
    made = {source.name: fingerprint(described(source, extractor)) for source in sources}
    theirs = {} if reference is None else reference.fingerprint(extractor)
    others = {} if reference is None else {str(reference.path): theirs}
    if held_out is not None:
        others[held_out.name] = fingerprint(described(held_out, extractor))
    first, *_ = made.values()
    for name, own in made.items():
        for options in settings.metrics.values():
            options.check(own.get("extractor"))
        if found := mismatches(first, own):
            raise DataError(f"{name}: {differing(found, sources[0].name)}; such scores have no common mean")
        for other, facts in () if settings.allow_mismatch else others.items():
            if found := mismatches(own, facts):
                raise DataError(
                    f"{other}: {differing(found, name)}: such scores compare with no others; use images made alike, or "
                    "--allow-mismatch"
                )
    return [mismatches(made[source.name], theirs) for source in sources]


def check_spatial(
    sources: Sequence[FeatureSource], reference: Reference | None, extractor: Extractor | None, name: str
) -> None:
    """Raise UsageError unless all sides have spatial features, which the metric of that name needs."""
    lacking = [source.name for source in sources if source.saved is not None and source.saved.spatial is None]
    if reference is not None and reference.layout is not None and not reference.layout[1]:
        lacking.append(str(reference.path))
    if extractor is not None and extractor.spatial is None:
        lacking.append(extractor.name)
    if lacking:
        raise UsageError(
            f"{lacking[0]}: no spatial features, which {name} needs; score images by {DEFAULT}, or save with --metrics {name}"
        )


def check_features(
    found: dict[str, Tensor], source: FeatureSource, reference: Reference | None, settings: EvalSettings
) -> None:
    """Raise DataError or UsageError when the first features show that the others won't do either."""
    if (needing := settings.needing(Need.LOGITS)) and "logits" not in found:
        raise UsageError(
            f"{source.name}: its features come without logits, and {needing[0]} needs them; choose other --metrics"
        )
    labels_of(source, reference, found.get("logits"), settings)
    layout, width = None if reference is None else reference.layout, found["values"].shape[1]
    if layout is not None and layout[0] != width:
        raise DataError(
            f"{source.name}: {width} features an image, and the reference has {layout[0]}; use one made alike"
        )


def labels_of(
    source: FeatureSource, reference: Reference | None, logits: Tensor | None, settings: EvalSettings
) -> np.ndarray | None:
    """The labels of the source [n], or those that a stream was drawn with, where a metric needs them.

    Raises UsageError for a class that isn't there, DataError for one that the network doesn't tell.
    """
    labels = source.labels
    if logits is None or not settings.needing(Need.LABELS):
        return labels
    classes = logits.shape[1]
    if labels is None:
        reader = None if reference is None or reference.source is None else reference.source.reader
        names = [] if reader is None else list(reader.class_names)
        labels = choose_labels(settings.classes, source.n, len(names) or classes, settings.seed, names)
        assert labels is not None
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{source.name}: labels from {labels.min()} to {labels.max()}, but the network tells classes 0 to {classes - 1}; "
            "accuracy needs a network of the same classes"
        )
    return labels


def check_settings(settings: EvalSettings) -> Deviations:
    """Settings that deviate from the protocol. Raises UsageError unless that is allowed.

    Some of the protocol's metrics are no deviation, nor are flags, which add numbers and change none.
    """
    if not settings.protocol:
        return {}
    protocol, found = PROTOCOLS[settings.protocol], Deviations()
    if others := [name for name in settings.metrics if name not in protocol.metrics]:
        found["metrics"] = [", ".join(others), ", ".join(protocol.metrics)]
    usual = asked(protocol.metrics, **protocol.options)
    for name, options in settings.metrics.items():
        for each in options.own() if name in usual else []:
            mine, theirs = getattr(options, each.name), getattr(usual[name], each.name)
            if mine != theirs and not isinstance(mine, bool):
                found[each.name] = [mine, theirs]
    named = EXTRACTORS.named(settings.extractor)
    if named is None or named.name != protocol.extractor:
        found["extractor"] = [settings.extractor, protocol.extractor]
    if settings.precision != STRICT:
        found["feature_precision"] = [settings.precision, STRICT]
    if found and not settings.allow_mismatch:
        raise UsageError(
            f"--protocol {settings.protocol}: {_said(found)}; leave that to the protocol, or add --allow-mismatch, and the "
            "result says what deviates"
        )
    return found


def with_classes(source: FeatureSource, settings: EvalSettings) -> FeatureSource:
    """The source with the labels that it was drawn with, by --classes, where it says none and the protocol sets them.

    Raises UsageError for classes that aren't there.
    """
    classes = PROTOCOLS[settings.protocol].classes if settings.protocol else 0
    if not classes or source.labels is not None or not settings.classes:
        return source
    return replace(source, labels=choose_labels(settings.classes, source.n, classes, settings.seed))


def check_source(
    source: FeatureSource, reference: Reference | None, extractor: Extractor | None, settings: EvalSettings
) -> Deviations:
    """Return the facts about samples and reference that deviate from the protocol, with what `check_settings` finds.

    Raises DataError unless that is allowed.
    """
    if not settings.protocol:
        return {}
    protocol, about, found = PROTOCOLS[settings.protocol], described(source, extractor), Deviations()
    if source.n != protocol.n:
        found["n"] = [source.n, protocol.n]
    if about.extractor != protocol.extractor:
        found["extractor"] = [about.extractor or UNKNOWN, protocol.extractor]
    elif protocol.extractor == DEFAULT and not is_published(DEFAULT, about.weights_sha256):
        found["extractor_weights"] = [f"sha256 {about.weights_sha256 or UNKNOWN}", f"sha256 {PUBLISHED_INCEPTION}…"]
    if about.feature_precision not in (None, STRICT):
        found["feature_precision"] = [about.feature_precision, STRICT]
    if protocol.classes:
        counts = [] if source.labels is None else np.unique(source.labels, return_counts=True)[1].tolist()
        if counts != [protocol.per_class] * protocol.classes:
            spread = f"{len(counts)} with {min(counts)} to {max(counts)} samples each" if counts else ""
            given = spread or f"{UNKNOWN}: samples in .h5 or .npz say them, or --classes"
            found["classes"] = [given, f"{protocol.classes} with {protocol.per_class} samples each"]
    if protocol.ref_images and reference is not None:
        wanted, images = "statistics with {} images beside them", 0 if reference.source is None else reference.source.n
        if reference.statistics is None:
            found["reference"] = ["images or features without statistics", wanted.format(protocol.ref_images)]
        elif settings.needing(Need.REFERENCE_FEATURES) and images != protocol.ref_images:
            found["reference"] = [wanted.format(images), wanted.format(protocol.ref_images)]
    if found and not settings.allow_mismatch:
        raise DataError(
            f"{source.name}: not by --protocol {settings.protocol}: {_said(found)}; score what the protocol takes, or add "
            "--allow-mismatch, and the result says what deviates"
        )
    return {**check_settings(settings), **found}


def _said(found: Deviations) -> str:
    return "; ".join(f"{key} is {mine}, and by the protocol {theirs}" for key, (mine, theirs) in found.items())
