"""Open the files of an evaluation, and check before any extraction that they fit the metrics and each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from msgspec import structs

from elbocli.data.samples import SampleReader, read_samples
from elbocli.errors import DataError, UsageError
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, read_features, read_statistics
from elbocli.files.reading import file_sha256
from elbocli.files.recognise import arrays_in, recognise
from elbocli.runs.classes import DATA, choose_labels
from elbocli.runtime.device import Precision, sent
from elbocli.runtime.processes import ALONE, World
from elbocli.scoring.extractors import DEFAULT, EXTRACTORS, PUBLISHED_INCEPTION, STRICT, Extractor, make_extractor
from elbocli.scoring.metrics import METRICS, Need, asked
from elbocli.scoring.result import Pairs, mismatches, refuse
from elbocli.scoring.settings import PROTOCOLS, EvalSettings, Protocol

BLACK = 2  # images in the test call of an extractor: a program may not work for a single image

# Files


@dataclass(frozen=True, eq=False)
class OpenedSet:
    """An opened set of images, saved features or statistics.

    name: of the file, for messages. n: number of images or features; 0 for statistics alone.
    about: how images and features were made.
    image_shape: (H, W, C); None: the file has no images.
    reader: of the images; None on a rank that doesn't read them. streamed: whether only rank 0 reads them, once and in order.
    saved, statistics: None if not in the file.
    labels: class of each image, [n]; None: unknown. class_names: (): unknown.
    features: Features, from `extract`; on ranks other than 0, without features per image. None: not extracted.
    """

    name: str
    n: int
    about: FeatureFacts
    image_shape: tuple[int, ...] | None = None
    reader: SampleReader | None = None
    streamed: bool = False
    saved: SavedFeatures | None = None
    statistics: Statistics | None = None
    labels: np.ndarray | None = None
    class_names: Sequence[str] = ()
    features: Any = None

    def class_sizes(self) -> list[int]:
        """Return the number of images of each non-empty class; [] without labels."""
        return [] if self.labels is None else np.unique(self.labels, return_counts=True)[1].tolist()


def open_set(source: Path | IO[bytes], stack: contextlib.ExitStack, world: World = ALONE) -> OpenedSet:
    """Open saved features (a path) or images (a path or stream) until `stack` closes. Raises FormatError, DataError."""
    if isinstance(source, Path) and recognise(source) == "features":
        saved = read_features(source)
        n = len(saved.features)
        labels = None if saved.labels is None else saved.labels.numpy()
        return OpenedSet(str(source), n, structs.replace(saved.about, n=n), saved=saved, labels=labels)
    streamed = not isinstance(source, Path) or source.is_fifo()
    images: Any = None
    with world.together():
        if world.first or not streamed:
            images = replace(set_of(stack.enter_context(read_samples(source))), streamed=streamed)
    broadcast = world.broadcast(images and replace(images, reader=None))
    return replace(broadcast, reader=images and images.reader)


def set_of(reader: SampleReader) -> OpenedSet:
    """Return images as an opened set."""
    n, height, width, channels = reader.shape
    size = {"image_size": height if height == width else [height, width], "channels": channels}
    about = FeatureFacts(n=n, preprocessing={**size, **reader.preprocessing}, made=reader.made.facts() or None)
    shape = reader.shape[1:]
    names = reader.class_names
    return OpenedSet(reader.name, n, about, shape, reader, labels=reader.labels, class_names=names)


def open_reference(path: Path, stack: contextlib.ExitStack, world: World = ALONE) -> OpenedSet:
    """Open a reference (images, features or statistics) until `stack` closes. Raises FormatError, DataError."""
    if recognise(path) != "statistics":
        return open_set(path, stack, world)
    statistics = read_statistics(path)
    about = structs.replace(statistics.about, sha256=file_sha256(path))
    if "arr_0" not in arrays_in(path):
        return OpenedSet(str(path), 0, about, statistics=statistics)
    images = open_set(path, stack, world)
    about = structs.replace(about, preprocessing=about.preprocessing or images.about.preprocessing, images=images.n)
    return replace(images, about=about, statistics=statistics)


# An evaluation


@dataclass(frozen=True, eq=False)
class Opened:
    """Opened files and settings of an evaluation.

    samples: sets of samples that differ in the seed.
    extractor: None if all files are saved features or statistics. spatial: names of the metrics that need spatial features.
    """

    settings: EvalSettings
    world: World
    samples: Sequence[OpenedSet]
    reference: OpenedSet | None = None
    extractor: Extractor | None = None
    spatial: Sequence[str] = ()

    @property
    def references(self) -> list[OpenedSet]:
        """The reference, if there is one."""
        return [self.reference] if self.reference else []

    def map(self, function: Callable[[OpenedSet], OpenedSet]) -> Opened:
        """Return the evaluation with function(set) in place of each set, applied to the samples first."""
        samples = [function(side) for side in self.samples]
        return replace(self, samples=samples, reference=self.reference and function(self.reference))

    @property
    def compares_images(self) -> bool:
        """Whether features of each reference image are needed."""
        return bool(self.settings.needing(Need.REFERENCE_FEATURES) or self.settings.neighbours)

    @property
    def by_image(self) -> list[OpenedSet]:
        """Sets of which the features of each image are needed, not statistics alone."""
        return [side for side in (*self.samples, *self.references) if side.statistics is None or self.compares_images]


def open_evaluation(
    sources: Sequence[Path | IO[bytes]], ref: Path | None, settings: EvalSettings, world: World, stack: contextlib.ExitStack
) -> Opened:
    """Open and check the files of an evaluation until `stack` closes.

    sources: paths of sets of samples that differ in the seed; or one NPY stream.
    ref: None if the metrics need no reference. --save-stats and --save-features then remove metrics that need a reference.
    Raises UsageError, DataError and FormatError for files that are truncated, too small or don't fit each other.
    """
    check_protocol(settings)
    if settings.classes == DATA:
        raise UsageError(
            "--classes data: a stream doesn't say these classes; draw the samples into .h5 or .npz, which keep labels"
        )
    spatial = settings.needing(Need.SPATIAL)  # --save-stats saves spatial features also for the metrics that are removed here
    if ref is None and (settings.save_stats or settings.save_features):
        removed = settings.needing(Need.REFERENCE)
        settings = replace(settings, metrics={key: options for key, options in settings.metrics.items() if key not in removed})
    samples = [open_set(source, stack, world) for source in sources]
    reference = open_reference(ref, stack, world) if ref else None
    return prepare(Opened(settings, world, samples, reference, spatial=spatial))


def prepare(opened: Opened) -> Opened:
    """Make the extractor, unless there is one; add the extractor's facts and the labels to the sets; and check all of them.

    Raises UsageError, DataError, FormatError: files that don't suit the metrics or don't fit each other.
    """
    check_inputs(opened)
    extractor = opened.extractor or _make_extractor(opened)
    opened = replace(opened, extractor=extractor).map(partial(_with_extractor, extractor=extractor))
    check_facts(opened)
    with opened.world.together():
        logits = check_sizes(opened)
    samples = [_with_labels(side, count, opened) for side, count in zip(opened.samples, logits)]
    for side in samples:
        check_protocol(opened.settings, side, opened.reference)
    return replace(opened, samples=samples)


def _make_extractor(opened: Opened) -> Extractor | None:
    settings = opened.settings
    saved = [side for side in opened.by_image if side.saved]
    if len(saved) == len(opened.by_image):
        return None
    source = next((side for side in saved if side.about.extractor), None)
    name = settings.extractor or (source and source.about.extractor) or DEFAULT
    with opened.world.together():
        if source and not settings.extractor and name not in EXTRACTORS:  # for safety, only the user may name a file
            raise UsageError(f"{source.name}: has features of extractor file {name}; to trust {name}, add --extractor {name}")
        return make_extractor(name, settings.extractor_weights, opened.world.device, settings.precision)


def _with_extractor(side: OpenedSet, extractor: Extractor | None) -> OpenedSet:
    # The set, with the extractor's facts if it has images without known features.
    if extractor is None or side.image_shape is None or side.about.extractor:
        return side
    facts = {"weights_sha256": extractor.weights_sha256, "feature_precision": extractor.precision}
    return replace(side, about=structs.replace(side.about, extractor=extractor.name, **facts))


def _with_labels(side: OpenedSet, logits: int, opened: Opened) -> OpenedSet:
    # Labels that the metrics or the protocol need: the file's, or those of --classes. logits: number of the extractor's logits.
    settings = opened.settings
    labels = side.labels
    names = opened.reference.class_names if opened.reference else ()
    needed = bool(logits and settings.needing(Need.LABELS))
    if labels is None and settings.classes and (needed or settings.classes_of_protocol):
        number = settings.classes_of_protocol or len(names) or logits
        labels = choose_labels(settings.classes, side.n, number, settings.seed, names)
    if needed and labels is not None and not 0 <= labels.min() <= labels.max() < logits:
        raise DataError(
            f"{side.name}: labels from {labels.min()} to {labels.max()}, but the extractor knows classes 0 to {logits - 1}; "
            "use an extractor that knows all labels, or other --metrics"
        )
    return replace(side, labels=labels)


# Checks


def check_inputs(opened: Opened) -> None:
    """Check that the files suffice for the metrics.

    Raises UsageError: for metrics that lack an input. Raises DataError: for too few images.
    """
    settings = opened.settings
    samples = opened.samples
    reference = opened.reference
    inputs = {
        Need.REFERENCE: reference,
        Need.REFERENCE_FEATURES: reference is None or reference.n,
        Need.LABELS: settings.classes or all(side.labels is not None for side in samples),
    }
    for need, value in inputs.items():
        if not value and (needing := settings.needing(need)):
            raise UsageError(f"{needing[0]} needs {need.value}")
    for name, options in settings.metrics.items():
        for side, least in zip((samples[0], reference), METRICS[name].traits.least(options)):
            if side and side.n < least and (side.n or not side.statistics):
                raise DataError(f"{side.name}: has {side.n} images; --metrics {name} needs at least {least}; add images")
    if settings.save_stats and samples[0].n < 2:
        raise DataError(f"{samples[0].name}: has one image; --save-stats needs at least 2; add images")
    if len(samples) > 1 and (settings.save_stats or settings.save_features or settings.neighbours):
        raise UsageError(f"--save-stats, --save-features and --neighbours take 1 set of samples, not {len(samples)}; name 1 set")
    if settings.neighbours:
        shapes = {side and not side.streamed and side.image_shape for side in (samples[0], reference)}
        if not all(shapes) or len(shapes) > 1:
            raise UsageError("--neighbours needs images of one size in SAMPLES and --ref; name files, not streams or features")


def check_facts(opened: Opened) -> None:
    """Check by their metadata that files fit the metrics and each other.

    Raises UsageError: if a metric isn't defined for the extractor.
    Raises DataError: if sets of samples were made differently; without --allow-mismatch, also if --ref was.
    """
    settings = opened.settings
    samples = opened.samples
    for side in samples:
        facts = fingerprint(side.about)
        for name, options in settings.metrics.items():
            if (network := METRICS[name].traits.network(options)) not in (None, facts.get("extractor")):
                raise UsageError(f"{side.name}: --metrics {name} needs other features; score images with --extractor {network}")
        difference = mismatches({"n": side.n, **facts}, {"n": samples[0].n, **fingerprint(samples[0].about)})
        refuse(difference, side.name, samples[0].name, "score one set at a time, or sets made alike")
        for other in () if settings.allow_mismatch else opened.references:
            remedy = "such scores are not comparable; use images made alike, or 'elbo eval --allow-mismatch'"
            refuse(mismatches(fingerprint(other.about), facts), other.name, side.name, remedy)
    for side in filter(None, (*samples, opened.reference)) if opened.spatial else ():
        features: Any = side.statistics or side.saved or opened.extractor
        if features.spatial is None:
            raise UsageError(
                f"{side.name}: no spatial features, which {opened.spatial[0]} needs; score images with --extractor {DEFAULT}"
            )


def check_sizes(opened: Opened) -> list[int]:
    """Check that all files have equally many features, and the logits that metrics need; return each set's number of logits.

    Raises DataError, UsageError, FormatError.
    """
    sizes = [(side.name, *_sizes_of(side, opened)) for side in opened.by_image]
    sizes += [(side.name, len(side.statistics.mu), 0) for side in opened.references if side.statistics]
    name, width, _ = sizes[0]
    for other, other_width, _ in sizes:
        if other_width != width:
            raise DataError(
                f"{name}: has {width} features per image, but {other} has {other_width}; use features of one extractor"
            )
    sizes = sizes[: len(opened.samples)]
    for name, _, logits in sizes:
        if not logits and (needing := opened.settings.needing(Need.LOGITS)):
            raise UsageError(f"{name}: has no logits, which {needing[0]} needs; choose other --metrics")
    return [logits for *_, logits in sizes]


def _sizes_of(side: OpenedSet, opened: Opened) -> tuple[int, int]:
    # Numbers of features and of logits of an image: of saved ones, or as the extractor gives for black images.
    if side.saved:
        features = side.saved.features
        logits = side.saved.logits
    else:
        assert opened.extractor and side.image_shape
        black = torch.zeros(BLACK, *side.image_shape, dtype=torch.uint8)
        precision = Precision(opened.extractor.precision, opened.world.device)
        with torch.inference_mode(), precision.applied(), precision.autocast():
            features, logits = opened.extractor(sent(black, opened.world.device).permute(0, 3, 1, 2))
    return features.shape[1], 0 if logits is None else logits.shape[1]


def fingerprint(about: FeatureFacts) -> dict[str, Any]:
    """Return the settings that samples and reference must share, where known."""
    facts = {
        **(about.preprocessing or {}),
        "extractor": about.extractor,
        "weights_sha256": about.weights_sha256,
        "feature_precision": about.feature_precision,
    }
    return {key: value for key, value in facts.items() if value is not None}


# Protocols


def options_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of all metrics by name. metrics: options by metric."""
    return {name: value for options in metrics.values() for name, value in vars(options).items()}


