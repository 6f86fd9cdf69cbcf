"""Score images against a reference."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from msgspec import structs
from torch import Tensor
from torch_fidelity.version import __version__ as fidelity_version

from elbocli.core.metrics import METRICS, Need, Value, asked
from elbocli.core.neighbours import nearest
from elbocli.core.streams import choose_labels
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.extract import FeatureSource, extract_features, fingerprint, open_reference, open_source
from elbocli.evaluate.result import ENOUGH, EvalResult, Facts, Pairs, Scores, mismatches, refuse, shared
from elbocli.evaluate.settings import PROTOCOLS, EvalSettings
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, write_features, write_statistics
from elbocli.files.grid import Group, lay_out, write_grid
from elbocli.images.samples import read_samples
from elbocli.nn.extractors import (
    DEFAULT,
    EXTRACTORS,
    PUBLISHED_INCEPTION,
    STRICT,
    Extractor,
    is_published,
    make_extractor,
)
from elbocli.runtime.processes import ALONE, World
from elbocli.runtime.progress import log
from elbocli.version import __version__


class Sides(NamedTuple):
    """All that is opened for a result. samples: one set, or several repeats."""

    samples: list[FeatureSource]
    reference: FeatureSource | None
    held_out: FeatureSource | None

    @property
    def others(self) -> list[FeatureSource]:
        """Those beside the samples."""
        return [side for side in (self.reference, self.held_out) if side is not None]


def run(
    sources: Sequence[Path | IO[bytes]], ref: Path | None, settings: EvalSettings, world: World = ALONE
) -> EvalResult | None:
    """Score each of `sources` (paths, or an NPY stream) against `ref`; the result, in the first process alone.

    Several sources are repeats of one experiment. Images are never held: memory is a batch, each source's moments, and
    4 bytes a feature (a class) and image where a metric needs them. The other processes end when the first has all
    features. Raises UsageError, DataError and FormatError: too few images, a stream cut short, files that don't fit each other.
    """
    deviations(settings)
    spatial = settings.needing(Need.SPATIAL)  # also of what is only to be saved
    with contextlib.ExitStack() as stack:
        sides = Sides(
            [open_source(source, stack, world) for source in sources],
            None if ref is None else open_reference(ref, stack, world),
            None if settings.held_out is None else open_source(settings.held_out, stack, world),
        )
        classes = PROTOCOLS[settings.protocol].classes if settings.protocol else 0
        for source in sides.samples if classes and settings.classes else []:
            if source.labels is None:
                source.labels = choose_labels(settings.classes, source.n, classes, settings.seed)
        settings = check_sources(settings, sides)
        compares = settings.needing(Need.REFERENCE_FEATURES) or settings.neighbours
        seen_sides = [*sides.samples, *(side for side in sides.others if side.statistics is None or compares)]
        extractor = _extractor(settings, seen_sides, world)
        if extractor is not None:
            log.info("features of %s; %s, %s", extractor.name, world.device, settings.precision)
        for source in (*sides.samples, *sides.others):
            source.name_network(extractor)
            held: Any = source.statistics or source.saved or extractor
            if spatial and source is not sides.held_out and held.spatial is None:
                raise UsageError(
                    f"{source.name}: no spatial features, which {spatial[0]} needs; score images by {DEFAULT}"
                )
        differ = check_alike(sides, settings)
        deviating = [deviations(settings, source, sides.reference) for source in sides.samples]
        needed = settings.needing(Need.REFERENCE) or compares or settings.save_features
        logits = settings.needing(Need.LOGITS) or settings.save_features
        wanted = {"values": needed, "logits": logits, "spatial_values": spatial}
        check = partial(check_features, sides=sides, settings=settings)
        for source in (*sides.samples, *sides.others):
            keep = {name for name, reason in wanted.items() if reason}
            if source not in sides.samples:
                keep = {"values"} if compares or source is sides.held_out else set()
            with_spatial = bool(spatial) and source is not sides.held_out
            extract_features(source, extractor, settings.batch, world, keep, check, with_spatial)
    if not world.first:  # nobody waits for the scores: those of many images may take an hour
        return None
    digests = [source.about.images_sha256 for source in sides.samples if source.about.images_sha256]
    if len(set(digests)) < len(digests):
        raise DataError("two of the samples are the same images; repeats must be drawn with other seeds")
    result = EvalResult([])
    for source, mismatch, deviates in zip(sides.samples, differ, deviating):
        _save(source, settings)
        scores = scored(source, sides, settings, any(differ))
        facts = structs.replace(scores.facts, mismatch=mismatch or None, deviates=deviates or None)
        result.repeats.append(replace(scores, facts=facts))
    if settings.neighbours is not None:
        write_sheet(settings.neighbours, sides)
    _warn(result, settings)
    return result


def _extractor(settings: EvalSettings, sources: Sequence[FeatureSource], world: World) -> Extractor | None:
    """The network, if any images have to be seen: the one that saved features are of, unless another is asked for.

    A file that a features' file names is not opened: it may be a stranger's.
    """
    told = {name: each for each in sources if each.saved is not None and (name := each.about.extractor)}
    name = settings.extractor or next((name for name in told if name in EXTRACTORS), DEFAULT)
    with world.together():
        if all(source.saved is not None for source in sources):
            return None
        if told and name not in told and not settings.extractor:
            known = "; ".join(f"{of.name} is of {network}" for network, of in told.items())
            raise UsageError(f"{known}: name it with --extractor")
        return make_extractor(name, settings.extractor_weights, world.device, settings.precision)


def check_sources(settings: EvalSettings, sides: Sides) -> EvalSettings:
    """The settings, without metrics that need a reference where only statistics or features are to be saved.

    Raises UsageError for what can't be had, DataError for too few images.
    """
    samples, reference, held_out = sides
    if reference is None and (settings.save_stats or settings.save_features):
        lacking = settings.needing(Need.REFERENCE)
        kept = {name: options for name, options in settings.metrics.items() if name not in lacking}
        settings = replace(settings, metrics=kept)
    needs = {
        Need.REFERENCE: (
            reference,
            "--ref (a dataset, saved features or statistics); or add --save-stats FILE to make one",
        ),
        Need.REFERENCE_FEATURES: (
            reference is None or reference.n,
            "the reference's images, and --ref holds statistics only: name a dataset, or features saved by --save-features",
        ),
        Need.HELD_OUT: (held_out, "--held-out: images like those of --ref that the model was not trained on"),
        Need.LABELS: (
            settings.classes or all(source.labels is not None for source in samples),
            "labels: samples of several classes in .h5 or .npz, or --classes as given to 'elbo sample'",
        ),
    }
    for need, (there, remedy) in needs.items():
        if not there and (needing := settings.needing(need)):
            raise UsageError(f"{needing[0]} needs {remedy}")
    for name, options in settings.metrics.items():
        sides_of = samples, [reference] if reference and reference.n else [], [held_out] if held_out else []
        for sources, needed in zip(sides_of, METRICS[name].traits.least(options)):
            for source in sources:
                if source.n < needed:
                    raise DataError(f"{source.name}: {source.n} images; --metrics {name} needs at least {needed}")
    for source in samples:
        if source.n != samples[0].n:
            counts = f"{source.n} images, but {samples[0].name} has {samples[0].n}"
            raise DataError(f"{source.name}: {counts}; score as many of each")
    if settings.save_stats is not None and samples[0].n < 2:
        raise DataError(f"{samples[0].name}: one image is no distribution; statistics need at least 2")
    files = [path for path in (settings.save_stats, settings.save_features, settings.neighbours) if path is not None]
    if files and len(samples) > 1:
        raise UsageError(f"{files[0]} can hold one set of samples; name one at a time")
    if settings.neighbours is not None:
        readers = [side and not side.streamed and not side.saved and side.reader for side in (samples[0], reference)]
        if not all(readers) or len({reader.shape[1:] for reader in readers if reader}) > 1:
            raise UsageError("--neighbours reads images of SAMPLES and --ref twice: name files of images of one size")
    return settings


def check_alike(sides: Sides, settings: EvalSettings) -> list[Pairs]:
    """Facts in which each of the samples and the reference were made differently, with both values.

    Raises DataError unless that is allowed, UsageError when a metric isn't defined for the network.
    """
    made, first = [fingerprint(source.about) for source in sides.samples], sides.samples[0]
    for source, own in zip(sides.samples, made):
        for name, options in settings.metrics.items():
            if (network := METRICS[name].traits.network(options)) not in (None, own.get("extractor")):
                raise UsageError(f"--metrics {name} with these options is defined for --extractor {network}")
        refuse(mismatches(own, made[0]), source.name, first.name, "such scores have no common mean")
        for other in () if settings.allow_mismatch else sides.others:
            remedy = "such scores compare with no others; use images made alike, or --allow-mismatch"
            refuse(mismatches(fingerprint(other.about), own), other.name, source.name, remedy)
    theirs = fingerprint(sides.reference.about) if sides.reference else {}
    return [mismatches(own, theirs) for own in made]


def check_features(
    found: dict[str, Tensor], source: FeatureSource, sides: Sides, settings: EvalSettings
) -> np.ndarray | None:
    """The labels of a source [n], if it has any: those of samples, or those that a stream was drawn with.

    found: its first features. Raises DataError or UsageError when they show that the others won't do either.
    """
    width, logits = found["values"].shape[1], found.get("logits")
    for other in (*sides.samples, *sides.others):
        if other.width not in (None, width):
            both = f"{width} features an image, and {other.name} has {other.width}"
            raise DataError(f"{source.name}: {both}; use one made alike")
    if source not in sides.samples:
        return source.labels
    if logits is None and (needing := settings.needing(Need.LOGITS)):
        raise UsageError(f"{source.name}: no logits, which {needing[0]} needs; choose other --metrics")
    if logits is None or not settings.needing(Need.LABELS):
        return source.labels
    labels, classes = source.labels, logits.shape[1]
    if labels is None:
        reader = sides.reference.reader if sides.reference else None
        names = list(reader.class_names) if reader else []
        labels = choose_labels(settings.classes, source.n, len(names) or classes, settings.seed, names)
        assert labels is not None
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{source.name}: labels from {labels.min()} to {labels.max()}, but the network tells classes 0 to {classes - 1}; "
            "accuracy needs a network of the same classes"
        )
    return labels


def deviations(
    settings: EvalSettings, source: FeatureSource | None = None, reference: FeatureSource | None = None
) -> Pairs:
    """List deviations from the protocol in the settings, and in samples and reference once they are opened.

    Some of the protocol's metrics are no deviation, nor are flags, which add numbers and change none. Raises UsageError or
    DataError unless deviations are allowed.
    """
    if not settings.protocol:
        return {}
    protocol = PROTOCOLS[settings.protocol]
    usual, given = asked(protocol.metrics, **protocol.options), "not known"
    extractor, precision = settings.extractor, settings.precision
    if source is not None:
        extractor, precision = source.about.extractor or given, source.about.feature_precision or STRICT
    named = EXTRACTORS.named(extractor)
    facts: Pairs = {
        "extractor": [named.name if named else extractor, protocol.extractor],
        "feature_precision": [precision, STRICT],
    }
    if others := [name for name in settings.metrics if name not in usual]:
        facts["metrics"] = [", ".join(others), ", ".join(usual)]
    for name, options in settings.metrics.items():
        for own in METRICS[name].traits.options if name in usual else []:
            if not isinstance(own.default, bool):
                facts[own.name] = [getattr(options, own.name), getattr(usual[name], own.name)]
    if source is not None:
        facts["n"] = [source.n, protocol.n]
        if extractor == protocol.extractor == DEFAULT:
            facts["extractor_weights"] = [str(source.about.weights_sha256 or given)[:8], PUBLISHED_INCEPTION]
        if protocol.classes:
            per_class, each = protocol.per_class, "{}, each with {} to {} samples"
            if source.labels is not None:
                counts = np.unique(source.labels, return_counts=True)[1]
                given = each.format(len(counts), counts.min(), counts.max())
            facts["classes"] = [given, each.format(protocol.classes, per_class, per_class)]
        if protocol.ref_images and reference is not None:
            form, images = "statistics with {} images beside them", protocol.ref_images
            held = reference.n if settings.needing(Need.REFERENCE_FEATURES) else images
            mine = "no statistics" if reference.statistics is None else form.format(held)
            facts["reference"] = [mine, form.format(images)]
    found = {key: pair for key, pair in facts.items() if pair[0] != pair[1]}
    if not settings.allow_mismatch:
        remedy = "leave that to the protocol, or add --allow-mismatch, and the result says what deviates"
        where, kind = (source.name, DataError) if source else ("settings", UsageError)
        refuse(found, where, f"--protocol {settings.protocol}", remedy, kind)
    return found


def scored(source: FeatureSource, sides: Sides, settings: EvalSettings, mismatched: bool) -> Scores:
    """Every metric of one set of samples, and the facts of all sides. mismatched: no number may have a published name.

    Raises DataError when a metric can't be had of these features.
    """
    features, theirs = source.features, sides.reference.features if sides.reference else None
    assert features is not None
    if theirs is not None and sides.held_out is not None:
        theirs = replace(theirs, held_out=sides.held_out.features)
    values, options, draws = dict[str, Value](), dict[str, Any](), settings.classes == "random"
    for name, own in settings.metrics.items():
        values |= METRICS[name].make(features, theirs, own)
        options |= {key: each for key, each in vars(own).items() if key != "seed" and not isinstance(each, bool)}
        draws = draws or METRICS[name].traits.draws(own)
    about, other, apart = (side.about if side else FeatureFacts() for side in (source, sides.reference, sides.held_out))
    network = str(about.extractor)
    published = is_published(network, about.weights_sha256, about.feature_precision) and not mismatched
    counts = [] if features.labels is None else np.unique(features.labels, return_counts=True)[1].tolist()
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
        options=options,
        elbo_version=__version__,
        torch_fidelity_version=fidelity_version,
        torch_version=str(torch.__version__),
        ref=sides.reference.name if sides.reference else None,
        command=settings.command,
        seed=settings.seed if draws else None,
        protocol=settings.protocol or None,
        held_out=sides.held_out.name if sides.held_out else None,
        held_out_sha256=apart.images_sha256,
        n_held_out=apart.n,
    )
    return Scores(None if published else network, values, facts)


def _save(source: FeatureSource, settings: EvalSettings) -> None:
    """Write the statistics and the features that were asked for."""
    features, about = source.features, source.about
    assert features is not None
    if settings.save_stats is not None:
        moments, spatial = features.moments, features.spatial
        of_spatial = spatial and Statistics(spatial.mu, spatial.sigma)
        write_statistics(settings.save_stats, Statistics(moments.mu, moments.sigma, about, of_spatial))
    if settings.save_features is not None and features.values is not None:
        labels = None if features.labels is None else torch.as_tensor(features.labels).long()
        held = SavedFeatures(features.values, features.logits, labels, about, features.spatial_values)
        write_features(settings.save_features, held)


def _warn(result: EvalResult, settings: EvalSettings) -> None:
    """Log all that people should read beside the numbers."""
    few = "; ".join(why for name in settings.metrics if (why := METRICS[name].traits.few))
    facts = [one.facts for one in result.repeats]
    if few and (facts[0].n_samples or 0) < ENOUGH:
        log.warning("%s: %s images, below %s: %s", facts[0].samples, facts[0].n_samples, ENOUGH, few)
    made = [{key: value for key, value in each.made.items() if key not in ("seed", "command")} for each in facts]
    if differ := set[str]().union(*made) - shared(made).keys():
        told = ", ".join(sorted(differ))
        log.warning("repeats differ in more than the seed: %s; their spread is not that of repeats", told)


SAMPLES, BESIDE = 12, 5
"""Rows of the picture, and images beside the sample of each."""


def write_sheet(out: Path, sides: Sides) -> None:
    """Draw the samples that are closest to an image of the reference, the closest first, each beside the closest to it.

    Each row has the sample's index and its distance, in features. Raises DataError.
    """
    mine, theirs = sides.samples[0], sides.reference
    assert mine.features and theirs and theirs.features
    values, others_values = mine.features.values, theirs.features.values
    assert values is not None and others_values is not None
    beside = min(BESIDE, len(others_values))
    far, which = nearest(values, others_values, beside, mine.features.device)
    rows = far[:, 0].argsort(stable=True)[:SAMPLES].tolist()
    one, others = _picked(mine.name, rows), _picked(theirs.name, which[rows].flatten().tolist())
    images = np.concatenate([one[:, None], others.reshape(len(rows), beside, *one.shape[1:])], 1)
    starts = range(0, len(rows) * (1 + beside), 1 + beside)
    groups = [
        Group(f"{index}: {far[index, 0]:.3g}", range(start, start + 1 + beside)) for index, start in zip(rows, starts)
    ]
    layout = structs.replace(lay_out(one.shape[1], one.shape[2], groups), columns=1 + beside)
    write_grid(out, images.reshape(-1, *one.shape[1:]), layout)


def _picked(path: str, indices: Sequence[int]) -> np.ndarray:
    """Images of a file at these places, in this order: uint8 [len(indices), H, W, C]. Read from the first on."""
    with read_samples(Path(path)) as reader:
        found = {index: reader.at(index, 1)[0].copy() for index in sorted(set(indices))}
    return np.stack([found[index] for index in indices])
