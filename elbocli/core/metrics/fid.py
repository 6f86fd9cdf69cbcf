"""The Fréchet inception distance with its standard error, and of infinitely many images."""

from __future__ import annotations

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Option, Role, Value, metric

DISTANCE = "frechet_inception_distance"
INTERVAL = "infinity_interval"
SE, BEYOND, WITHIN = (f"{DISTANCE}_{part}" for part in ("se", "infinity", INTERVAL))


class FidOptions(MetricOptions):
    """fid_infinity: extrapolate, too; the seed deals the images into parts."""

    fid_infinity = Option(
        False, "Also FID extrapolated to infinitely many images, with an interval that holds it 95 times in 100."
    )

    @property
    def draws(self) -> bool:
        """Whether images are dealt into parts."""
        return self.fid_infinity


@metric(
    "fid",
    formula="Fréchet distance of the features, with its standard error",
    source="Heusel et al. 2017",
    numbers=[
        Number(DISTANCE, "frechet_distance", "FID", "Fréchet distance", "fid"),
        Number(SE, "frechet_distance_se", alias="fid_se", role=Role.ERROR, of=DISTANCE),
        Number(BEYOND, "frechet_distance_infinity", alias="fid_infinity", role=Role.LIMIT, of=DISTANCE),
        Number(WITHIN, f"frechet_distance_{INTERVAL}", alias=f"fid_{INTERVAL}", role=Role.INTERVAL, of=BEYOND),
    ],
    needs={Need.REFERENCE},
    least=lambda options: (20 if options.fid_infinity else 2, 2),
    options=FidOptions,
    few="FID is biased upwards by an amount that falls as 1/n, so compare it at the same n only, or use --fid-infinity",
)
def fid(samples: Features, reference: Features, options: FidOptions) -> dict[str, Value]:
    """Compare the moments of both sides; of infinitely many images there is an interval when the samples are twice as
    many as the features.
    """
    from elbocli.core.feature_moments import FeatureMoments
    from elbocli.core.frechet import frechet_distance
    from elbocli.core.frechet_error import PARTS, extrapolate, standard_error
    from elbocli.core.streams import Stream

    assert samples.values is not None
    values, theirs = samples.values.numpy(), reference.moments
    n, width = values.shape
    error = standard_error(values, samples.moments, theirs)
    found: dict[str, Value] = {DISTANCE: frechet_distance(samples.moments, theirs), SE: error}
    if options.fid_infinity:
        order = Stream(options.seed, "fid-infinity").permutation(0, n)
        beyond = extrapolate([FeatureMoments.of(values[order[k::PARTS]]) for k in range(PARTS)], theirs)
        found[BEYOND] = beyond.value
        found[WITHIN] = list(beyond.interval(error)) if n >= 2 * width else None
    return found
