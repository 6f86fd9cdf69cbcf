"""Score images against a reference, if both are comparable. Repeats: sets of samples that differ in the seed."""

import contextlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from msgspec import structs

from elbocli.errors import DataError
from elbocli.files.contact_sheet import Group, lay_out, write_contact_sheet
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, write_features, write_statistics
from elbocli.runs.classes import CHANCE, DATA, RANDOM, p_of_equal_shares
from elbocli.runtime.processes import ALONE, World
from elbocli.runtime.progress import log
from elbocli.scoring.extract import extract
from elbocli.scoring.metrics import METRICS, Need, Value
from elbocli.scoring.neighbours import nearest
from elbocli.scoring.opening import Opened, OpenedSet, deviations, fingerprint, open_evaluation, options_of
from elbocli.scoring.result import ENOUGH, EvalResult, Facts, Pairs, Scores, mismatches, naming_network
from elbocli.scoring.settings import EvalSettings
from elbocli.version import __version__


def run(sources: Sequence[Path | IO[bytes]], ref: Path | None, settings: EvalSettings, world: World = ALONE) -> EvalResult | None:
    """Open, extract and score; save and draw what the settings ask for. Returns the result on rank 0, None on other ranks.

    sources, ref, and errors raised: as in `open_evaluation`.
    """
    with contextlib.ExitStack() as stack:
        opened = extract(open_evaluation(sources, ref, settings, world, stack))
        result = score(opened)
        if result and settings.neighbours:
            write_sheet(settings.neighbours, opened)
    if result:
        _save(opened.samples[0], settings)
        _warn(result, settings)
        _warn_of_classes(opened)
    return result


def score(opened: Opened) -> EvalResult | None:
    """Compute the metrics; return the result on rank 0, None on other ranks, which don't wait for rank 0.

    opened: from `extract`.
    Raises DataError: two sets of samples hold the same images, or their features don't suit a metric.
    """
    if not opened.world.first:
        return None
    digests = [digest for side in opened.samples if (digest := side.about.images_sha256)]
    if len(set(digests)) < len(digests):
        raise DataError(
            f"two of {[side.name for side in opened.samples]} hold the same images; draw each with a --seed of its own"
        )
    return EvalResult([score_set(side, opened) for side in opened.samples])


def score_set(samples: OpenedSet, opened: Opened) -> Scores:
    """Compute all metrics of one set of samples. Raises DataError when a metric can't be computed from these features."""
    reference = opened.reference and opened.reference.features
    values = dict[str, Value]()
    for name, options in opened.settings.metrics.items():
        values |= METRICS[name].make(samples.features, reference, options)
    mismatched = any(_mismatch(side, opened.reference) for side in opened.samples)
    network = str(samples.about.extractor) if mismatched else naming_network(samples.about)  # part of the names of scores
    return Scores(network, values, facts_of(samples, opened))


def _mismatch(samples: OpenedSet, reference: OpenedSet | None) -> Pairs:
    return mismatches(fingerprint(samples.about), fingerprint(reference.about)) if reference else {}


def facts_of(samples: OpenedSet, opened: Opened) -> Facts:
    """Return the metadata on the scores of one set of samples."""
    settings = opened.settings
    reference = opened.reference
    about = samples.about
    ref = reference.about if reference else FeatureFacts()
    counts = samples.class_sizes()
    return Facts(
        samples=samples.name,
        n_samples=about.n,
        samples_sha256=about.images_sha256,
        ref=reference.name if reference else None,
        n_ref=ref.n,
        n_ref_images=ref.images,
        ref_sha256=ref.sha256 or ref.images_sha256,
        extractor=about.extractor,
        extractor_sha256=about.weights_sha256,
        feature_precision=about.feature_precision,
        preprocessing=about.preprocessing,
        ref_preprocessing=ref.preprocessing,
        classes=len(counts) or None,
        fewest_of_a_class=min(counts, default=None),
        most_of_a_class=max(counts, default=None),
        made=about.made or {},
        options=options_of(settings.metrics),
        elbo_version=__version__,
        torch_fidelity_version=version("torch-fidelity"),
        torch_version=str(torch.__version__),
        command=settings.command,
        seed=settings.seed if settings.classes == RANDOM else None,
        mismatch=_mismatch(samples, reference) or None,
        protocol=settings.protocol or None,
        deviates=deviations(settings, samples, reference) or None,
    )


