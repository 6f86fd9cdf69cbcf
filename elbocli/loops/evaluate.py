"""Score images against a reference."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.version import __version__ as fidelity_version

from elbocli import __version__
from elbocli.core.frechet import frechet_distance
from elbocli.core.moments import StreamingMoments
from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.samples import SampleReader, read_samples
from elbocli.files.statistics import Statistics, is_statistics, read_statistics, write_statistics
from elbocli.loops.report import Report
from elbocli.loops.runtime import choose_device
from elbocli.loops.sample import choose_labels
from elbocli.nn.extractors import Extractor, make_extractor

METRICS = ("fid", "is", "accuracy")
SPLITS = 10


@dataclass(frozen=True)
class Settings:
    """What to compute. classes: the labels of a stream (as given to `elbo sample`), for accuracy."""

    metrics: tuple[str, ...] = ("fid", "is")
    extractor: str = "inception-v3-compat"
    extractor_weights: Path | None = None
    batch: int = 64
    device: str = "auto"
    classes: str = ""
    seed: int = 0


class Scores:
    """Everything kept of the images seen: moments of features, and logits where a metric needs them."""

    def __init__(self, keep_logits: bool):
        self.moments = StreamingMoments()
        self.logits: list[torch.Tensor] | None = [] if keep_logits else None

    def add(self, features: torch.Tensor, logits: torch.Tensor | None, name: str) -> None:
        if not bool(features.isfinite().all()):
            raise DataError(f"{name}: features are not finite; the extractor doesn't suit these images")
        self.moments.add(features.cpu().numpy())
        if self.logits is not None:
            if logits is None:
                raise UsageError("this extractor gives features only; IS and accuracy need logits: use --metrics fid")
            self.logits.append(logits.cpu())


def _extract(
    reader: SampleReader, extractor: Extractor, settings: Settings, device: torch.device, scores: Scores, what: str
) -> Generator[Report, None, None]:
    done = 0
    for batch in reader.batches(settings.batch):
        images = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            scores.add(*extractor(images), reader.name)
        done += len(batch)
        yield Report(done, reader.shape[0], "img", values={"of": what})


def _preprocessing(shape: tuple[int, int, int, int], crop: str | None) -> dict[str, Any]:
    return {"image_size": shape[1], "channels": shape[3], **({"crop": crop} if crop else {})}


def _about(extractor: Extractor, n: int, preprocessing: dict[str, Any]) -> dict[str, Any]:
    return {
        "n": n,
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": preprocessing,
        "elbo_version": __version__,
    }


def _check_reference(
    reference: Statistics, path: Path, extractor: Extractor, shape: tuple[int, int, int, int], width: int
) -> None:
    """Raise DataError when the statistics were made from something that can't be compared."""
    if len(reference.mu) != width:
        raise DataError(f"{path}: statistics of {len(reference.mu)} features, but {extractor.name} has {width}")
    known = reference.about
    for key, mine in (("extractor", extractor.name), ("weights_sha256", extractor.weights_sha256)):
        if known.get(key, mine) != mine:
            raise DataError(
                f"{path}: made with {key} {known[key]}, now {mine}; numbers of different extractors can't be compared"
            )
    size = known.get("preprocessing", {}).get("image_size", shape[1])
    if size != shape[1]:
        raise DataError(
            f"{path}: made from images of {size} pixels, the samples have {shape[1]}; use a reference of the same size"
        )


