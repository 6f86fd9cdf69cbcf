"""Score images against a reference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

from elbocli.core.class_labels import choose_labels
from elbocli.core.metrics import (
    ENOUGH,
    LABELS,
    LOGITS,
    METRICS,
    PRC_PROTOCOLS,
    REFERENCE,
    REFERENCE_FEATURES,
    MetricOptions,
    least,
)
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import FeatureSource, Seen, described, open_feature_source, see
from elbocli.evaluate.reference import Reference, fingerprint, mismatches, open_reference
from elbocli.evaluate.result import Facts, Values, check_repeats, repeated, scored, unlike
from elbocli.files.features import SUFFIX, SavedFeatures, write_features
from elbocli.files.statistics import Statistics, write_statistics
from elbocli.nn.extractors import DEFAULT, EXTRACTORS, Extractor, make_extractor
from elbocli.runtime.device import allow_tf32
from elbocli.runtime.processes import ALONE, World
from elbocli.runtime.progress import Progress


@dataclass(frozen=True)
class EvalSettings:
    """What to compute. extractor '': that of saved features, else Inception. classes: a stream's labels.

    allow_mismatch: score although the reference was made in another way, and say so. command: for the record.
    save_stats, save_features: files to write of the samples.
    """

    metrics: tuple[str, ...] = ("fid", "is")
    options: MetricOptions = MetricOptions()
    extractor: str = ""
    extractor_weights: Path | None = None
    batch: int = 64
    classes: str = ""
    allow_mismatch: bool = False
    command: str = ""
    save_stats: Path | None = None
    save_features: Path | None = None

    @property
    def drawing(self) -> dict[str, int]:
        """The seed, where something is drawn by it."""
        parts = self.options.fid_infinity and "fid" in self.metrics
        return {"seed": self.options.seed} if parts or self.classes == "random" else {}

    def needing(self, what: str) -> list[str]:
        """Its metrics that need that."""
        return [name for name in self.metrics if what in METRICS[name].traits.needs]


def run(
    sources: Sequence[Path | IO[bytes]], ref: Path | None, settings: EvalSettings, world: World = ALONE
) -> Generator[Progress, None, dict[str, Any]]:
    """Score each of `sources` (paths, or an NPY stream) against `ref`; the result, in the first process alone.

    Several sources are repeats of one experiment: see `repeated`. Images are never held: memory is a batch, each source's
    moments, and 4 bytes a feature (a class) and image where a metric needs them. The other processes end when the first
    has all features.
    Raises UsageError, DataError and FormatError: too few images, a stream cut short, files that don't fit each other.
    """
    allow_tf32(False)
    theirs: Seen | None = None
    seen: list[Seen] = []
    with contextlib.ExitStack() as stack:
        opened = [open_feature_source(source, stack, world) for source in sources]
        reference = None if ref is None else open_reference(ref, stack, world)
        settings = _possible(settings, opened, reference)
        extractor = _extractor(settings, [*opened, *([] if reference is None else reference.sources)], world)
        differ = [_checked(source, reference, extractor, settings) for source in opened]
        _check_alike(opened, extractor)
        with world.together():
            if world.first and settings.needing(LABELS):
                opened = [_labelled(source, reference, extractor, settings, world) for source in opened]
        keep = frozenset(
            (["values"] if settings.needing(REFERENCE) or settings.save_features else [])
            + (["logits"] if settings.needing(LOGITS) or settings.save_features else [])
        )
        for source in opened:
            check = _checker(source, reference, settings)
            seen.append((yield from see(source, extractor, settings.batch, world, keep, "samples", check)))
            if reference is not None and theirs is None:
                features = bool(settings.needing(REFERENCE_FEATURES))
                theirs = yield from reference.see(extractor, settings.batch, world, features)
    if not world.first:  # nobody waits for the scores: those of many images may take an hour
        return {}
    results: list[tuple[Values, Facts]] = []
    for mine, mismatch in zip(seen, differ, strict=True):
        _save(mine, settings)
        values, facts = scored(mine, theirs, settings.metrics, settings.options, any(differ))
        named = {"ref": None if ref is None else str(ref), "command": settings.command, **settings.drawing}
        results.append((values, {**facts, **named, **({"mismatch": mismatch} if mismatch else {})}))
        check_repeats([facts for _, facts in results])
    combined = repeated(results)
    yield from _notes(results, settings)
    return combined


def _possible(settings: EvalSettings, sources: Sequence[FeatureSource], reference: Reference | None) -> EvalSettings:
    """The settings, without metrics that need a reference where only statistics or features are to be saved.

    Raises UsageError for what can't be had, DataError for too few images.
    """
    saving = [path for path in (settings.save_stats, settings.save_features) if path is not None]
    if saving and len(sources) > 1:
        raise UsageError(f"{saving[0]} can hold one set of samples; name one at a time")
    if settings.save_features is not None and settings.save_features.suffix != SUFFIX:
        raise UsageError(f"{settings.save_features}: features are saved as {SUFFIX}; name it so")
    if reference is None and (needing := settings.needing(REFERENCE)):
        if not saving:
            raise UsageError(
                f"{needing[0]} needs --ref (a dataset, saved features or statistics); or add --save-stats FILE to make one"
            )
        settings = replace(settings, metrics=tuple(name for name in settings.metrics if name not in needing))
    if reference is not None:
        reference.check(settings.metrics)
        for source in reference.sources:
            _check_count(source, settings, 1)
    for source in sources:
        _check_count(source, settings, 0)
        if source.n != sources[0].n:
            raise DataError(
                f"{source.name}: {source.n} images, but {sources[0].name} has {sources[0].n}; scores of different n have "
                "no common mean"
            )
        if settings.save_stats is not None and source.n < 2:
            raise DataError(f"{source.name}: one image is no distribution; statistics need at least 2")
        if settings.needing(LABELS) and source.labels is None and not settings.classes:
            raise UsageError(
                f"{source.name}: accuracy needs labels: samples of several classes in .h5 or .npz, or --classes as given to 'elbo sample'"
            )
    return settings


def _check_count(source: FeatureSource, settings: EvalSettings, side: int) -> None:
    """Raise DataError when a metric needs more images of it. side: 0 of samples, 1 of the reference."""
    for name in settings.metrics:
        needed = least(METRICS[name], settings.options)[side]
        if source.n < needed:
            hint = ", or less with --kid-subset-size" if name == "kid" else ""
            raise DataError(f"{source.name}: {source.n} images; {name} needs at least {needed}{hint}")


def _extractor(settings: EvalSettings, sources: Sequence[FeatureSource], world: World) -> Extractor | None:
    """The network, if any images have to be seen: the one that saved features are of, unless another is asked for.

    A file that a features' file names is not opened: it may be a stranger's.
    """
    told = {str(name): each for each in sources if each.saved is not None and (name := each.about.get("extractor"))}
    name = settings.extractor or next((name for name in told if name in EXTRACTORS), DEFAULT)
    chosen: Extractor | None = None
    with world.together():
        if any(source.saved is None for source in sources):
            if told and name not in told and not settings.extractor:
                raise UsageError(
                    "; ".join(f"{of.name} is of {known}" for known, of in told.items()) + ": name it with --extractor"
                )
            chosen = make_extractor(name, settings.extractor_weights, world.device)
    return chosen


def _checked(
    source: FeatureSource, reference: Reference | None, extractor: Extractor | None, settings: EvalSettings
) -> dict[str, list[Any]]:
    """Where samples and reference were made differently. Raises DataError unless that is allowed, UsageError."""
    mine = fingerprint(described(source, extractor))
    wanted = PRC_PROTOCOLS[settings.options.prc_protocol].extractor
    if "prc" in settings.metrics and wanted not in (None, mine.get("extractor")):
        raise UsageError(f"--prc-protocol {settings.options.prc_protocol} is defined for --extractor {wanted}")
    if reference is None:
        return {}
    found = mismatches(mine, reference.fingerprint(extractor))
    if found and not settings.allow_mismatch:
        said = "; ".join(f"{key} is {theirs}, that of {source.name} {own}" for key, (own, theirs) in found.items())
        raise DataError(
            f"{reference.path}: {said}: such scores compare with no others; use a reference made alike, or --allow-mismatch"
        )
    return found


def _check_alike(sources: Sequence[FeatureSource], extractor: Extractor | None) -> None:
    """Raise DataError unless all were made in one way: other numbers have no common mean."""
    first = fingerprint(described(sources[0], extractor))
    for source in sources[1:]:
        for key, (own, others) in mismatches(fingerprint(described(source, extractor)), first).items():
            raise DataError(
                f"{source.name}: {key} is {own}, that of {sources[0].name} {others}; such scores have no common mean"
            )


def _checker(
    source: FeatureSource, reference: Reference | None, settings: EvalSettings
) -> Callable[[dict[str, torch.Tensor]], None]:
    """What `see` should check of features: raises DataError or UsageError when they won't do."""
    width = None if reference is None else reference.width

    def check(found: dict[str, torch.Tensor]) -> None:
        needing = settings.needing(LOGITS)
        if needing and "logits" not in found:
            raise UsageError(
                f"{source.name}: its features come without logits, and {needing[0]} needs them; choose other --metrics"
            )
        if width not in (None, found["values"].shape[1]):
            raise DataError(
                f"{source.name}: {found['values'].shape[1]} features an image, and the reference has {width}; use one made alike"
            )

    return check


