"""Score images against a reference, if both are comparable. Repeats: sets of samples that differ in the seed."""

import contextlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from msgspec import structs

from elbocli.errors import DataError, Parameter
from elbocli.files.contact_sheet import Group, lay_out, write_contact_sheet
from elbocli.files.features import FeatureFacts, SavedFeatures, Statistics, write_features, write_statistics
from elbocli.runs.classes import CHANCE, DATA, RANDOM, p_of_equal_shares
from elbocli.runtime.processes import ALONE, World
from elbocli.runtime.progress import log
from elbocli.scoring.extract import extract
from elbocli.scoring.metrics import Features, Need
from elbocli.scoring.neighbours import nearest
from elbocli.scoring.opening import Evaluation, fingerprint, open_evaluation
from elbocli.scoring.protocols import deviations, deviations_of_files, options_of
from elbocli.scoring.result import ENOUGH, EvalResult, Facts, Pairs, Score, SetScores, mismatches, name_of
from elbocli.scoring.sets import FeatureSet, ImageSet, Source, class_sizes
from elbocli.scoring.settings import EvalSettings
from elbocli.version import __version__

NO_FEATURES = Features(torch.empty(0, 0))  # reference of metrics that need none


def run(sources: Sequence[Source], ref: Source | None, settings: EvalSettings, world: World = ALONE) -> EvalResult | None:
    """Open, extract and score; save and draw what the settings ask for. Returns the result on rank 0, None on other ranks.

    sources, ref, and errors raised: as in `open_evaluation`.
    """
    with contextlib.ExitStack() as stack:
        evaluation = open_evaluation(sources, ref, settings, world, stack)
        samples, reference = extract(evaluation)
        if not world.first:
            return None
        result = score(evaluation, samples, reference)
        if settings.neighbours and reference:
            write_sheet(settings.neighbours, evaluation, samples[0], reference)
    _save(samples[0], settings)
    _warn(result, evaluation)
    _warn_of_classes(evaluation, samples, reference)
    return result


def score(evaluation: Evaluation, samples: Sequence[FeatureSet], reference: FeatureSet | None) -> EvalResult:
    """Compute the metrics. samples, reference: from `extract`, on rank 0.

    Raises DataError: two sets of samples hold the same images, or their features don't suit a metric.
    """
    digests = [digest for some in samples if (digest := some.about.images_sha256)]
    if len(set(digests)) < len(digests):
        raise DataError(
            f"two of {[some.name for some in samples]} hold the same images; draw each with a ", Parameter("seed"), " of its own"
        )
    comparable = not any(_mismatch(some, reference) for some in samples)
    return EvalResult([_score_set(some, reference, evaluation, comparable) for some in samples])


def _score_set(samples: FeatureSet, reference: FeatureSet | None, evaluation: Evaluation, comparable: bool) -> SetScores:
    scores = dict[str, Score]()
    for metric in evaluation.metrics.values():
        for name, estimate in metric(samples.features, reference.features if reference else NO_FEATURES).items():
            scores[name_of(name, samples.about, comparable)] = Score.of_estimate(estimate)
    return SetScores(scores, facts_of(samples, reference, evaluation))


def _mismatch(samples: FeatureSet, reference: FeatureSet | None) -> Pairs:
    return mismatches(fingerprint(samples.about), fingerprint(reference.about)) if reference else {}


def facts_of(samples: FeatureSet, reference: FeatureSet | None, evaluation: Evaluation) -> Facts:
    """Return the metadata on the scores of one set of samples."""
    settings = evaluation.settings
    about = samples.about
    ref = reference.about if reference else FeatureFacts()
    counts = class_sizes(samples.labels)
    deviating = deviations(settings) | deviations_of_files(settings, samples, evaluation.reference)
    return Facts(
        samples=samples.name,
        n_samples=about.n or 0,
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
        options=options_of(evaluation.metrics),
        elbo_version=__version__,
        torch_fidelity_version=version("torch-fidelity"),
        torch_version=str(torch.__version__),
        command=settings.command,
        seed=settings.seed if settings.classes == RANDOM else None,
        mismatch=_mismatch(samples, reference) or None,
        protocol=settings.protocol or None,
        deviates=deviating or None,
    )


# Files and warnings


