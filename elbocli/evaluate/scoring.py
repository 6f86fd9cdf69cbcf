"""Score images against a reference."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from msgspec import structs
from torch_fidelity.version import __version__ as fidelity_version

from elbocli.core.metrics import METRICS, Features, Need, Value
from elbocli.core.metrics.distances import FID_WITHIN
from elbocli.core.neighbours import nearest
from elbocli.errors import DataError, UsageError
from elbocli.evaluate.checks import (
    check_features,
    check_made_alike,
    check_settings,
    check_source,
    check_spatial,
    labels_of,
    possible,
    with_classes,
)
from elbocli.evaluate.extract import FeatureSource, Seen, open_feature_source, open_reference, see
from elbocli.evaluate.result import ENOUGH, EvalResult, Facts, Scores
from elbocli.evaluate.settings import EvalSettings
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, write_features, write_statistics
from elbocli.files.grid import Group, lay_out, write_grid
from elbocli.images.samples import read_samples
from elbocli.nn.extractors import DEFAULT, EXTRACTORS, Extractor, is_published, make_extractor
from elbocli.runtime.processes import ALONE, World
from elbocli.runtime.progress import Progress
from elbocli.version import __version__


def run(
    sources: Sequence[Path | IO[bytes]],
    ref: Path | None,
    settings: EvalSettings,
    world: World = ALONE,
) -> Generator[Progress, None, EvalResult | None]:
    """Score each of `sources` (paths, or an NPY stream) against `ref`; the result, in the first process alone.

    Several sources are repeats of one experiment. Images are never held: memory is a batch, each source's moments, and
    4 bytes a feature (a class) and image where a metric needs them. The other processes end when the first has all
    features. Raises UsageError, DataError and FormatError: too few images, a stream cut short, files that don't fit each other.
    """
    seen: list[Seen] = []
    theirs: Seen | None = None
    apart: Seen | None = None
    check_settings(settings)
    with contextlib.ExitStack() as stack:
        opened = [with_classes(open_feature_source(source, stack, world), settings) for source in sources]
        reference = None if ref is None else open_reference(ref, stack, world)
        held_out = None if settings.held_out is None else open_feature_source(settings.held_out, stack, world)
        spatial = settings.needing(Need.SPATIAL)  # also of what is only to be saved
        settings = possible(settings, opened, reference, held_out)
        seeing = reference is not None and reference.sees_images(settings.needs_reference_features)
        others = [reference.source if reference is not None and seeing else None, held_out]
        extractor = _extractor(settings, [each for each in (*opened, *others) if each is not None], world)
        if extractor is not None:
            yield Progress(message=f"features of {extractor.name}; {world.device}, {settings.precision}")
        differ = check_made_alike(opened, reference, held_out, extractor, settings)
        deviating = [check_source(source, reference, extractor, settings) for source in opened]
        if spatial:
            check_spatial(opened, reference, extractor, spatial[0])
        values = settings.needing(Need.REFERENCE) or settings.needs_reference_features
        wanted = {"values": values, "logits": settings.needing(Need.LOGITS)}
        keep = frozenset(name for name, needing in wanted.items() if needing or settings.save_features)
        keep |= {"spatial_values"} if settings.needing(Need.SPATIAL) or (spatial and settings.save_features) else set()
        for source in opened:
            check = partial(check_features, source=source, reference=reference, settings=settings)
            found = yield from see(source, extractor, settings.batch, world, keep, "samples", check, bool(spatial))
            if found.features is not None:
                found.features.labels = labels_of(source, reference, found.features.logits, settings)
            seen.append(found)
        if reference is not None:
            features = settings.needs_reference_features
            theirs = yield from reference.see(extractor, settings.batch, world, features, bool(spatial))
        if held_out is not None:
            kept = frozenset(["values"])
            apart = yield from see(held_out, extractor, settings.batch, world, kept, "held-out images")
    if not world.first:  # nobody waits for the scores: those of many images may take an hour
        return None
    result = EvalResult([])
    for mine, mismatch, deviates in zip(seen, differ, deviating, strict=True):
        _save(mine, settings)
        last = scored(mine, theirs, apart, settings, any(differ), ref, mismatch, deviates)
        for other in result.repeats:
            digest, name = other.facts.samples_sha256, other.facts.samples
            if digest is not None and digest == last.facts.samples_sha256:
                raise DataError(f"{mine.name}: the same images as {name}; repeats must be drawn with other seeds")
        result.repeats.append(last)
    if settings.neighbours is not None and ref is not None and theirs is not None:
        pair = seen[0].features, theirs.features
        assert pair[0] is not None and pair[1] is not None
        write_sheet(settings.neighbours, Path(seen[0].name), pair[0], ref, pair[1])
    yield from (Progress(message=note, level="warning") for note in _notes(result, settings))
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


def scored(
    seen: Seen,
    theirs: Seen | None,
    held_out: Seen | None,
    settings: EvalSettings,
    mismatched: bool,
    ref: Path | None,
    mismatch: dict[str, list[Any]],
    deviates: dict[str, list[Any]],
) -> Scores:
    """Every metric of one set of samples, and the facts of all sides. mismatched: no number may have a published name.

    Raises DataError when features don't go together.
    """
    assert seen.features is not None
    width = len(seen.features.moments.mu)
    reference, apart = (None if side is None else side.features for side in (theirs, held_out))
    for side in (reference, apart):
        if side is not None and (other_width := len(side.moments.mu)) != width:
            raise DataError(
                f"{seen.name}: {width} features an image, and the reference has {other_width}; use one made alike"
            )
    if reference is not None and apart is not None:
        reference = replace(reference, held_out=apart)
    values: dict[str, Value] = {}
    for name, options in settings.metrics.items():
        values |= METRICS[name].make(seen.features, reference, options)
    about, other = seen.about, FeatureFacts() if theirs is None else theirs.about
    network = str(about.extractor)
    published = is_published(network, about.weights_sha256, about.feature_precision) and not mismatched
    labels = seen.features.labels
    counts = [] if labels is None else np.unique(labels, return_counts=True)[1].tolist()
    asked = {own.name: getattr(options, own.name) for options in settings.metrics.values() for own in options.own()}
    draws = settings.classes == "random" or any(options.draws for options in settings.metrics.values())
    facts = Facts(
        n_samples=about.n,
        n_ref=other.n,
        n_ref_images=other.images,
        samples=seen.name,
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
        options={name: value for name, value in asked.items() if not isinstance(value, bool)},
        elbo_version=__version__,
        torch_fidelity_version=fidelity_version,
        torch_version=str(torch.__version__),
        ref=None if ref is None else str(ref),
        command=settings.command,
        seed=settings.seed if draws else None,
        protocol=settings.protocol or None,
        mismatch=mismatch or None,
        deviates=deviates or None,
        held_out=None if held_out is None else held_out.name,
        held_out_sha256=None if held_out is None else held_out.about.images_sha256,
        n_held_out=None if held_out is None else held_out.about.n,
    )
    return Scores(None if published else network, values, facts)


def _save(seen: Seen, settings: EvalSettings) -> None:
    features = seen.features
    assert features is not None
    if settings.save_stats is not None:
        moments, spatial = features.moments, features.spatial
        of_spatial = None if spatial is None else Statistics(spatial.mu, spatial.sigma)
        write_statistics(settings.save_stats, Statistics(moments.mu, moments.sigma, seen.about, of_spatial))
    if settings.save_features is not None and features.values is not None:
        labels = None if features.labels is None else torch.as_tensor(features.labels).long()
        held = SavedFeatures(features.values, features.logits, labels, seen.about, features.spatial_values)
        write_features(settings.save_features, held)


def _notes(result: EvalResult, settings: EvalSettings) -> list[str]:
    """Notes that people should read beside the numbers."""
    few = [why for name in settings.metrics if (why := METRICS[name].traits.few)]
    first, notes = result.repeats[0].facts, []
    if first.n_samples is not None and first.n_samples < ENOUGH and few:
        notes.append(f"{first.samples}: {first.n_samples} images, below {ENOUGH}: {'; '.join(few)}")
    for one in result.repeats:
        name, ref = one.facts.samples, one.facts.ref
        if one.facts.mismatch:
            keys = ", ".join(one.facts.mismatch)
            notes.append(f"{name} and {ref} were made differently ({keys}): this compares with no others")
        if one.facts.deviates:
            notes.append(f"{name}: deviates from {one.facts.protocol} ({', '.join(one.facts.deviates)})")
        if FID_WITHIN in one.values and one.values[FID_WITHIN] is None:
            notes.append(f"{name}: no interval for FID: it takes twice as many images as features")
    if differ := result.unlike():
        notes.append(f"repeats differ in more than the seed: {', '.join(differ)}; their spread is not that of repeats")
    return notes


SAMPLES, BESIDE = 12, 5
"""Rows of the picture, and images beside the sample of each."""


def write_sheet(out: Path, samples: Path, own: Features, ref: Path, theirs: Features) -> None:
    """Draw the samples that are closest to an image of the reference, the closest first, each beside the closest to it.

    Each row has the sample's index and its distance, in features. Raises DataError.
    """
    assert own.values is not None and theirs.values is not None
    beside = min(BESIDE, len(theirs.values))
    far, which = nearest(own.values, theirs.values, beside, own.device)
    rows = far[:, 0].argsort(stable=True)[:SAMPLES].tolist()
    one, others = picked(samples, rows), picked(ref, which[rows].flatten().tolist())
    images = np.concatenate([one[:, None], others.reshape(len(rows), beside, *others.shape[1:])], 1)
    columns = 1 + beside
    groups = [
        Group(f"{index}: {far[index, 0]:.3g}", range(row * columns, (row + 1) * columns))
        for row, index in enumerate(rows)
    ]
    layout = structs.replace(lay_out(images.shape[2], images.shape[3], groups), columns=columns)
    write_grid(out, images.reshape(-1, *images.shape[2:]), layout)


def picked(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Images of a file at these places, in this order: uint8 [len(indices), H, W, C]. Read from the first on."""
    with read_samples(path) as reader:
        found = {index: reader.at(index, 1)[0].copy() for index in sorted(set(indices))}
    return np.stack([found[index] for index in indices])
