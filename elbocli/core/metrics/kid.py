"""The kernel inception distance, by torch-fidelity."""

from __future__ import annotations

from dataclasses import dataclass, field

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Role, metric, option

MEAN, STD = "kernel_inception_distance_mean", "kernel_inception_distance_std"


@dataclass(frozen=True)
class KidOptions(MetricOptions):
    """kid_subset_size: images in each subset."""

    kid_subset_size: int = field(default=1000, metadata=option("Images in each subset of KID.", least=2))


@metric(
    "kid",
    formula="kernel distance (MMD²) of the features, unbiased, mean and spread over 100 subsets",
    source="Bińkowski et al. 2018",
    numbers=[
        Number(MEAN, "kernel_distance_mean", "KID", "kernel distance"),
        Number(STD, "kernel_distance_std", role=Role.PARTS, of=MEAN, told="over subsets of {kid_subset_size}"),
    ],
    needs={Need.REFERENCE, Need.REFERENCE_FEATURES},
    least=lambda options: (options.kid_subset_size,) * 2,
    options=KidOptions,
    fewer="less with --kid-subset-size",
)
def kid(samples: Features, reference: Features, options: KidOptions) -> dict[str, float]:
    """Compare the features of both sides."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = options.kid_subset_size
    return dict(kid_features_to_metric(samples.values, reference.values, kid_subset_size=size, verbose=False))
