"""Open the files of an evaluation, and check before any extraction that they fit the metrics and each other."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from msgspec import structs

from elbocli.errors import DataError, Parameter, UsageError
from elbocli.files.features import FeatureFacts
from elbocli.files.records import JSON
from elbocli.runs.classes import DATA, choose_labels
from elbocli.runtime.device import Precision, sent
from elbocli.runtime.processes import World
from elbocli.scoring.extractors import DEFAULT, EXTRACTORS, Extractor, make_extractor
from elbocli.scoring.metrics import Metric, Need
from elbocli.scoring.protocols import check_files, check_settings
from elbocli.scoring.result import mismatches, refuse
from elbocli.scoring.sets import FeatureSet, ImageSet, SomeSet, Source, open_reference, open_set
from elbocli.scoring.settings import EvalSettings

BLACK = 2  # images in the test call of an extractor: a program may not work for a single image


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Opened files and settings of an evaluation.

    samples: sets of samples that differ in the seed. reference: None: the metrics need none.
    extractor: None if all features are saved.
    """

    settings: EvalSettings
    world: World
    samples: Sequence[SomeSet]
    reference: SomeSet | None = None
    extractor: Extractor | None = None

    @property
    def sets(self) -> list[SomeSet]:
        """Samples and reference."""
        return [*self.samples, *self.references]

    @property
    def references(self) -> list[SomeSet]:
        """The reference, if there is one."""
        return [self.reference] if self.reference else []

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Metrics to compute. Without a reference, --save-stats and --save-features leave out those that need one."""
        metrics = self.settings.metrics
        if self.reference or not (self.settings.save_stats or self.settings.save_features):
            return metrics
        return {name: metric for name, metric in metrics.items() if Need.REFERENCE not in metric.needs}

    @property
    def spatial(self) -> list[str]:
        """Names of the metrics that need spatial features; --save-stats saves these also for metrics that are left out."""
        return self.settings.needing(Need.SPATIAL)

    @property
    def compares_images(self) -> bool:
        """Whether features of each reference image are needed."""
        return bool(self.needing(Need.REFERENCE_FEATURES) or self.settings.neighbours)

    @property
    def by_image(self) -> list[SomeSet]:
        """Sets of which the features of each image are needed, not their statistics alone."""
        reference = self.reference
        stored = (isinstance(reference, FeatureSet) and not reference.n) or (
            isinstance(reference, ImageSet) and reference.statistics
        )
        return self.sets if self.compares_images or not stored else [*self.samples]

    def needing(self, need: Need) -> list[str]:
        """Return the names of the metrics to compute that need an input."""
        return [name for name, metric in self.metrics.items() if need in metric.needs]


def open_evaluation(
    sources: Sequence[Source], ref: Source | None, settings: EvalSettings, world: World, stack: contextlib.ExitStack
) -> Evaluation:
    """Open and check the files of an evaluation until `stack` closes.

    sources: sets of samples that differ in the seed; or one NPY stream.
    ref: None if the metrics need no reference.
    Raises UsageError, DataError and FormatError for files that are truncated, too small or don't fit each other.
    """
    check_settings(settings)
    if settings.classes == DATA:
        raise UsageError(
            Parameter("classes"),
            " data: a stream doesn't say these classes; draw the samples into .h5 or .npz, which keep labels",
        )
    samples = [open_set(source, stack, world) for source in sources]
    reference = None if ref is None else open_reference(ref, stack, world)
    return prepare(Evaluation(settings, world, samples, reference))


def prepare(evaluation: Evaluation) -> Evaluation:
    """Make the extractor if there is none yet. Give each set its labels and the extractor's facts, then check the sets.

    Raises UsageError, DataError, FormatError: files that don't suit the metrics or don't fit each other.
    """
    check_inputs(evaluation)
    extractor = evaluation.extractor or _make_extractor(evaluation)
    samples = [_with_extractor(some, extractor) for some in evaluation.samples]
    reference = evaluation.reference and _with_extractor(evaluation.reference, extractor)
    evaluation = replace(evaluation, samples=samples, reference=reference, extractor=extractor)
    check_facts(evaluation)
    with evaluation.world.together():
        logits = check_sizes(evaluation)
    samples = [_with_labels(some, count, evaluation) for some, count in zip(samples, logits, strict=True)]
    for some in samples:
        check_files(evaluation.settings, some, reference)
    return replace(evaluation, samples=samples)


def _make_extractor(evaluation: Evaluation) -> Extractor | None:
    settings = evaluation.settings
    saved = [some for some in evaluation.by_image if isinstance(some, FeatureSet)]
    if len(saved) == len(evaluation.by_image):
        return None
    source = next((some for some in saved if some.about.extractor), None)
    name = settings.extractor or (source and source.about.extractor) or DEFAULT
    with evaluation.world.together():
        if source and not settings.extractor and name not in EXTRACTORS:  # for safety, only the user may name a file
            raise UsageError(
                f"{source.name}: has features of extractor file {name}; to trust {name}, add ", Parameter("extractor"), f" {name}"
            )
        return make_extractor(name, settings.extractor_weights, evaluation.world.device, settings.precision)


def _with_extractor(some: SomeSet, extractor: Extractor | None) -> SomeSet:
    # The set, with the extractor's facts if it has images without known features.
    if extractor is None or isinstance(some, FeatureSet) or some.about.extractor:
        return some
    facts = {"weights_sha256": extractor.weights_sha256, "feature_precision": extractor.precision}
    return replace(some, about=structs.replace(some.about, extractor=extractor.name, **facts))


def _with_labels(samples: SomeSet, logits: int, evaluation: Evaluation) -> SomeSet:
    # Labels that the metrics or the protocol need: the file's, or those of --classes. logits: number of the extractor's logits.
    settings = evaluation.settings
    labels = samples.labels
    names = evaluation.reference.class_names if evaluation.reference else ()
    needed = bool(logits and evaluation.needing(Need.LABELS))
    if labels is None and settings.classes and (needed or settings.classes_of_protocol):
        number = settings.classes_of_protocol or len(names) or logits
        labels = choose_labels(settings.classes, samples.n, number, settings.seed, names)
    if needed and labels is not None and not 0 <= labels.min() <= labels.max() < logits:
        raise DataError(
            f"{samples.name}: labels from {labels.min()} to {labels.max()}, but the extractor knows classes "
            f"0 to {logits - 1}; use an extractor that knows all labels, or other ",
            Parameter("metrics"),
        )
    return samples.with_labels(labels)


# Checks


def check_inputs(evaluation: Evaluation) -> None:
    """Check that the files suffice for the metrics.

    Raises UsageError: for metrics that lack an input. Raises DataError: for too few images.
    """
    settings = evaluation.settings
    samples = evaluation.samples
    first = samples[0]
    reference = evaluation.reference
    given = {
        Need.REFERENCE: reference is not None,
        Need.REFERENCE_FEATURES: reference is None or reference.n > 0,
        Need.LABELS: bool(settings.classes) or all(some.labels is not None for some in samples),
    }
    for need, is_given in given.items():
        if not is_given and (needing := evaluation.needing(need)):
            raise UsageError(f"{needing[0]} needs ", *need.value)
    for name, metric in evaluation.metrics.items():
        for some, least in zip([first, *evaluation.references], metric.least):
            if 0 < some.n < least:
                raise DataError(
                    f"{some.name}: has {some.n} images; ", Parameter("metrics"), f" {name} needs at least {least}; add images"
                )
    if settings.save_stats and first.n < 2:
        raise DataError(f"{first.name}: has one image; ", Parameter("save_stats"), " needs at least 2; add images")
    if len(samples) > 1 and (settings.save_stats or settings.save_features or settings.neighbours):
        raise UsageError(
            Parameter("save_stats"),
            ", ",
            Parameter("save_features"),
            " and ",
            Parameter("neighbours"),
            f" take 1 set of samples, not {len(samples)}; name 1 set",
        )
    if settings.neighbours:
        files = [some for some in evaluation.sets if isinstance(some, ImageSet) and not some.streamed]
        if len(files) < 2 or len({some.reader.shape[1:] for some in files}) > 1:
            raise UsageError(
                Parameter("neighbours"),
                " needs images of one size in SAMPLES and ",
                Parameter("ref"),
                "; name files, not streams or features",
            )


def check_facts(evaluation: Evaluation) -> None:
    """Check by their metadata that files fit the metrics and each other.

    Raises UsageError: if a metric isn't defined for the extractor.
    Raises DataError: if sets of samples were made differently; without --allow-mismatch, also if --ref was.
    """
    samples = evaluation.samples
    first = {"n": samples[0].n, **fingerprint(samples[0].about)}
    for some in samples:
        facts = fingerprint(some.about)
        for name, metric in evaluation.metrics.items():
            if metric.network not in ("", facts.get("extractor")):
                raise UsageError(
                    f"{some.name}: ",
                    Parameter("metrics"),
                    f" {name} needs other features; score images with ",
                    Parameter("extractor"),
                    f" {metric.network}",
                )
        difference = mismatches({"n": some.n, **facts}, first)
        refuse(difference, some.name, samples[0].name, "score one set at a time, or sets made alike")
        for other in () if evaluation.settings.allow_mismatch else evaluation.references:
            remedy = "such scores are not comparable; use images made alike, or 'elbo eval --allow-mismatch'"
            refuse(mismatches(fingerprint(other.about), facts), other.name, some.name, remedy)
    for some in evaluation.sets if evaluation.spatial else ():
        if not _has_spatial(some, evaluation.extractor):
            needing = evaluation.spatial[0]
            raise UsageError(
                f"{some.name}: no spatial features, which {needing} needs; score images with ",
                Parameter("extractor"),
                f" {DEFAULT}",
            )


def _has_spatial(some: SomeSet, extractor: Extractor | None) -> bool:
    if isinstance(some, FeatureSet):
        return some.features.has_spatial
    if some.statistics:
        return some.statistics.spatial is not None
    return extractor is not None and extractor.spatial is not None


def check_sizes(evaluation: Evaluation) -> list[int]:
    """Check that all files have equally many features, and the logits that metrics need.

    Returns: each set's number of logits.
    Raises DataError, UsageError, FormatError.
    """
    sizes = [(some.name, *_sizes_of(some, evaluation)) for some in evaluation.by_image]
    for some in evaluation.references:
        if isinstance(some, FeatureSet):
            sizes.append((some.name, some.features.values.shape[1], 0))
        elif some.statistics:
            sizes.append((some.name, len(some.statistics.mu), 0))
    name, width, _ = sizes[0]
    for other, other_width, _ in sizes:
        if other_width != width:
            raise DataError(
                f"{name}: has {width} features per image, but {other} has {other_width}; use features of one extractor"
            )
    sizes = sizes[: len(evaluation.samples)]
    for name, _, logits in sizes:
        if not logits and (needing := evaluation.needing(Need.LOGITS)):
            raise UsageError(f"{name}: has no logits, which {needing[0]} needs; choose other ", Parameter("metrics"))
    return [logits for *_, logits in sizes]


def _sizes_of(some: SomeSet, evaluation: Evaluation) -> tuple[int, int]:
    # Numbers of features and of logits of an image: of saved ones, or as the extractor gives for black images.
    if isinstance(some, FeatureSet):
        return some.features.values.shape[1], some.features.logits.shape[1]
    device = evaluation.world.device
    assert evaluation.extractor
    black = torch.zeros(BLACK, *some.reader.shape[1:], dtype=torch.uint8)
    precision = Precision(evaluation.extractor.precision, device)
    with torch.inference_mode(), precision.applied(), precision.autocast():
        features, logits = evaluation.extractor(sent(black, device).permute(0, 3, 1, 2))
    return features.shape[1], 0 if logits is None else logits.shape[1]


def fingerprint(about: FeatureFacts) -> dict[str, JSON]:
    """Return the settings that samples and reference must share, where known."""
    facts = {
        **(about.preprocessing or {}),
        "extractor": about.extractor,
        "weights_sha256": about.weights_sha256,
        "feature_precision": about.feature_precision,
    }
    return {key: value for key, value in facts.items() if value is not None}
