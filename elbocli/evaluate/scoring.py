"""Score images against a reference, if both are comparable. Repeats: sets of samples that differ in the seed."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from elbocli.core.metrics import METRICS, Need, Value, asked
from elbocli.core.neighbours import nearest
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import (
    FeatureSource,
    extract_features,
    fingerprint,
    naming_network,
    open_reference,
    open_source,
)
from elbocli.evaluate.result import ENOUGH, EvalResult, Facts, Pairs, Scores, mismatches, refuse
from elbocli.evaluate.settings import PROTOCOLS, USUAL, EvalSettings
from elbocli.files.contact_sheet import Group, lay_out, write_contact_sheet
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, write_features, write_statistics
from elbocli.nn.extractors import (
    DEFAULT,
    EXTRACTORS,
    PUBLISHED_INCEPTION,
    STRICT,
    Extractor,
    make_extractor,
)
from elbocli.run.classes import CHANCE, DATA, choose_labels, p_of_equal_shares
from elbocli.runtime.processes import ALONE, World
from elbocli.runtime.progress import log
from elbocli.version import __version__


class Task(NamedTuple):
    """Opened files and settings of an evaluation.

    samples: one per set of samples. held_out: images not used in training.
    extractor: None if all files are saved features. spatial: names of the metrics that need spatial features.
    """

    settings: EvalSettings
    world: World
    samples: list[FeatureSource]
    reference: FeatureSource | None
    held_out: FeatureSource | None = None
    extractor: Extractor | None = None
    spatial: Sequence[str] = ()

    @property
    def every(self) -> list[FeatureSource]:
        """All files, beginning with the samples."""
        return [side for side in (*self.samples, self.reference, self.held_out) if side]

    @property
    def compares_images(self) -> bool:
        """Whether features of each reference image are needed."""
        return bool(self.settings.needing(Need.REFERENCE_FEATURES) or self.settings.neighbours)


def run(sources: Sequence[Path | IO[bytes]], ref: Path | None, settings: EvalSettings, world: World = ALONE) -> EvalResult | None:
    """Score samples against a reference; return the result on rank 0, None on other ranks.

    sources: paths of sets of samples that differ in the seed; or one NPY stream.
    ref: None if the metrics need no reference. --save-stats and --save-features then remove metrics that need a reference.
    Raises UsageError, DataError and FormatError for files that are truncated, too small or don't fit each other.
    """
    deviations(settings)
    if settings.classes == DATA:
        raise UsageError(
            "--classes data: a stream doesn't say these classes; draw the samples into .h5 or .npz, which keep labels"
        )
    spatial = settings.needing(Need.SPATIAL)  # --save-stats saves spatial features also for the metrics that are removed here
    if ref is None and (settings.save_stats or settings.save_features):
        kept = {name: own for name, own in settings.metrics.items() if Need.REFERENCE not in METRICS[name].traits.needs}
        settings = replace(settings, metrics=kept)
    with contextlib.ExitStack() as stack:
        task = Task(
            settings,
            world,
            [open_source(source, stack, world) for source in sources],
            open_reference(ref, stack, world) if ref else None,
            open_source(settings.held_out, stack, world) if settings.held_out else None,
            spatial=spatial,
        )
        classes = PROTOCOLS.get(settings.protocol, USUAL).classes
        for source in task.samples:
            if classes and settings.classes and source.labels is None:
                source.labels = choose_labels(settings.classes, source.n, classes, settings.seed)
        check_sources(task)
        task = task._replace(extractor=_extractor(task))
        if task.extractor:
            log.info("extracting features with %s on %s, in %s precision", task.extractor.name, world.device, settings.precision)
        result = score(task)
        if result and settings.neighbours:
            write_sheet(settings.neighbours, task)
    if result:
        for source in task.samples:
            _save(source, settings)
        _warn(result, settings)
        _warn_of_classes(task)
    return result


def score(task: Task) -> EvalResult | None:
    """Score opened files; return the result on rank 0, None on other ranks.

    Raises UsageError, DataError and FormatError like `run`.
    """
    check_extraction(task)
    for source in task.samples:
        source.deviates = deviations(task.settings, source, task.reference)
    extract(task)
    if not task.world.first:  # other ranks don't wait for the scores, which may take an hour for many images
        return None
    digests = [source.about.images_sha256 for source in task.samples if source.about.images_sha256]
    if len(set(digests)) < len(digests):
        names = [source.name for source in task.samples]
        raise DataError(f"two of {names} hold the same images; draw each with a --seed of its own")
    return EvalResult([scored(source, task) for source in task.samples])


def check_extraction(task: Task) -> None:
    """Check that files fit the metrics and each other.

    Sets the extractor in `about` of files of images, and `mismatch` of samples.
    Raises UsageError: if a metric isn't defined for the extractor.
    Raises DataError: if sets of samples were made differently; without --allow-mismatch, also if --ref or --held-out was.
    """
    settings, extractor, first = task.settings, task.extractor, task.samples[0]
    for source in task.every:
        if extractor and not source.saved and source.n and not source.about.extractor:
            source.about = structs.replace(
                source.about,
                extractor=extractor.name,
                weights_sha256=extractor.weights_sha256,
                feature_precision=extractor.precision,
            )
        held: Any = source.statistics or source.saved or extractor
        if task.spatial and source is not task.held_out and held.spatial is None:
            raise UsageError(
                f"{source.name}: no spatial features, which {task.spatial[0]} needs; score images with --extractor {DEFAULT}"
            )
    for source in task.samples:
        own = fingerprint(source.about)
        for name, options in settings.metrics.items():
            if (network := METRICS[name].traits.network(options)) not in (None, own.get("extractor")):
                raise UsageError(f"{source.name}: --metrics {name} needs other features; score images with --extractor {network}")
        remedy = "score one set at a time, or sets made alike"
        refuse({"n": source.n, **own}, {"n": first.n, **fingerprint(first.about)}, source.name, first.name, remedy)
        for other in () if settings.allow_mismatch else task.every[len(task.samples) :]:
            remedy = "such scores are not comparable; use images made alike, or 'elbo eval --allow-mismatch'"
            refuse(fingerprint(other.about), own, other.name, source.name, remedy)
        source.mismatch = mismatches(own, fingerprint(task.reference.about)) if task.reference else {}


def extract(task: Task) -> None:
    """Set `features` of each file to the features that the metrics need."""
    settings = task.settings
    wanted = {
        "values": settings.needing(Need.REFERENCE) or task.compares_images or settings.save_features,
        "logits": settings.needing(Need.LOGITS) or settings.save_features,
        "spatial_values": task.spatial,
    }
    check = partial(check_features, task=task)
    for source in task.every:
        keep = {name for name, reason in wanted.items() if reason}
        if source not in task.samples:
            keep = {"values"} if task.compares_images or source is task.held_out else set()
        spatial = bool(task.spatial) and source is not task.held_out
        extract_features(source, task.extractor, settings.batch_size, task.world, keep, check, spatial)


def _extractor(task: Task) -> Extractor | None:
    settings = task.settings
    sources = [side for side in task.every if side.statistics is None or task.compares_images]
    told = [each for each in sources if each.saved and each.about.extractor]
    name = settings.extractor or str(told[0].about.extractor if told else DEFAULT)
    with task.world.together():
        if all(source.saved for source in sources):
            return None
        if not settings.extractor and name not in EXTRACTORS:  # for safety, only the user may name a file
            raise UsageError(f"{told[0].name}: has features of extractor file {name}; to trust {name}, add --extractor {name}")
        return make_extractor(name, settings.extractor_weights, task.world.device, settings.precision)


def check_sources(task: Task) -> None:
    """Check that the files suffice for the metrics.

    Raises UsageError: for metrics that lack an input. Raises DataError: for too few images.
    """
    settings, _, samples, reference, held_out, *_ = task
    given = {
        Need.REFERENCE: reference,
        Need.REFERENCE_FEATURES: reference is None or reference.n,
        Need.HELD_OUT: held_out,
        Need.LABELS: settings.classes or all(source.labels is not None for source in samples),
    }
    for need, there in given.items():
        if not there and (needing := settings.needing(need)):
            raise UsageError(f"{needing[0]} needs {need.value}")
    for name, options in settings.metrics.items():
        for side, needed in zip((samples[0], reference, held_out), METRICS[name].traits.least(options)):
            if side and side.n < needed and (side.n or not side.statistics):
                raise DataError(f"{side.name}: has {side.n} images; --metrics {name} needs at least {needed}; add images")
    if settings.save_stats and samples[0].n < 2:
        raise DataError(f"{samples[0].name}: has one image; --save-stats needs at least 2; add images")
    if len(samples) > 1 and (settings.save_stats or settings.save_features or settings.neighbours):
        raise UsageError(f"--save-stats, --save-features and --neighbours take 1 set of samples, not {len(samples)}; name 1 set")
    if settings.neighbours:
        readers = [side and not side.streamed and side.reader for side in (samples[0], reference)]
        if not all(readers) or len({reader.shape[1:] for reader in readers if reader}) > 1:
            raise UsageError("--neighbours needs images of one size in SAMPLES and --ref; name files, not streams or features")


def check_features(found: dict[str, Tensor], source: FeatureSource, task: Task) -> None:
    """Check the features of a file's first batch, and set missing labels.

    found: features of the batch, by name.
    Raises DataError or UsageError: for features or labels unfit for the metrics.
    """
    settings, width, logits = task.settings, found["values"].shape[1], found.get("logits")
    for other in task.every:
        if other.width not in (None, width):
            raise DataError(
                f"{source.name}: has {width} features per image, but {other.name} has {other.width}; use features of one extractor"
            )
    if source not in task.samples:
        return
    if logits is None and (needing := settings.needing(Need.LOGITS)):
        raise UsageError(f"{source.name}: has no logits, which {needing[0]} needs; choose other --metrics")
    if logits is None or not settings.needing(Need.LABELS):
        return
    classes = logits.shape[1]
    if source.labels is None:
        reader = task.reference.reader if task.reference else None
        names = list(reader.class_names) if reader else []
        source.labels = choose_labels(settings.classes, source.n, len(names) or classes, settings.seed, names)
    labels: Any = source.labels
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{source.name}: labels from {labels.min()} to {labels.max()}, but the extractor knows classes 0 to {classes - 1}; "
            "use an extractor that knows all labels, or other --metrics"
        )


def options_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return all metrics' options, name → value, without `seed` and on/off options. metrics: metric → namespace of options."""
    options = (option for own in metrics.values() for option in vars(own).items())
    return {name: value for name, value in options if name != "seed" and not isinstance(value, bool)}