def deviations(settings: EvalSettings, samples: OpenedSet | None = None, reference: OpenedSet | None = None) -> Pairs:
    """Return deviations from the protocol: name → [value, the protocol's value].

    samples, reference: opened files; None: only the settings are compared.
    """
    if not settings.protocol:
        return {}
    protocol = PROTOCOLS[settings.protocol]
    pairs = _setting_pairs(settings, protocol)
    if samples:
        pairs |= _sample_pairs(samples, protocol)
    if reference and protocol.ref_images:
        text = "statistics with {} images beside them"
        images = protocol.ref_images
        beside = text.format(reference.n if settings.needing(Need.REFERENCE_FEATURES) else images)
        pairs["reference"] = [beside if reference.statistics else "no statistics", text.format(images)]
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def check_protocol(settings: EvalSettings, samples: OpenedSet | None = None, reference: OpenedSet | None = None) -> None:
    """Raise UsageError for settings, DataError for files, that deviate from the protocol without --allow-mismatch.

    samples, reference: as in `deviations`.
    """
    if not settings.allow_mismatch:
        remedy = "follow the protocol, or add --allow-mismatch, and the result says what deviates"
        where, kind = (samples.name, DataError) if samples else ("settings", UsageError)
        refuse(deviations(settings, samples, reference), where, f"--protocol {settings.protocol}", remedy, kind)