def _save(samples: FeatureSet, settings: EvalSettings) -> None:
    features = samples.features
    about = samples.about
    if settings.save_stats:
        moments = features.moments
        spatial = features.spatial_moments if features.has_spatial else None
        of_spatial = None if spatial is None else Statistics(spatial.mu, spatial.sigma)
        write_statistics(settings.save_stats, Statistics(moments.mu, moments.sigma, about, of_spatial))
    if settings.save_features:
        labels = None if features.labels is None else torch.as_tensor(features.labels).long()
        logits = features.logits if features.logits.shape[1] else None
        spatial_features = features.spatial if features.spatial.shape[1] else None
        write_features(settings.save_features, SavedFeatures(features.values, logits, labels, about, spatial_features))


def _warn(result: EvalResult, evaluation: Evaluation) -> None:
    few = "; ".join(metric.few for metric in evaluation.metrics.values() if metric.few)
    facts = result.repeats[0].facts
    if few and facts.n_samples < ENOUGH:
        log.warning(
            f"{facts.samples}: has {facts.n_samples} images; with fewer than {ENOUGH}, scores depend on the number of images: {few}"
        )
    keys = {key for scores in result.repeats for key in scores.facts.made}
    if differ := keys - result.made.keys() - {"seed", "command"}:
        log.warning(
            f"sets of samples differ in more than the seed: {', '.join(sorted(differ))}; so the standard deviation is not over "
            "seeds alone"
        )


def _warn_of_classes(evaluation: Evaluation, samples: Sequence[FeatureSet], reference: FeatureSet | None) -> None:
    if reference is None or not evaluation.needing(Need.REFERENCE) or evaluation.settings.classes_of_protocol:
        return
    for some in samples:
        p = p_of_same_classes(some, reference)
        if p is not None and p < CHANCE:
            remedy = "draw samples by 'elbo sample … --classes data'"
            if (some.about.made or {}).get("classes") == DATA:
                remedy = "choose a --ref with the classes of the run's training data"
            log.warning(
                f"{some.name}: its classes differ in frequency from those of {reference.name} by more than chance (chi-square "
                f"test, p = {p:.1g}), which changes the scores; {remedy}"
            )


def p_of_same_classes(samples: FeatureSet, reference: FeatureSet) -> float | None:
    """Return the p-value of a test that samples and reference have equal proportions of classes.

    Returns None if one of them has no labels, or they have classes of different names.
    """
    if samples.labels is None or reference.labels is None:
        return None
    labels = [samples.labels, reference.labels]
    names = [some.class_names for some in (samples, reference)]
    if all(names):
        if not (set(names[0]) <= set(names[1]) or set(names[0]) >= set(names[1])):
            return None
        labels = [np.array(of_class)[numbers] for of_class, numbers in zip(names, labels)]
    classes, numbers = np.unique(np.concatenate(labels), return_inverse=True)
    return p_of_equal_shares(*(np.bincount(part, minlength=len(classes)) for part in np.split(numbers, [len(labels[0])])))


# rows in the picture of --neighbours, and reference images in each row
ROWS = 12
BESIDE = 5


def write_sheet(out: Path, evaluation: Evaluation, samples: FeatureSet, reference: FeatureSet) -> None:
    """Draw a row for each of the samples closest to the reference: the sample, then the nearest reference images."""
    columns = 1 + min(BESIDE, reference.n)
    distances, neighbours = nearest(samples.features.values, reference.features.values, columns - 1, evaluation.world.device)
    rows = distances[:, 0].argsort(stable=True)[:ROWS].tolist()
    closest = _pick(evaluation.samples[0], rows)
    others = _pick(evaluation.reference, neighbours[rows].flatten().tolist())
    images = np.concatenate([closest[:, None], others.reshape(len(rows), -1, *closest.shape[1:])], 1)
    groups = [
        Group(f"{index}: {distances[index, 0]:.3g}", range(row * columns, (row + 1) * columns)) for row, index in enumerate(rows)
    ]
    layout = structs.replace(lay_out(closest.shape[1], closest.shape[2], groups), columns=columns)
    write_contact_sheet(out, images.reshape(-1, *closest.shape[1:]), layout)


def _pick(images: object, indices: Sequence[int]) -> np.ndarray:
    assert isinstance(images, ImageSet)  # by check_inputs
    return images.reader.pick(indices)
