"""sFID: the Fréchet distance of spatial features, which say where in the image something is."""

from __future__ import annotations

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Role, metric

DISTANCE = "spatial_frechet_inception_distance"


@metric(
    "sfid",
    formula="Fréchet distance of spatial features: the first 7 channels of Inception's mixed_6/conv, as ADM; with its standard error",
    source="Nash et al. 2021; Dhariwal & Nichol 2021",
    numbers=[
        Number(DISTANCE, "spatial_frechet_distance", "sFID", "Fréchet distance of spatial features", "sfid"),
        Number(f"{DISTANCE}_se", "spatial_frechet_distance_se", alias="sfid_se", role=Role.ERROR, of=DISTANCE),
    ],
    needs={Need.REFERENCE, Need.SPATIAL},
    least=lambda options: (2, 2),
    few="sFID is biased upwards",
)
def sfid(samples: Features, reference: Features, options: MetricOptions) -> dict[str, float]:
    """Compare the moments of both sides' spatial features."""
    from elbocli.core.frechet import frechet_distance
    from elbocli.core.frechet_error import standard_error

    own, theirs, values = samples.spatial, reference.spatial, samples.spatial_values
    assert own is not None and theirs is not None and values is not None
    return {DISTANCE: frechet_distance(own, theirs), f"{DISTANCE}_se": standard_error(values.numpy(), own, theirs)}
