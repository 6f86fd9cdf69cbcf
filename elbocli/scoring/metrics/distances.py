"""Distances between the features of samples and reference, and scores of the samples' logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elbocli.scoring.metrics import BOTH, Need, Number, Option, Value, metric

if TYPE_CHECKING:
    from elbocli.scoring.score_errors import Influence


def _with_error(key: str, value: float, effects: Influence, variance: float) -> dict[str, Value]:
    name = key.removesuffix("_mean")
    return {key: value, f"{name}_se": variance**0.5, f"{name}_interval": effects.interval(value, variance)}


FID = "frechet_inception_distance"


@metric(
    "fid",
    formula="Fréchet distance of the features, with its standard error",
    source="Heusel et al. 2017",
    numbers=[Number(FID, "frechet_distance", "fid", parts=["se", "interval"])],
    needs={Need.REFERENCE},
    least=lambda options: (2, 2),
    few="FID is biased upwards by an amount that falls as 1/n, so compare it at the same n only, or use KID",
)
def fid(samples, reference, options):
    from elbocli.scoring.frechet import frechet_distance
    from elbocli.scoring.score_errors import frechet_influence

    values = samples.values.numpy()
    effects = frechet_influence(values, samples.moments, reference.moments, samples.labels)
    return _with_error(FID, frechet_distance(samples.moments, reference.moments), effects, effects.variance(len(values)))


SFID = "spatial_frechet_inception_distance"


@metric(
    "sfid",
    formula="Fréchet distance of spatial features: the first 7 channels of Inception's mixed_6/conv, as ADM; with its standard error",
    source="Nash et al. 2021; Dhariwal & Nichol 2021",
    numbers=[Number(SFID, "spatial_frechet_distance", "sfid", parts=["se", "interval"])],
    needs={Need.REFERENCE, Need.SPATIAL},
    least=lambda options: (2, 2),
    few="sFID is biased upwards, so compare it at the same n only",
)
def sfid(samples, reference, options):
    from elbocli.scoring.frechet import frechet_distance
    from elbocli.scoring.score_errors import frechet_influence

    own = samples.spatial
    theirs = reference.spatial
    values = samples.spatial_values
    effects = frechet_influence(values.numpy(), own, theirs, samples.labels)
    return _with_error(SFID, frechet_distance(own, theirs), effects, effects.variance(len(values)))


KID = "kernel_inception_distance"
SUBSETS = 100


@metric(
    "kid",
    formula="kernel distance (MMD²) of the features, unbiased, mean and spread over 100 subsets",
    source="Bińkowski et al. 2018",
    numbers=[
        Number(
            f"{KID}_mean",
            "kernel_distance_mean",
            parts=["std", "se", "interval"],
            told="over subsets of {kid_subset_size}",
        )
    ],
    needs=BOTH,
    least=lambda options: (options.kid_subset_size,) * 2,
    options=[Option("kid_subset_size", 1000, "Images in each subset of KID.", least=2)],
)
def kid(samples, reference, options):
    from torch_fidelity.metric_kid import kid_features_to_metric

    from elbocli.scoring.score_errors import kernel_influence

    own = samples.values
    theirs = reference.values
    size = options.kid_subset_size
    found = dict(kid_features_to_metric(own, theirs, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False))

    def cubic(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    effects, across, unequal = kernel_influence(own, theirs, cubic, samples.labels, samples.device)
    # Two subsets share images, so their covariance is the variance for all n images. Each subset also has a part of its own: the
    # variance for `size` images, with the choice of its reference images, and with other numbers of each class than all images have.
    alone = effects.variance(size) + 4 * across * (1 / size - 1 / len(theirs)) / size + unequal / size**2
    variance = effects.variance(len(own)) * (1 - 1 / SUBSETS) + alone / SUBSETS
    return {**found, **_with_error(f"{KID}_mean", found[f"{KID}_mean"], effects, variance)}


IS = "inception_score"
ORDERS = ("shuffled", "given")  # of the images before splitting: as torch-fidelity does, as ADM does


@metric(
    "is",
    formula="Inception score, mean and spread over splits",
    source="Salimans et al. 2016",
    numbers=[
        Number(
            f"{IS}_mean",
            parts=["std"],
            told="over {splits} splits in the order {is_order}",
        )
    ],
    needs={Need.LOGITS},
    least=lambda options: (options.splits, 0),
    options=[
        Option("splits", 10, "Splits of the Inception score."),
        Option("is_order", "shuffled", "Order of the images in the splits.", choices=ORDERS),
    ],
    few="the Inception score is biased downwards, so compare it at the same n only",
)
def inception_score(samples, reference, options):
    from torch_fidelity.metric_isc import isc_features_to_metric

    return dict(isc_features_to_metric(samples.logits, options.splits, shuffle=options.is_order == "shuffled"))


@metric(
    "accuracy",
    formula="share of images whose class the logits tell",
    numbers=[Number("accuracy", by_network=False, parts=["se", "interval"])],
    needs={Need.LOGITS, Need.LABELS},
)
def accuracy(samples, reference, options):
    from torch import as_tensor

    from elbocli.core.estimate import error_of_share

    right = int((samples.logits.argmax(1) == as_tensor(samples.labels)).sum())
    n = len(samples.labels)
    error, within = error_of_share(right, n)
    return {"accuracy": right / n, "accuracy_se": error, "accuracy_interval": within}