def deviations(settings: EvalSettings, source: FeatureSource | None = None, reference: FeatureSource | None = None) -> Pairs:
    """Return deviations from the protocol: name → [value, the protocol's value].

    source, reference: opened files; None: only the settings are checked.
    Raises UsageError for settings, DataError for files that deviate without --allow-mismatch.
    """
    if not settings.protocol:
        return {}
    protocol = PROTOCOLS[settings.protocol]
    usual = asked(protocol.metrics, **protocol.options)
    named = EXTRACTORS.lookup(settings.extractor)
    mine: dict[str, Any] = {
        "extractor": named.name if named else settings.extractor,
        "feature_precision": settings.precision,
        "metrics": ", ".join([name for name in settings.metrics if name not in usual] or usual),  # some may be omitted
        **options_of(settings.metrics),
    }
    theirs = {
        "extractor": protocol.extractor,
        "feature_precision": STRICT,
        "metrics": ", ".join(usual),
        "n": protocol.n,
        **options_of(usual),
    }
    if source:
        about, unknown = source.about, "not known"
        mine |= {"n": source.n, "extractor": about.extractor or unknown, "feature_precision": about.feature_precision or STRICT}
        if mine["extractor"] == protocol.extractor == DEFAULT:
            mine["extractor_weights"] = str(about.weights_sha256 or unknown)[:8]
            theirs["extractor_weights"] = PUBLISHED_INCEPTION
        if protocol.classes:
            each = "{}, each with {} to {} samples"
            counts = [*source.class_counts().values()]
            mine["classes"] = each.format(len(counts), min(counts), max(counts)) if counts else unknown
            theirs["classes"] = each.format(protocol.classes, protocol.per_class, protocol.per_class)
        if protocol.ref_images and reference:
            form, images = "statistics with {} images beside them", protocol.ref_images
            held = reference.n if settings.needing(Need.REFERENCE_FEATURES) else images
            mine["reference"] = "no statistics" if reference.statistics is None else form.format(held)
            theirs["reference"] = form.format(images)
    if not settings.allow_mismatch:
        remedy = "follow the protocol, or add --allow-mismatch, and the result says what deviates"
        where, kind = (source.name, DataError) if source else ("settings", UsageError)
        refuse(mine, theirs, where, f"--protocol {settings.protocol}", remedy, kind)
    return mismatches(mine, theirs)


