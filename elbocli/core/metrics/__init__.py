"""What can be computed of images' features, declared once: the command line, the checks and the docs follow from it.

torch, numpy and torch-fidelity are imported only where they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elbocli.core.registry import Declaration, Registry

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from elbocli.core.metrics.frechet import Gaussian

ENOUGH = 10_000
"""Images below which a score is said to be of few."""
LOGITS, LABELS, REFERENCE, REFERENCE_FEATURES = "logits", "labels", "reference", "the reference's features"


@dataclass(frozen=True)
class MetricOptions:
    """Of the metrics that have some. seed: of what is dealt at random to extrapolate, and of a stream's random labels."""

    splits: int = 10
    kid_subset_size: int = 1000
    prc_protocol: str = "torch-fidelity"
    fid_infinity: bool = False
    seed: int = 0


@dataclass(frozen=True)
class MetricTraits:
    """What a metric needs and how its numbers are called.

    least: images of samples and of the reference that it needs. needs: of LOGITS, LABELS, REFERENCE, REFERENCE_FEATURES.
    keys: torch-fidelity's names, each with the name it has when the network isn't the published Inception; {} is the
    network. options: those of MetricOptions that are its own. few: what few images do to it.
    """

    least: Callable[[MetricOptions], tuple[int, int]]
    needs: Set[str]
    keys: Mapping[str, str]
    options: tuple[str, ...] = ()
    few: str = ""


METRICS: Registry[MetricTraits] = Registry("metric")


@dataclass(frozen=True)
class Features:
    """Of images: moments; values [N, D] float32, where they were kept; logits [N, K] and labels [N], if there are any."""

    moments: Gaussian
    values: Tensor | None = None
    logits: Tensor | None = None
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class PrcProtocol:
    """Of precision and recall. k: neighbours. extractor: the only one it is defined for. most: images of the reference."""

    formula: str
    k: int = 3
    extractor: str | None = None
    most: int | None = None


PRC_PROTOCOLS = {
    "torch-fidelity": PrcProtocol("3 neighbours, all images of the reference"),
    "adm": PrcProtocol(
        "3 neighbours, Inception's features, 10000 images of the reference (evenly spaced when it has more), as in ADM's "
        "reference batches",
        extractor="inception-v3-compat",
        most=10_000,
    ),
}


def least(metric: Declaration[MetricTraits], options: MetricOptions) -> tuple[int, int]:
    """How many images a metric needs, of the samples and of the reference."""
    samples, reference = metric.traits.least(options)
    return samples, reference


@METRICS.declare(
    "fid",
    formula="Fréchet distance of the features, with its standard error",
    source="Heusel et al. 2017",
    traits=MetricTraits(
        least=lambda options: (20 if options.fid_infinity else 2, 2),
        needs={REFERENCE},
        keys={
            "frechet_inception_distance": "frechet_distance[{}]",
            "frechet_inception_distance_se": "frechet_distance_se[{}]",
            "frechet_inception_distance_infinity": "frechet_distance_infinity[{}]",
            "frechet_inception_distance_infinity_interval": "frechet_distance_infinity_interval[{}]",
        },
        options=("fid_infinity",),
        few="FID is biased upwards by an amount that falls as 1/n, so compare it at the same n only, or use --fid-infinity",
    ),
)
def fid(samples: Features, reference: Features, options: MetricOptions) -> dict[str, Any]:
    """Also extrapolated to infinitely many images, with an interval when there are twice as many images as features."""
    from elbocli.core.metrics.feature_moments import FeatureMoments
    from elbocli.core.metrics.frechet import frechet_distance
    from elbocli.core.metrics.frechet_error import PARTS, extrapolate, standard_error
    from elbocli.core.streams import Stream

    assert samples.values is not None
    values, theirs = samples.values.numpy(), reference.moments
    n, width = values.shape
    error = standard_error(values, samples.moments, theirs)
    found: dict[str, Any] = {
        "frechet_inception_distance": frechet_distance(samples.moments, theirs),
        "frechet_inception_distance_se": error,
    }
    if options.fid_infinity:
        order = Stream(options.seed, "fid-infinity").permutation(0, n)
        parts = [FeatureMoments.of(values[order[k::PARTS]]) for k in range(PARTS)]
        beyond = extrapolate(parts, theirs)
        found["frechet_inception_distance_infinity"] = beyond.value
        interval = list(beyond.interval(error)) if n >= 2 * width else None
        found["frechet_inception_distance_infinity_interval"] = interval
    return found