def _labelled(
    source: FeatureSource,
    reference: Reference | None,
    extractor: Extractor | None,
    settings: EvalSettings,
    world: World,
) -> FeatureSource:
    """With the labels that a stream was drawn with, if it says none. Before any features are extracted.

    Raises UsageError for a class that isn't there, DataError for one that the network doesn't tell.
    """
    classes = _classes_told(source, extractor, settings, world)
    if classes == 0:  # which `see` will say
        return source
    labels = source.labels
    if labels is None:
        names = [] if reference is None else reference.class_names
        labels = choose_labels(settings.classes, source.n, len(names) or classes, settings.options.seed, names)
        assert labels is not None
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{source.name}: labels from {labels.min()} to {labels.max()}, but the network tells classes 0 to {classes - 1}; "
            "accuracy needs a network of the same classes"
        )
    return replace(source, labels=labels)


def _classes_told(source: FeatureSource, extractor: Extractor | None, settings: EvalSettings, world: World) -> int:
    """How many classes the network's logits are of; 0 when it has none. It is shown a batch of black images."""
    if source.saved is not None or extractor is None:
        logits = None if source.saved is None else source.saved.logits
    else:
        assert source.reader is not None
        _, height, width, channels = source.reader.shape
        black = torch.zeros(
            min(settings.batch, source.n), channels, height, width, dtype=torch.uint8, device=world.device
        )
        with torch.inference_mode():
            logits = extractor(black)[1]
    return 0 if logits is None else logits.shape[1]