def _setting_pairs(settings: EvalSettings, protocol: Protocol) -> Pairs:
    usual = asked(protocol.metrics, **protocol.options)
    options = options_of(settings.metrics)
    extractor = EXTRACTORS.lookup(settings.extractor)
    name = extractor.name if extractor else settings.extractor
    more = [name for name in settings.metrics if name not in usual]  # metrics of the protocol may be omitted
    return {
        "extractor": [name, _allowed(name, protocol)],
        "feature_precision": [settings.precision, STRICT],
        "metrics": [", ".join(more or usual), ", ".join(usual)],
        **{name: [options[name], value] for name, value in options_of(usual).items() if name in options},
    }


def _allowed(extractor: Any, protocol: Protocol) -> Any:
    return extractor if extractor in protocol.extractors else " or ".join(protocol.extractors)


def _sample_pairs(samples: OpenedSet, protocol: Protocol) -> Pairs:
    about = samples.about
    unknown = "not known"
    pairs: Pairs = {
        "n": [samples.n, protocol.n],
        "extractor": [about.extractor or unknown, _allowed(about.extractor, protocol)],
        "feature_precision": [about.feature_precision or STRICT, STRICT],
    }
    if about.extractor == DEFAULT == _allowed(DEFAULT, protocol):
        pairs["extractor_weights"] = [str(about.weights_sha256 or unknown)[:8], PUBLISHED_INCEPTION]
    if protocol.classes:
        text = "{}, each with {} to {} samples"
        counts = samples.class_sizes()
        classes = text.format(len(counts), min(counts), max(counts)) if counts else unknown
        pairs["classes"] = [classes, text.format(protocol.classes, protocol.per_class, protocol.per_class)]
    return pairs