# Files and warnings


def _save(samples: OpenedSet, settings: EvalSettings) -> None:
    features = samples.features
    about = samples.about
    if settings.save_stats:
        write_statistics(settings.save_stats, Statistics(features.moments.mu, features.moments.sigma, about, features.spatial))
    if settings.save_features:
        labels = None if features.labels is None else torch.as_tensor(features.labels).long()
        write_features(
            settings.save_features, SavedFeatures(features.values, features.logits, labels, about, features.spatial_values)
        )


def _warn(result: EvalResult, settings: EvalSettings) -> None:
    few = "; ".join(why for name in settings.metrics if (why := METRICS[name].traits.few))
    facts = result.repeats[0].facts
    if few and (facts.n_samples or 0) < ENOUGH:
        log.warning(
            f"{facts.samples}: has {facts.n_samples} images; with fewer than {ENOUGH}, scores depend on the number of images: {few}"
        )
    keys = {key for scores in result.repeats for key in scores.facts.made}
    if differ := keys - result.common()["made"].keys() - {"seed", "command"}:
        log.warning(
            f"sets of samples differ in more than the seed: {', '.join(sorted(differ))}; so the standard deviation is not over "
            "seeds alone"
        )


def _warn_of_classes(opened: Opened) -> None:
    settings = opened.settings
    reference = opened.reference
    if reference is None or not settings.needing(Need.REFERENCE) or settings.classes_of_protocol:
        return
    for side in opened.samples:
        p = p_of_same_classes(side, reference)
        if p is not None and p < CHANCE:
            remedy = "draw samples by 'elbo sample … --classes data'"
            if (side.about.made or {}).get("classes") == DATA:
                remedy = "choose a --ref with the classes of the run's training data"
            log.warning(
                f"{side.name}: its classes differ in frequency from those of {reference.name} by more than chance (chi-square "
                f"test, p = {p:.1g}), which changes the scores; {remedy}"
            )


def p_of_same_classes(samples: OpenedSet, reference: OpenedSet) -> float | None:
    """Return the p-value of a test that samples and reference have equal proportions of classes.

    Returns None if one of them has no labels, or they have classes of different names.
    """
    labels: list[Any] = [samples.labels, reference.labels]
    if labels[0] is None or labels[1] is None:
        return None
    names = [side.class_names for side in (samples, reference)]
    if all(names):
        if not (set(names[0]) <= set(names[1]) or set(names[0]) >= set(names[1])):
            return None
        labels = [np.array(of_class)[numbers] for of_class, numbers in zip(names, labels)]
    classes, numbers = np.unique(np.concatenate(labels), return_inverse=True)
    return p_of_equal_shares(*(np.bincount(part, minlength=len(classes)) for part in np.split(numbers, [samples.n])))


# rows in the picture of --neighbours, and reference images in each row
ROWS = 12
BESIDE = 5


def write_sheet(out: Path, opened: Opened) -> None:
    """Draw a row for each of the samples closest to the reference: the sample, then the nearest reference images."""
    samples: Any = opened.samples[0]
    reference: Any = opened.reference
    columns = 1 + min(BESIDE, reference.n)
    device = samples.features.device
    distances, neighbours = nearest(samples.features.values, reference.features.values, columns - 1, device)
    rows = distances[:, 0].argsort(stable=True)[:ROWS].tolist()
    closest = samples.reader.pick(rows)
    others = reference.reader.pick(neighbours[rows].flatten().tolist())
    images = np.concatenate([closest[:, None], others.reshape(len(rows), -1, *closest.shape[1:])], 1)
    groups = [
        Group(f"{index}: {distances[index, 0]:.3g}", range(row * columns, (row + 1) * columns)) for row, index in enumerate(rows)
    ]
    layout = structs.replace(lay_out(closest.shape[1], closest.shape[2], groups), columns=columns)
    write_contact_sheet(out, images.reshape(-1, *closest.shape[1:]), layout)