@METRICS.declare(
    "is",
    formula="Inception score, mean and spread over --splits",
    source="Salimans et al. 2016",
    traits=MetricTraits(
        least=lambda options: (options.splits, 0),
        needs={LOGITS},
        keys={
            "inception_score_mean": "inception_score_mean[{}]",
            "inception_score_std": "inception_score_std[{}]",
        },
        options=("splits",),
        few="the Inception score is biased downwards",
    ),
)
def inception_score(samples: Features, reference: Features | None, options: MetricOptions) -> dict[str, Any]:
    """By torch-fidelity."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    return dict(isc_features_to_metric(samples.logits, options.splits))


@METRICS.declare(
    "kid",
    formula="kernel distance (MMD²) of the features, unbiased, mean and spread over 100 subsets",
    source="Bińkowski et al. 2018",
    traits=MetricTraits(
        least=lambda options: (options.kid_subset_size,) * 2,
        needs={REFERENCE, REFERENCE_FEATURES},
        keys={
            "kernel_inception_distance_mean": "kernel_distance_mean[{}]",
            "kernel_inception_distance_std": "kernel_distance_std[{}]",
        },
        options=("kid_subset_size",),
        few="",
    ),
)
def kid(samples: Features, reference: Features, options: MetricOptions) -> dict[str, Any]:
    """By torch-fidelity."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = options.kid_subset_size
    return dict(kid_features_to_metric(samples.values, reference.values, kid_subset_size=size, verbose=False))


@METRICS.declare(
    "prc",
    formula="precision and recall: images within reach of the other side's neighbours",
    source="Kynkäänniemi et al. 2019",
    traits=MetricTraits(
        least=lambda options: (PRC_PROTOCOLS[options.prc_protocol].k + 1,) * 2,
        needs={REFERENCE, REFERENCE_FEATURES},
        keys={key: f"{key}[{{}}]" for key in ("precision", "recall", "f_score")},
        options=("prc_protocol",),
        few="precision and recall depend on n and on the reference's, so compare them at the same only",
    ),
)
def precision_recall(samples: Features, reference: Features, options: MetricOptions) -> dict[str, Any]:
    """By torch-fidelity, in parts: 50,000 images take some hundred MB instead of 10 GB."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    protocol = PRC_PROTOCOLS[options.prc_protocol]
    theirs = reference.values
    assert theirs is not None
    most = protocol.most or len(theirs)
    if len(theirs) > most:
        theirs = theirs[[k * len(theirs) // most for k in range(most)]]
    settings = {"prc_neighborhood": protocol.k, "prc_batch_size": 2000, "save_cpu_ram": True, "verbose": False}
    return dict(prc_features_to_metric(samples.values, theirs, **settings))


@METRICS.declare(
    "accuracy",
    formula="share of images whose class the logits tell",
    source="",
    traits=MetricTraits(
        least=lambda options: (1, 0),
        needs={LOGITS, LABELS},
        keys={"accuracy": "accuracy"},
        options=(),
        few="",
    ),
)
def accuracy(samples: Features, reference: Features | None, options: MetricOptions) -> dict[str, Any]:
    """Of class-conditional samples."""
    from torch import as_tensor

    assert samples.logits is not None and samples.labels is not None
    return {"accuracy": float((samples.logits.argmax(1) == as_tensor(samples.labels)).double().mean())}
