"""The kernel inception distance, by torch-fidelity."""

from __future__ import annotations

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Option, Role, Value, metric

MEAN, STD, SE = (f"kernel_inception_distance_{part}" for part in ("mean", "std", "se"))
SUBSETS = 100


class KidOptions(MetricOptions):
    """kid_subset_size: images in each subset."""

    kid_subset_size = Option(1000, "Images in each subset of KID.", least=2)


@metric(
    "kid",
    formula="kernel distance (MMD²) of the features, unbiased, mean and spread over 100 subsets",
    source="Bińkowski et al. 2018",
    numbers=[
        Number(MEAN, "kernel_distance_mean", "KID", "kernel distance"),
        Number(STD, "kernel_distance_std", role=Role.PARTS, of=MEAN, told="over subsets of {kid_subset_size}"),
        Number(SE, "kernel_distance_se", role=Role.ERROR, of=MEAN),
    ],
    needs={Need.REFERENCE, Need.REFERENCE_FEATURES},
    least=lambda options: (options.kid_subset_size,) * 2,
    options=KidOptions,
    fewer="fewer with a smaller --kid-subset-size",
)
def kid(samples: Features, reference: Features, options: KidOptions) -> dict[str, Value]:
    """Compare the features of both sides.

    The standard error follows from the spread of the subsets, m of n images each: what they share makes it √(1 − m/n) of
    what it would be of independent ones, and that of all images is √(m/n) of this. So many subsets add their own. Near
    the reference it is too large, as it counts the reference's images, too; with m = n there is none.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = options.kid_subset_size
    assert samples.values is not None and reference.values is not None
    pair, n = (samples.values, reference.values), min(len(samples.values), len(reference.values))
    found = dict(kid_features_to_metric(*pair, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False))
    return {**found, SE: found[STD] * (size / (n - size) + 1 / SUBSETS) ** 0.5 if n > size else None}
