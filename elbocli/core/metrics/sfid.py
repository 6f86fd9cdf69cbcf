"""sFID: the Fréchet distance of spatial features, which say where in the image something is."""

from __future__ import annotations

from elbocli.core.metrics import Features, MetricOptions, Need, Number, metric

DISTANCE = "spatial_frechet_inception_distance"


@metric(
    "sfid",
    formula="Fréchet distance of spatial features: the first 7 channels of Inception's mixed_6/conv, as ADM",
    source="Nash et al. 2021; Dhariwal & Nichol 2021",
    numbers=[
        Number(DISTANCE, "spatial_frechet_distance", "sFID", "Fréchet distance of spatial features", "sfid"),
    ],
    needs={Need.REFERENCE, Need.SPATIAL},
    least=lambda options: (2, 2),
    few="sFID is biased upwards",
)
def sfid(samples: Features, reference: Features, options: MetricOptions) -> dict[str, float]:
    """Compare the moments of both sides' spatial features."""
    from elbocli.core.frechet import frechet_distance

    assert samples.spatial is not None and reference.spatial is not None
    return {DISTANCE: frechet_distance(samples.spatial, reference.spatial)}