def run(
    samples: Path | IO[bytes], ref: Path | None, settings: Settings, save_stats: Path | None = None
) -> Generator[Report, None, dict[str, Any]]:
    """Score `samples` (a path, or an NPY stream) against `ref` (a dataset or statistics); returns the result.

    Images are never held: memory is a batch, the moments, and for IS and accuracy 4 bytes a class and image.
    Raises DataError and FormatError: too few images, a stream cut short, files that don't fit each other.
    """
    if "fid" in settings.metrics and ref is None and save_stats is None:
        raise UsageError("fid needs --ref (a dataset, or saved statistics); or add --save-stats FILE to make one")
    device = choose_device(settings.device)
    extractor = make_extractor(settings.extractor, settings.extractor_weights, device)
    statistics = read_statistics(ref) if ref is not None and is_statistics(ref) else None
    dataset = Dataset(ref) if ref is not None and statistics is None else None
    with read_samples(samples) as reader:
        n = reader.shape[0]
        _check_count(n, settings, reader.name)
        if dataset is not None and dataset.shape[1:] != reader.shape[1:]:
            raise DataError(
                f"{ref}: images are {_size(dataset.shape)}, the samples {_size(reader.shape)}; pack the reference with the same --size and --channels"
            )
        scores = Scores(bool({"is", "accuracy"} & set(settings.metrics)))
        yield from _extract(reader, extractor, settings, device, scores, "samples")
        labels, shape, crop = reader.labels, reader.shape, reader.about.get("crop")
    moments = scores.moments.moments()
    mu, sigma = moments.mu, moments.sigma
    result: dict[str, Any] = {}
    if "fid" in settings.metrics and ref is not None:
        if dataset is not None:
            statistics = yield from _dataset_statistics(dataset, extractor, settings, device)
        assert statistics is not None
        _check_reference(statistics, ref, extractor, shape, len(mu))
        result |= _named(extractor, {KEY_METRIC_FID: frechet_distance(moments, statistics)})
    if "is" in settings.metrics:
        assert scores.logits is not None
        result |= _named(extractor, isc_features_to_metric(torch.cat(scores.logits), SPLITS))
    if "accuracy" in settings.metrics:
        assert scores.logits is not None
        result["accuracy"] = _accuracy(torch.cat(scores.logits), labels, settings)
    if save_stats is not None:
        about = _about(extractor, n, _preprocessing(shape, crop))
        write_statistics(save_stats, Statistics(mu, sigma, about))
    if n <= len(mu) and "fid" in settings.metrics:
        yield Report(
            message=f"{n} images for {len(mu)} features: the distance is biased upwards; compare only with the same n",
            level="warning",
        )
    return {
        **result,
        "n_samples": n,
        "n_ref": statistics.about.get("n") if statistics else None,
        "samples": reader.name,
        "ref": str(ref) if ref else None,
        "extractor": extractor.name,
        "extractor_sha256": extractor.weights_sha256,
        "elbo_version": __version__,
        "torch_fidelity_version": fidelity_version,
        "torch_version": str(torch.__version__),
    }


def _dataset_statistics(
    dataset: Dataset, extractor: Extractor, settings: Settings, device: torch.device
) -> Generator[Report, None, Statistics]:
    if len(dataset) < 2:
        raise DataError(f"{dataset.path}: one image is no distribution; a reference needs at least 2")
    scores = Scores(False)
    with read_samples(dataset.path) as reader:
        yield from _extract(reader, extractor, settings, device, scores, "reference")
    moments = scores.moments.moments()
    return Statistics(
        moments.mu, moments.sigma, _about(extractor, len(dataset), _preprocessing(dataset.shape, dataset.attributes.get("crop")))
    )


def _check_count(n: int, settings: Settings, name: str) -> None:
    least = {"fid": 2, "is": SPLITS, "accuracy": 1}
    for metric in settings.metrics:
        if n < least[metric]:
            raise DataError(f"{name}: {n} images; {metric} needs at least {least[metric]}")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[1:]))


def _named(extractor: Extractor, values: dict[str, float]) -> dict[str, float]:
    """torch-fidelity's names for the published Inception network (and `fid` for short); others carry the extractor's."""
    if extractor.known:
        return values | ({"fid": values[KEY_METRIC_FID]} if KEY_METRIC_FID in values else {})
    plain = {
        KEY_METRIC_FID: "frechet_distance",
        KEY_METRIC_ISC_MEAN: "inception_score_mean",
        KEY_METRIC_ISC_STD: "inception_score_std",
    }
    return {f"{plain[key]}[{extractor.name}]": value for key, value in values.items()}


def _accuracy(logits: torch.Tensor, labels: np.ndarray | None, settings: Settings) -> float:
    if labels is None:
        if not settings.classes:
            raise UsageError("accuracy needs labels: samples in .h5 or .npz, or --classes as given to 'elbo sample'")
        labels = choose_labels(settings.classes, len(logits), logits.shape[1], settings.seed)
    return float((logits.argmax(1) == torch.from_numpy(np.asarray(labels))).double().mean())
