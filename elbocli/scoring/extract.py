"""Compute the features of opened images on all ranks, or take saved ones."""

import hashlib
from collections.abc import Iterator, Sequence, Set

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from elbocli.core.moments import NOTHING, FeatureMoments, StreamingFeatureMoments
from elbocli.errors import DataError, Parameter
from elbocli.files.features import LARGEST_FEATURE
from elbocli.files.reading import add_digests
from elbocli.runtime.background import Prefetcher
from elbocli.runtime.device import Precision, sent
from elbocli.runtime.progress import log, progress
from elbocli.scoring.metrics import Features, Need
from elbocli.scoring.opening import Evaluation
from elbocli.scoring.sets import FeatureSet, ImageSet, SomeSet

VALUES = "values"
LOGITS = "logits"
SPATIAL = "spatial"


def extract(evaluation: Evaluation) -> tuple[list[FeatureSet], FeatureSet | None]:
    """Return the features of samples and reference; None: there is no reference.

    Raises DataError: when features are not finite or too large.
    """
    if extractor := evaluation.extractor:
        log.info(f"extracting features with {extractor.name} on {evaluation.world.device}, in {extractor.precision} precision")
    samples = [extract_samples(some, evaluation) for some in evaluation.samples]
    reference = extract_reference(evaluation.reference, evaluation) if evaluation.reference else None
    return samples, reference


def extract_samples(samples: SomeSet, evaluation: Evaluation) -> FeatureSet:
    """Return the features of samples that the metrics and files need. Raises DataError: when they are not finite or too large."""
    save = evaluation.settings.save_features
    reasons = {
        VALUES: evaluation.compares_images or evaluation.needing(Need.REFERENCE) or save,
        LOGITS: evaluation.needing(Need.LOGITS) or save,
        SPATIAL: evaluation.spatial,
    }
    return extract_features(samples, evaluation, {name for name, reason in reasons.items() if reason})


def extract_reference(reference: SomeSet, evaluation: Evaluation) -> FeatureSet:
    """Return the features of a reference that the metrics need. Raises DataError: when they are not finite or too large."""
    return extract_features(reference, evaluation, {VALUES} if evaluation.compares_images else set())


def extract_features(some: SomeSet, evaluation: Evaluation, keep: Set[str]) -> FeatureSet:
    """Return a set's features, extracted on all ranks.

    evaluation: for its extractor, batch size and ranks. keep: features of each image to keep: VALUES, LOGITS, SPATIAL.
    Returns: features with moments on all ranks, and with values of each image on rank 0.
    Raises DataError: when features are not finite or too large.
    """
    if isinstance(some, FeatureSet):
        return some
    device = evaluation.world.device
    if some.statistics and not keep:
        about = structs.replace(some.about, images=None)
        return FeatureSet.of_statistics(some.name, some.statistics._replace(about=about), device)
    summed = [] if some.statistics else [VALUES, *([SPATIAL] if evaluation.spatial else [])]
    kept, moments, digest = _of_images(some, evaluation, keep, summed)
    about = some.about
    statistics = some.statistics
    if statistics is None:
        about = structs.replace(about, images_sha256=digest)
    features = Features(
        kept.get(VALUES, torch.empty(0, 0)),
        kept.get(LOGITS),
        kept.get(SPATIAL),
        some.labels,
        moments=statistics or moments[VALUES],
        spatial_moments=statistics.spatial if statistics else moments.get(SPATIAL),
        device=device,
    )
    return FeatureSet(some.name, about, features, some.class_names)


def _of_images(
    images: ImageSet, evaluation: Evaluation, keep: Set[str], summed: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, FeatureMoments], str]:
    # Returns the features `keep` of each image (on rank 0), moments of the features `summed`, and the digest of all images.
    sums = {name: StreamingFeatureMoments() for name in summed}
    kept = dict[str, Tensor]()
    digests = list[str]()
    done = 0
    world = evaluation.world
    for outputs, some_digests in _outputs(images, evaluation, SPATIAL in {*summed, *keep}):
        digests += some_digests
        for name in summed if outputs else ():
            sums[name].add(outputs[name].numpy())
        for rows in world.all({name: outputs[name] for name in keep if name in outputs}) if keep else ():
            for name, tensor in rows.items() if world.first else ():
                whole = kept.setdefault(name, tensor.new_empty(images.n, *tensor.shape[1:]))
                whole[done : done + len(tensor)] = tensor
            done += len(next(iter(rows.values()), ()))
    moments = {name: sum(world.all(part.moments()), NOTHING) for name, part in sums.items()}
    return kept, moments, add_digests(world.all(add_digests(digests)))


def _outputs(images: ImageSet, evaluation: Evaluation, spatial: bool) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    # Yields this rank's part of each step: features of its batch by name, and digests of the images; both empty without a batch.
    world = evaluation.world
    batch = images.reader.batch(evaluation.settings.batch_size)
    sharers = 1 if images.streamed else world.size  # each takes whole batches: the result doesn't depend on world.size

    def read(step: int) -> tuple[int, np.ndarray, list[str]] | None:
        begin = (step * sharers + world.rank) * batch
        if world.rank >= sharers or begin >= images.n:
            return None
        pixels = images.reader.at(begin, min(batch, images.n - begin))
        # Each digest includes shape and position, so that the sum of all digests identifies the images and their order.
        texts = [f"{begin + k} {image.shape} ".encode() + image.tobytes() for k, image in enumerate(pixels)]
        return begin, pixels, [hashlib.sha256(text).hexdigest() for text in texts]

    get = read if images.streamed else Prefetcher(read, depth=1).get
    for step in range(-(-images.n // (batch * sharers))):
        outputs = dict[str, Tensor]()
        digests = list[str]()
        with world.together():
            if part := get(step):
                begin, pixels, digests = part
                outputs = _features_of(pixels, evaluation, spatial, images.name, begin)
        yield outputs, digests
        progress(min((step + 1) * batch * sharers, images.n), images.n, "img", of=images.name)


def _features_of(images: np.ndarray, evaluation: Evaluation, spatial: bool, where: str, begin: int) -> dict[str, Tensor]:
    # Returns values [B, D], logits [B, K] if any, spatial features [B, S] if `spatial`. where, begin: for messages.
    extractor = evaluation.extractor
    device = evaluation.world.device
    assert extractor
    precision = Precision(extractor.precision, device)
    with torch.inference_mode(), precision.applied(), precision.autocast():
        pixels = sent(torch.from_numpy(images), device).permute(0, 3, 1, 2)
        features, logits, maps = extractor.with_spatial(pixels) if spatial else (*extractor(pixels), None)
    named = {VALUES: features, LOGITS: logits, SPATIAL: maps}
    outputs = {name: tensor.cpu() for name, tensor in named.items() if tensor is not None}
    for tensor in outputs.values():
        usable = (tensor.abs() <= LARGEST_FEATURE).all(1)
        if not usable.all():
            raise DataError(
                f"{where}: features of image {begin + int(usable.int().argmin())} are not finite, or larger than "
                f"{LARGEST_FEATURE:g}; the extractor {extractor.name} doesn't suit these images; choose another ",
                Parameter("extractor"),
            )
    return outputs