def scored(source: FeatureSource, task: Task) -> Scores:
    """Compute all metrics of one set of samples. Raises DataError when a metric can't be computed from these features."""
    settings, features = task.settings, source.features
    theirs = task.reference.features if task.reference else None
    if theirs and task.held_out:
        theirs = replace(theirs, held_out=task.held_out.features)
    values, draws = dict[str, Value](), settings.classes == "random"
    for name, own in settings.metrics.items():
        values |= METRICS[name].make(features, theirs, own)
        draws = draws or METRICS[name].traits.draws(own)
    about, other, apart = (side.about if side else FeatureFacts() for side in (source, task.reference, task.held_out))
    mismatched = any(each.mismatch for each in task.samples)
    network = str(about.extractor) if mismatched else naming_network(about)  # part of the names of scores
    counts = [*source.class_counts().values()]
    facts = Facts(
        n_samples=about.n,
        n_ref=other.n,
        n_ref_images=other.images,
        samples=source.name,
        samples_sha256=about.images_sha256,
        ref_sha256=other.sha256 or other.images_sha256,
        extractor=about.extractor,
        extractor_sha256=about.weights_sha256,
        feature_precision=about.feature_precision,
        preprocessing=about.preprocessing,
        ref_preprocessing=other.preprocessing,
        classes=len(counts) or None,
        fewest_of_a_class=min(counts, default=None),
        most_of_a_class=max(counts, default=None),
        made=about.made or {},
        options=options_of(settings.metrics),
        elbo_version=__version__,
        torch_fidelity_version=version("torch-fidelity"),
        torch_version=str(torch.__version__),
        ref=task.reference.name if task.reference else None,
        command=settings.command,
        seed=settings.seed if draws else None,
        mismatch=source.mismatch or None,
        protocol=settings.protocol or None,
        deviates=source.deviates or None,
        held_out=task.held_out.name if task.held_out else None,
        held_out_sha256=apart.images_sha256,
        n_held_out=apart.n,
    )
    return Scores(network, values, facts)


