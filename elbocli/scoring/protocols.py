"""Compare settings and files of an evaluation with a protocol of published scores."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import asdict

from elbocli.errors import DataError, UsageError
from elbocli.scoring.extractors import DEFAULT, EXTRACTORS, PUBLISHED_INCEPTION, STRICT
from elbocli.scoring.metrics import Metric, Need, parse_metrics
from elbocli.scoring.result import Pairs, refuse
from elbocli.scoring.sets import ImageSet, SomeSet, class_sizes
from elbocli.scoring.settings import PROTOCOLS, EvalSettings, Option, Protocol


def options_of(metrics: Mapping[str, Metric]) -> dict[str, Option]:
    """Return the options of all metrics by name."""
    return {name: value for metric in metrics.values() for name, value in asdict(metric).items()}


def deviations(settings: EvalSettings) -> Pairs:
    """Return deviations of the settings from their protocol: name → [value, the protocol's value]."""
    if not settings.protocol:
        return {}
    protocol = PROTOCOLS[settings.protocol]
    usual = parse_metrics(protocol.metrics, protocol.options)
    options = options_of(settings.metrics)
    extractor = EXTRACTORS.lookup(settings.extractor)
    name = extractor.name if extractor else settings.extractor
    more = [name for name in settings.metrics if name not in usual]  # metrics of the protocol may be omitted
    return _differing(
        {
            "extractor": [name, _allowed(name, protocol)],
            "feature_precision": [settings.precision, STRICT],
            "metrics": [", ".join(more or usual), ", ".join(usual)],
            **{name: [options[name], value] for name, value in options_of(usual).items() if name in options},
        }
    )


def deviations_of_files(settings: EvalSettings, samples: SomeSet, reference: SomeSet | None) -> Pairs:
    """Return deviations of samples and reference from the settings' protocol: name → [value, the protocol's value]."""
    if not settings.protocol:
        return {}
    protocol = PROTOCOLS[settings.protocol]
    about = samples.about
    unknown = "not known"
    pairs: Pairs = {
        "n": [samples.about.n, protocol.n],
        "extractor": [about.extractor or unknown, _allowed(about.extractor, protocol)],
        "feature_precision": [about.feature_precision or STRICT, STRICT],
    }
    if about.extractor == DEFAULT == _allowed(DEFAULT, protocol):
        pairs["extractor_weights"] = [str(about.weights_sha256 or unknown)[:8], PUBLISHED_INCEPTION]
    if protocol.classes:
        text = "{}, each with {} to {} samples"
        counts = class_sizes(samples.labels)
        classes = text.format(len(counts), min(counts), max(counts)) if counts else unknown
        pairs["classes"] = [classes, text.format(protocol.classes, protocol.per_class, protocol.per_class)]
    if reference and protocol.ref_images:
        text = "statistics with {} images beside them"
        beside = reference.n if settings.needing(Need.REFERENCE_FEATURES) else protocol.ref_images
        pairs["reference"] = [
            text.format(beside) if _has_statistics(reference) else "no statistics",
            text.format(protocol.ref_images),
        ]
    return _differing(pairs)


def check_settings(settings: EvalSettings) -> None:
    """Raise UsageError for settings that deviate from their protocol without --allow-mismatch."""
    if not settings.allow_mismatch:
        refuse(deviations(settings), "settings", f"protocol {settings.protocol}", REMEDY, UsageError)


def check_files(settings: EvalSettings, samples: SomeSet, reference: SomeSet | None) -> None:
    """Raise DataError for files that deviate from the settings' protocol without --allow-mismatch."""
    if not settings.allow_mismatch:
        pairs = deviations_of_files(settings, samples, reference)
        refuse(pairs, samples.name, f"protocol {settings.protocol}", REMEDY, DataError)


REMEDY = "follow the protocol, or add --allow-mismatch, and the result says what deviates"


def _has_statistics(reference: SomeSet) -> bool:
    return reference.statistics is not None if isinstance(reference, ImageSet) else reference.n == 0


def _differing(pairs: Pairs) -> Pairs:
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _allowed(extractor: str | None, protocol: Protocol) -> str | None:
    return extractor if extractor in protocol.extractors else " or ".join(protocol.extractors)