def _save(seen: Seen, settings: EvalSettings) -> None:
    features = seen.features
    assert features is not None
    if settings.save_stats is not None:
        write_statistics(settings.save_stats, Statistics(features.moments.mu, features.moments.sigma, seen.about))
    if settings.save_features is not None and features.values is not None:
        labels = None if features.labels is None else torch.as_tensor(features.labels).long()
        write_features(settings.save_features, SavedFeatures(features.values, features.logits, labels, seen.about))


def _notes(results: Sequence[tuple[Values, Facts]], settings: EvalSettings) -> Iterator[Progress]:
    """What people should know beside the numbers."""
    few = [METRICS[name].traits.few for name in settings.metrics if METRICS[name].traits.few]
    n, notes = results[0][1]["n_samples"], []
    if n < ENOUGH and few:
        notes.append(f"{results[0][1]['samples']}: {n} images, below {ENOUGH}: {'; '.join(few)}")
    for values, facts in results:
        if "mismatch" in facts:
            keys = ", ".join(facts["mismatch"])
            notes.append(
                f"{facts['samples']} and {facts['ref']} were made differently ({keys}): this compares with no others"
            )
        if any(value is None for value in values.values()):
            notes.append(f"{facts['samples']}: no interval for FID: it takes twice as many images as features")
    if differ := unlike(results):
        notes.append(f"repeats differ in more than the seed: {', '.join(differ)}; their spread is not that of repeats")
    yield from (Progress(message=note, level="warning") for note in notes)