def _save(source: FeatureSource, settings: EvalSettings) -> None:
    features: Any = source.features
    about = source.about
    if settings.save_stats:
        moments = features.moments
        write_statistics(settings.save_stats, Statistics(moments.mu, moments.sigma, about, features.spatial))
    if settings.save_features:
        labels = None if features.labels is None else torch.as_tensor(features.labels).long()
        held = SavedFeatures(features.values, features.logits, labels, about, features.spatial_values)
        write_features(settings.save_features, held)


def _warn(result: EvalResult, settings: EvalSettings) -> None:
    few = "; ".join(why for name in settings.metrics if (why := METRICS[name].traits.few))
    facts = result.repeats[0].facts
    if few and (facts.n_samples or 0) < ENOUGH:
        said = "%s: has %s images; with fewer than %s, scores depend on the number of images: %s"
        log.warning(said, facts.samples, facts.n_samples, ENOUGH, few)
    made = {key for one in result.repeats for key in one.facts.made}
    if differ := made - result.common()["made"].keys() - {"seed", "command"}:
        told = ", ".join(sorted(differ))
        log.warning("sets of samples differ in more than the seed: %s; so the standard deviation is not over seeds alone", told)


def _warn_of_classes(task: Task) -> None:
    reference = task.reference
    if reference is None or not task.settings.needing(Need.REFERENCE) or PROTOCOLS.get(task.settings.protocol, USUAL).classes:
        return
    for source in task.samples:
        p = p_of_same_classes(source, reference)
        if p is not None and p < CHANCE:
            drawn = (source.about.made or {}).get("classes") == DATA
            log.warning(
                f"{source.name}: its classes differ in frequency from those of {reference.name} by more than chance (chi-square "
                f"test, p = {p:.1g}), which changes the scores; "
                + (
                    "choose a --ref with the classes of the run's training data"
                    if drawn
                    else "draw samples by 'elbo sample … --classes data'"
                )
            )


def p_of_same_classes(samples: FeatureSource, reference: FeatureSource) -> float | None:
    """Return the p-value of a test that samples and reference have equal proportions of classes.

    Returns None if one of them has no labels, or they have classes of different names.
    """
    names = [set(side.reader.class_names) if side.reader else set() for side in (samples, reference)]
    first, second = samples.class_counts(all(names)), reference.class_counts(all(names))
    if not first or not second or (all(names) and not (names[0] <= names[1] or names[0] >= names[1])):
        return None
    classes = sorted({*first, *second})
    return p_of_equal_shares(*(np.array([counts.get(each, 0) for each in classes]) for counts in (first, second)))


SAMPLES, BESIDE = 12, 5  # rows in the picture of --neighbours, and reference images in each row


def write_sheet(out: Path, task: Task) -> None:
    """Draw a row for each of the samples closest to the reference: the sample, then the nearest reference images."""
    mine: Any = task.samples[0]
    theirs: Any = task.reference
    beside = min(BESIDE, theirs.n)
    columns = 1 + beside
    far, which = nearest(mine.features.values, theirs.features.values, beside, mine.features.device)
    rows = far[:, 0].argsort(stable=True)[:SAMPLES].tolist()
    one, others = mine.reader.pick(rows), theirs.reader.pick(which[rows].flatten().tolist())
    images = np.concatenate([one[:, None], others.reshape(len(rows), beside, *one.shape[1:])], 1)
    starts = range(0, len(rows) * columns, columns)
    groups = [Group(f"{index}: {far[index, 0]:.3g}", range(start, start + columns)) for index, start in zip(rows, starts)]
    layout = structs.replace(lay_out(one.shape[1], one.shape[2], groups), columns=columns)
    write_contact_sheet(out, images.reshape(-1, *one.shape[1:]), layout)
