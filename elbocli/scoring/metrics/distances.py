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


WIDTH = 10.0  # σ of CMMD's Gaussian kernel exp(−|x−y|²/2σ²)
SCALE = 1000.0


@metric(
    "cmmd",
    formula="1000 MMD² of the features scaled to length 1, Gaussian kernel of width 10; published for CLIP's",
    source="Jayasumana et al. 2024",
    numbers=[Number("gaussian_mmd", "cmmd", parts=["se", "interval"])],
    needs=BOTH,
    least=lambda options: (1, 1),
    few="CMMD, as it was published, is biased upwards, so compare it at the same n only",
)
def cmmd(samples, reference, options):
    import numpy as np
    from torch.nn.functional import normalize

    from elbocli.scoring.neighbours import squares
    from elbocli.scoring.score_errors import kernel_influence

    first = samples.values
    second = reference.values

    def total(some, others):
        same = some is others
        found = 0.0
        for row, column, apart in squares(some, others, samples.device, unit=True, upper=same):
            part = float(apart.mul_(-0.5 / WIDTH**2).exp_().sum())
            found += 2 * part if same and column > row else part
        return found

    among = sum(total(each, each) / len(each) ** 2 for each in (first, second))

    def kernel(x, y):
        return ((normalize(x) @ normalize(y).T - 1) / WIDTH**2).exp()

    distance = among - 2 * total(first, second) / (len(first) * len(second))
    if len(first) == 1:
        return {"gaussian_mmd": SCALE * distance, "gaussian_mmd_se": None, "gaussian_mmd_interval": None}
    effects = kernel_influence(first, second, kernel, samples.labels, samples.device)[0]
    found = _with_error("gaussian_mmd", distance, effects, effects.variance(len(first)))
    return {key: (SCALE * np.array(value)).tolist() for key, value in found.items()}


MIND = "monge_inception_distance"
DIRECTIONS = 1000
DIRECTIONS_SEED = 2020


@metric(
    "mind",
    formula="3 D times the mean squared 2-Wasserstein distance of the D features along 1000 random directions; published for n = 5000",
    source="Berthet et al. 2026, arXiv:2605.06797",
    numbers=[Number(MIND, "monge_distance", parts=["se", "interval"])],
    needs=BOTH,
    least=lambda options: (4, 4),
    few="MIND takes as many images from each side as the smaller side has, and is biased upwards; compare MIND at the same n only",
)
def mind(samples, reference, options):
    """Return MIND with its standard error and 95 % interval, of as many images of both sides as the smaller one has.

    The paper defines the square, the factor 3 D, uniform directions, and equal numbers of images. 1000 directions, their seed and the
    larger side's random subset are choices of other programs, torch-fidelity's among them, and elbo's. The error holds for these
    directions. Other ones move MIND by a few per cent, alike for all models, so compare values of the same directions.
    """
    import torch
    from torch.nn.functional import normalize

    from elbocli.scoring.score_errors import transport_influence

    random = torch.Generator().manual_seed(DIRECTIONS_SEED)
    sides = [samples.values, reference.values]
    n = min(map(len, sides))
    width = sides[0].shape[1]
    own, theirs = (side if len(side) == n else side[torch.randperm(len(side), generator=random)[:n]] for side in sides)
    directions = normalize(torch.randn(DIRECTIONS, width, generator=random))
    # As features times (3 D)^½ have 3 D times the distance, the errors need no factor.
    own, theirs = (side * (3 * width) ** 0.5 for side in (own, theirs))
    distance, effects = transport_influence(own, theirs, directions, samples.device)
    return _with_error(MIND, distance, effects, effects.variance(n))


IS = "inception_score"
ORDERS = ("shuffled", "given")  # of the images before splitting: as torch-fidelity does, as ADM does


@metric(
    "is",
    formula="Inception score, mean and spread over splits",
    source="Salimans et al. 2016",
    numbers=[
        Number(
            f"{IS}_mean",
            parts=["std", "se"],
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
    import numpy as np
    from torch_fidelity.metric_isc import isc_features_to_metric

    from elbocli.core.streams import Stream
    from elbocli.scoring.score_errors import inception_influence

    logits = samples.logits
    n = len(samples.logits)
    found = dict(isc_features_to_metric(logits, options.splits, shuffle=options.is_order == "shuffled"))
    order = Stream(0, IS).permutation(0, n) if options.is_order == "shuffled" else np.arange(n)
    # The score is a mean over independent splits, and exp KL of a split changes by exp KL times the change of KL.
    error = None
    if n >= 2 * options.splits:
        parts = [inception_influence(logits[part]).se for part in np.array_split(order, options.splits)]
        error = found[f"{IS}_mean"] * float(np.linalg.norm(parts)) / options.splits
    return {**found, f"{IS}_se": error}


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
